"""The settings from a mapping of variables (never from `os.environ` by itself), or all that is wrong with them at once."""

import re
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from svc.settings.resolution import Profile, no_profile, resolved
from svc.settings.settings import Settings, is_secret, may_hold, variable
from svc.settings.shown import without_credentials, without_user
from svc.settings.suspicions import kubernetes, service_of

_URLS = {"sqs_queue_url", "aws_endpoint", "etcd_endpoints"}


class BadSettings(Exception):
    """The settings are unusable; `faults` holds a line for each fault: which variable, what it held, what it may hold."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load(environ: Mapping[str, str], profile: Callable[[], Profile] = no_profile) -> Settings:
    """The settings that `environ` names; raises `BadSettings`. `profile` tells what the AWS profile says, where that matters.

    Blanks around a value are dropped. A variable that is set but empty counts as unset, except `AWS_ENDPOINT`, where empty
    means AWS itself.
    """
    held = _held(environ)
    follows = resolved(held, environ, profile)
    held, faults = follows.held, follows.faults
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(held)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False, include_context=False):
            field = str(one["loc"][0])
            faults.setdefault(field, _fault(field, held.get(field, "")))
    for field in _incomplete(held):
        faults.setdefault(field, _fault(field, held.get(field)))
    token = held.get("api_token")
    if token is not None and (len(token) < 8 or re.search(r"\s", token)):
        faults["api_token"] = _fault("api_token", token)
    for field in _contradictory(held, settings):
        faults.setdefault(field, _fault(field, held.get(field) or str(getattr(settings, field))))
    if faults or settings is None:
        raise BadSettings([faults[field] for field in Settings.model_fields if field in faults])
    return settings


def origins(environ: Mapping[str, str], profile: Callable[[], Profile] = no_profile) -> dict[str, str]:
    """Where each variable's value comes from, in a word or two."""
    held = _held(environ)
    follows = resolved(held, environ, profile).origins
    return {
        variable(field): follows.get(field, "set" if field in held else "default") for field in Settings.model_fields
    }


def _held(environ: Mapping[str, str]) -> dict[str, str]:
    held = {field: environ[variable(field)].strip() for field in Settings.model_fields if variable(field) in environ}
    return {field: value for field, value in held.items() if value or field == "aws_endpoint"}


def _incomplete(held: Mapping[str, str]) -> list[str]:
    """Fields that are missing although others that need them are set."""
    missing = []
    if ("etcd_username" in held) != ("etcd_password" in held):
        missing.append("etcd_password" if "etcd_username" in held else "etcd_username")
    if ("etcd_cert" in held) != ("etcd_key" in held):
        missing.append("etcd_key" if "etcd_cert" in held else "etcd_cert")
    if "maintenance_file" in held and held.get("etcd_endpoints", "").lower() != "off":
        missing.append("maintenance_file")
    if "sqs_role_external_id" in held and "sqs_role_arn" not in held:
        missing.append("sqs_role_arn")
    if ("database_password" in held or "database_password_file" in held) and "database_url" not in held:
        missing.append("database_url")
    # A client certificate is shown over TLS only: the connection would be plain text without a word (STACK 3.4).
    tls = "etcd_ca_cert" in held or "https://" in held.get("etcd_endpoints", "")
    if ("etcd_cert" in held or "etcd_key" in held) and not tls:
        missing.append("etcd_ca_cert")
    return missing


def _contradictory(held: Mapping[str, str], settings: Settings | None) -> list[str]:
    """Fields that cannot be what they are beside others."""
    found = []
    if "database_password" in held and "database_password_file" in held:
        found.append("database_password")
    if settings is not None:
        most = settings.database_max_connections
        found += [
            field
            for field in ("database_min_connections", "database_maintenance_connections")
            if getattr(settings, field) > most
        ]
    return found


def _fault(field: str, held: str | None) -> str:
    if held is None:
        what = "is not set"
    elif is_secret(field):
        what = "holds an unusable value (not shown)"
    else:
        shown = without_user(held) if field in _URLS else without_credentials(held)
        what = f"holds {shown[:200]!r}"
    why = ""
    if held is not None and kubernetes(held) and variable(field).endswith("_PORT"):
        why = (
            f" (Kubernetes sets it for a Service called {service_of(variable(field))}: put enableServiceLinks: false into the "
            "pod's spec, or set the variable there)"
        )
    return f"{variable(field)} {what}{why}; it must be {may_hold(field)}"
