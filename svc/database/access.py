"""Where processors find the database of the service that runs: `svc.database.connection()` and the like."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import psycopg

from svc.database.pool import Database
from svc.database.trio_connection import Connection

_IN_USE: contextvars.ContextVar[Database | None] = contextvars.ContextVar("svc_database", default=None)


@contextlib.contextmanager
def in_use(database: Database) -> Iterator[None]:
    """Within, `current()` is this one: in this task and those that it starts, in the threads and the asyncio loop that they
    call."""
    token = _IN_USE.set(database)
    try:
        yield
    finally:
        _IN_USE.reset(token)


def current() -> Database:
    """The database of the service that runs. Raises RuntimeError where there is none."""
    database = _IN_USE.get()
    if database is None:
        raise RuntimeError("there is no database here: set DATABASE_URL, or use the fixture svc_database in a test")
    return database


def connection(timeout: float | None = None) -> contextlib.AbstractAsyncContextManager[Connection]:
    """`current().connection()`: for a processor on Trio."""
    return current().connection(timeout)


def sync_connection(timeout: float | None = None) -> contextlib.AbstractContextManager["psycopg.Connection[Any]"]:
    """`current().sync_connection()`: for a plain `def`."""
    return current().sync_connection(timeout)


def asyncio_connection(
    timeout: float | None = None,
) -> contextlib.AbstractAsyncContextManager["psycopg.AsyncConnection[Any]"]:
    """`current().asyncio_connection()`: for a processor on asyncio."""
    return current().asyncio_connection(timeout)
