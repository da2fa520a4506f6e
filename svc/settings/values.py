"""The forms that the value of a setting may have, and how each is read from text: durations, ranges, endpoints, URLs.

Each reader takes the text of a variable and returns the value, or raises ValueError; what is no text (a setting given by keyword
in Python) passes through, and the type checks it. `settings.py` lists the settings that have these forms.
"""

import re
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import parse_qs, urlsplit

from pydantic import BeforeValidator, SecretStr

from svc.settings.queue_address import queue_address

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_GO_DURATION = re.compile(rf"(?:(?:{_NUMBER})(?:ns|us|µs|ms|s|m|h))+")
_GO_PART = re.compile(rf"({_NUMBER})(ns|us|µs|ms|s|m|h)")


class Endpoint(NamedTuple):
    """Where a member of etcd listens."""

    host: str
    port: int
    tls: bool = False
    """Asked for by `https://`; a certificate authority asks for it too."""


def seconds(text: object) -> object:
    """A duration in seconds, from a number of seconds (`30`, `0.5`) or Go's form (`500ms`, `1m30s`). Raises ValueError."""
    if not isinstance(text, str):
        return text
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not _GO_DURATION.fullmatch(text):
        raise ValueError("not a duration")
    return sum(float(number) * _UNITS[unit] for number, unit in _GO_PART.findall(text))


def whole(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise ValueError("not a whole number")
    return text


def endpoints(text: object) -> object:
    if not isinstance(text, str):
        return text
    if text.lower() == "off":
        return ()
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(https?://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):([0-9]{1,5})/?", part.strip())
        if not match or not 0 < int(match[3]) < 65536:
            raise ValueError("not host:port")
        found.append(Endpoint(match[2].strip("[]"), int(match[3]), match[1] == "https://"))
    if len({one.tls for one in found}) > 1:
        raise ValueError("some with TLS, some without: a password would be safe on the way to some only")
    return tuple(found)


def pem_file(text: object) -> object:
    # Looked at here, so that a path with a typing error ends the start, and not a service that never sees the switch. Read again
    # with each connection: certificates are renewed.
    if isinstance(text, str):
        path = Path(text)
        try:
            usable = path.is_file() and b"-----BEGIN " in path.read_bytes()
        except OSError:
            usable = False
        if not usable:
            raise ValueError("no PEM file that can be read")
    return text


def file_to_come(text: object) -> object:
    # It may be missing. Its folder may not: nobody would ever switch anything by a path with a typing error.
    if isinstance(text, str):
        path = Path(text)
        try:
            usable = "\0" not in text and path.parent.is_dir() and not path.is_dir()
        except OSError:
            usable = False
        if not usable:
            raise ValueError("no file, and no place for one")
    return text


def secret_file(text: object) -> object:
    """The path of a file that can be read: looked at here for the same reason as a PEM file."""
    if isinstance(text, str):
        try:
            usable = Path(text).is_file() and Path(text).read_bytes().decode().strip() != ""
        except (OSError, ValueError):
            usable = False
        if not usable:
            raise ValueError("no file with a text that can be read")
    return text


def database_url(text: object) -> object:
    """A URL of PostgreSQL. What else it may say (several hosts, a socket's folder) is for libpq to read."""
    if isinstance(text, str):
        parts = urlsplit(text)
        if parts.scheme not in ("postgresql", "postgres") or not text.isprintable() or re.search(r"\s", text):
            raise ValueError("not a URL of PostgreSQL")
        # The rest of a query may be shown, and a password is none of it.
        if {"password", "sslpassword", "passfile"} & {name.lower() for name in parse_qs(parts.query)}:
            raise ValueError("a password in the query")
        # libpq ends a password at its first @ or /: the rest would be part of a host's name, which is shown.
        whole = text.partition("://")[2]
        user, _, place = whole.partition("@")
        if "@" in (whole if "/" in user else place).partition("?")[0]:
            raise ValueError("a password that is not percent-encoded")
    return text


def address(text: object) -> object:
    """An IPv6 address may stand in brackets, as in a URL."""
    return text[1:-1] if isinstance(text, str) and re.fullmatch(r"\[[^\[\]]*:[^\[\]]*\]", text) else text


def seconds_range(text: object) -> object:
    if not isinstance(text, str):
        return text
    least, dash, most = text.partition("-")
    pair = (seconds(least.strip()), seconds((most if dash else least).strip()))
    if not (isinstance(pair[0], float) and isinstance(pair[1], float) and pair[0] <= pair[1] <= 43_200):
        raise ValueError("not a range")
    return pair


def http_url(text: object) -> object:
    if isinstance(text, str):
        parts = urlsplit(text)  # raises ValueError on its own for some
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or re.search(r"\s", text):
            raise ValueError("not a URL")
        # It would stand in the log, /health, the fleet and etcd; and requests to SQS are signed instead.
        if "@" in parts.netloc:
            raise ValueError("holds a user")
    return text


def queue(text: object) -> object:
    """A URL without a slash at its end (what follows the last one is the queue's name, and tells whether it is a FIFO queue), an
    ARN, or a name."""
    if not isinstance(text, str):
        return text
    if text.startswith("arn:") or not re.search("[/:]", text):
        queue_address(text)  # raises ValueError
        return text
    http_url(text)
    if not text.isprintable() or re.search(r"[?#%\\]", text):
        raise ValueError("more than a path")
    text = text.rstrip("/")
    path = urlsplit(text).path
    if not path or re.fullmatch(r"/[0-9]{12}", path):
        raise ValueError("names no queue")
    return text


def range_or_off(text: object) -> object:
    return None if isinstance(text, str) and text.lower() == "off" else pause_range(text)


def pause_range(text: object) -> object:
    pair = seconds_range(text)
    if isinstance(pair, tuple) and pair[0] < 1:
        raise ValueError("begins below a second")
    return pair


def failures(text: object) -> object:
    if not isinstance(text, str):
        return text
    if text.lower() == "off":
        return None
    match = re.fullmatch(r"([0-9]{1,3})% *of +([0-9]{1,6})", text)
    if not match or not (1 <= int(match[1]) <= 100 and 1 <= int(match[2]) <= 100_000):
        raise ValueError("not a share of a number")
    return int(match[1]) / 100, int(match[2])


def names(text: object) -> object:
    if not isinstance(text, str):
        return text
    found = tuple(part.strip() for part in text.split(","))
    if not all(re.fullmatch(r"[^\s:]+:[^\s:]+", one) for one in found):
        raise ValueError("not module:attribute")
    return found


def namespace(text: object) -> object:
    if isinstance(text, str) and (
        not re.fullmatch(r"[A-Za-z0-9._/# -][A-Za-z0-9._/#: -]{0,254}", text) or text.startswith("AWS/")
    ):
        raise ValueError("not a namespace")
    return text


Seconds = Annotated[float, BeforeValidator(seconds)]
Whole = Annotated[int, BeforeValidator(whole)]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(endpoints)]
FileToCome = Annotated[str | None, BeforeValidator(file_to_come)]
PemFile = Annotated[str | None, BeforeValidator(pem_file)]
SecretFile = Annotated[str | None, BeforeValidator(secret_file)]
DatabaseUrl = Annotated[SecretStr | None, BeforeValidator(database_url)]
Address = Annotated[str, BeforeValidator(address)]
SecondsRange = Annotated[tuple[float, float], BeforeValidator(seconds_range)]
PauseRange = Annotated[tuple[float, float], BeforeValidator(pause_range)]
SecondsRangeOrOff = Annotated[tuple[float, float] | None, BeforeValidator(range_or_off)]
ShareOrOff = Annotated[tuple[float, int] | None, BeforeValidator(failures)]
Queue = Annotated[str, BeforeValidator(queue)]
HttpUrlOrEmpty = Annotated[str, BeforeValidator(lambda text: http_url(text) if text else text)]
Names = Annotated[tuple[str, ...] | None, BeforeValidator(names)]
Namespace = Annotated[str | None, BeforeValidator(namespace)]
Lower = BeforeValidator(lambda text: text.lower() if isinstance(text, str) else text)
