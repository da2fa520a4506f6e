"""From the settings to what psycopg connects with. The password is put in for each connection, and stands nowhere else."""

from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from svc.settings import Settings, printable

NO_NAME = "a part of its host's name is empty, or longer than 63 characters"


class UnusableDatabase(Exception):
    """`DATABASE_URL` cannot be used as it is; the sentence shows nothing of it that is secret."""


def conninfo(settings: Settings, application_name: str) -> str:
    """What to connect with, password included: read again each time, because a file's may be renewed. Raises `OSError` when that
    file cannot be read any more, and `UnusableDatabase`."""
    assert settings.database_url is not None
    # No default of libpq's that would send a password to a server that the URL does not name; what the URL says comes first.
    more: dict[str, str] = {"application_name": application_name[:63]}
    if settings.database_password is not None:
        more["password"] = settings.database_password.get_secret_value()
    elif settings.database_password_file is not None:
        try:
            more["password"] = Path(settings.database_password_file).read_text().strip()
        except UnicodeDecodeError:
            raise UnusableDatabase(f"{settings.database_password_file} holds no text") from None
    try:
        return make_conninfo(settings.database_url.get_secret_value(), **more)
    except psycopg.ProgrammingError:
        # libpq's own sentence may quote the URL.
        raise UnusableDatabase(
            "libpq cannot read it as a connection URI (it is not shown: it may hold a password)"
        ) from None


def connect(info: str, seconds: float) -> "psycopg.Connection[Any]":
    """One connection, for which so many seconds are waited. Raises `psycopg.Error`, and `UnusableDatabase`."""
    try:
        return psycopg.connect(info, connect_timeout=max(2, round(seconds)))
    except UnicodeError:  # of Python's look-up of names, which psycopg lets through
        raise UnusableDatabase(NO_NAME) from None


def check(settings: Settings) -> None:
    """Raises `UnusableDatabase`."""
    parts = conninfo_to_dict(conninfo(settings, "svc"))
    if parts.get("hostaddr"):
        return  # nothing is looked up
    host = parts.get("host") or next((one.val for one in pq.Conninfo.get_defaults() if one.keyword == b"host"), None)
    text = host.decode("utf-8", "replace") if isinstance(host, bytes) else str(host or "")
    for name in text.split(","):
        try:
            if not name.startswith(("/", "@")):
                name.encode("idna")  # what Python's look-up does first
        except UnicodeError:
            raise UnusableDatabase(f"{NO_NAME} ({printable(name[:80])})") from None


def place(settings: Settings) -> str:
    """Where the database is, in words for people: `orders at db.example:5432`. No user, no password."""
    try:
        parts = conninfo_to_dict(settings.database_url.get_secret_value() if settings.database_url else "")
    except psycopg.ProgrammingError:
        return "?"
    hosts = str(parts.get("host") or parts.get("hostaddr") or "localhost").split(",")
    ports = str(parts.get("port") or "5432").split(",")
    at = ",".join(f"{host}:{ports[min(number, len(ports) - 1)] or 5432}" for number, host in enumerate(hosts))
    return f"{parts.get('dbname') or parts.get('user') or 'the default database'} at {at}"
