"""The database that processors use, and its part in maintenance: it outlives those who work, and then lets its connections go.

Lives here: what is connected to, and how (`conninfo.py`); the pools, for Trio, asyncio and threads alike (`pool.py`), and where
processors find them (`access.py`); a connection as it is used on Trio (`trio_connection.py`); whether one still answers
(`checking.py`), and whether its server takes writes (`read_only.py`); the end of connections, seen through to the server's side
(`farewell.py`); the inbox of those who do things exactly once (`inbox.py`, `sessions.py`). Also the handler of maintenance
(`handler.py`), what a processor's failure says of the database (`failures.py`), and both opened (`opening.py`).
Never here: what processors do with it, messages, receives, HTTP.
Begin reading at `pool.py`. psycopg and psycopg_pool are imported here only, and only where `DATABASE_URL` is set.

A processor asks for a connection with the function of its colour:

    async with database.connection() as connection:              # Trio
        await connection.execute("INSERT INTO orders VALUES (%s)", (order.id,))

    with database.sync_connection() as connection:               # a plain def, in its thread: a psycopg.Connection
        connection.execute("INSERT INTO orders VALUES (%s)", (order.id,))

    async with database.asyncio_connection() as connection:      # asyncio: a psycopg.AsyncConnection
        await connection.execute("INSERT INTO orders VALUES (%s)", (order.id,))

Each commits at the end of its block, and rolls back when the block raises or is cancelled.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc.database.access import asyncio_connection, connection, current, in_use, sync_connection
    from svc.database.conninfo import UnusableDatabase, check
    from svc.database.opening import opened
    from svc.database.pool import Database, DatabaseAway
    from svc.database.trio_connection import Connection

__all__ = [
    "Connection",
    "Database",
    "DatabaseAway",
    "UnusableDatabase",
    "asyncio_connection",
    "check",
    "connection",
    "current",
    "figures",
    "in_use",
    "inbox",
    "opened",
    "sync_connection",
]

_HOMES = {
    "Connection": "svc.database.trio_connection",
    "UnusableDatabase": "svc.database.conninfo",
    "check": "svc.database.conninfo",
    "opened": "svc.database.opening",
    **dict.fromkeys(("Database", "DatabaseAway"), "svc.database.pool"),
    **dict.fromkeys(
        ("asyncio_connection", "connection", "current", "in_use", "sync_connection"), "svc.database.access"
    ),
}


def __getattr__(name: str) -> object:
    """Found on first use: psycopg is loaded by whoever needs it, and not by who only names a figure."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'svc.database' has no attribute {name!r}")
