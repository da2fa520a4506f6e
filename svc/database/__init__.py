"""The database that processors use, and its part in maintenance: it outlives those who work, and then lets its connections go.

Lives here: what is connected to, and how (`conninfo.py`); the pools, for Trio, asyncio and threads alike (`pool.py`); a
connection as it is used on Trio (`connection.py`); whether one still answers (`checking.py`); the end of connections, seen
through to the server's side (`farewell.py`); the inbox of those who do things exactly once (`inbox.py`, `sessions.py`).
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

from svc.database import inbox
from svc.database.connection import Connection
from svc.database.pool import Database, DatabaseAway, asyncio_connection, connection, current, in_use, sync_connection

__all__ = [
    "Connection",
    "Database",
    "DatabaseAway",
    "asyncio_connection",
    "connection",
    "current",
    "in_use",
    "inbox",
    "sync_connection",
]
