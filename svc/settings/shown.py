"""The settings as `svc config` shows them, which is how they would be written in the environment; secrets are masked. And how
other texts from outside are shown."""

import re

from pydantic import SecretStr

from svc.settings.settings import Settings, is_secret, variable


def masked(settings: Settings) -> dict[str, str]:
    """Every variable with its effective value as text; secrets and credentials within URLs are masked."""
    return {variable(field): _shown(field, getattr(settings, field)) for field in Settings.model_fields}


def _shown(field: str, value: object) -> str:
    if value is None:
        return "off" if field in _MAY_BE_OFF else ""
    if field == "database_url":
        assert isinstance(value, SecretStr)
        return without_credentials(value.get_secret_value())
    if is_secret(field):
        return "********"
    if field == "etcd_endpoints":
        assert isinstance(value, tuple)
        return (
            "off"
            if not value
            else ",".join(
                ("https://" if tls else "") + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                for host, port, tls in value
            )
        )
    if field == "maintenance_handlers":
        assert isinstance(value, tuple)
        return ",".join(value)
    if field == "breaker_failures":
        assert isinstance(value, tuple)
        return f"{round(value[0] * 100)}% of {value[1]}"
    if isinstance(value, tuple):
        return "-".join(_shown_seconds(part, field) for part in value)
    if isinstance(value, float):
        return _shown_seconds(value, field)
    return without_credentials(str(value))


def _shown_seconds(value: float, field: str) -> str:
    if field == "simulated_work_seconds":
        return f"{value:g}"
    for unit, of_seconds in (("h", 3600), ("m", 60)):
        if value >= of_seconds and value % of_seconds == 0:
            return f"{value / of_seconds:.15g}{unit}"
    return f"{value:.15g}s"


_MAY_BE_OFF = {"retry_backoff", "breaker_failures"}


def without_credentials(text: str) -> str:
    return re.sub(r"(?<=://)\S*@", "********@", text)


def without_user(text: str) -> str:
    """Of what should be a URL and may be none: nothing before an @ is shown."""
    return re.sub(r"(?s)\A((?:https?:/*)?).*@", r"\1********@", text)


def printable(text: str) -> str:
    """The text without anything that is not printable: line ends, escape sequences, what turns the direction of writing."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
