"""Whether a connection still answers: one round trip with an empty statement, and no waiting for ever.

psycopg_pool's own check waits as long as the server does not answer, and a frozen server, or a network that drops everything,
never does. So the round trip is made on psycopg's layer below that, with a deadline.
"""

import asyncio
import contextlib
import select
import time
from typing import Any

import psycopg
from psycopg import pq


def check(raw: "psycopg.Connection[Any]", seconds: float) -> None:
    """Raises `psycopg.OperationalError`, and closes the connection, if it does not answer within so many seconds."""
    deadline = time.monotonic() + seconds
    try:
        with raw.lock:
            pgconn = raw.pgconn
            _ask(pgconn)
            poll = select.poll()
            poll.register(pgconn.socket, select.POLLIN)
            while pgconn.is_busy():
                if not poll.poll(max(0, deadline - time.monotonic()) * 1000):
                    raise _no_answer(seconds)
                pgconn.consume_input()
            _answered(pgconn)
    except psycopg.Error:
        raw.close()
        raise


async def check_async(raw: "psycopg.AsyncConnection[Any]", seconds: float) -> None:
    """The same in an asyncio loop."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        async with raw.lock:
            pgconn = raw.pgconn
            _ask(pgconn)
            while pgconn.is_busy():
                readable = asyncio.Event()
                loop.add_reader(pgconn.socket, readable.set)
                try:
                    async with asyncio.timeout_at(deadline):
                        await readable.wait()
                except TimeoutError:
                    raise _no_answer(seconds) from None
                finally:
                    loop.remove_reader(pgconn.socket)
                pgconn.consume_input()
            _answered(pgconn)
    except (psycopg.Error, asyncio.CancelledError):
        with contextlib.suppress(psycopg.Error):
            await raw.close()  # in the middle of an answer it is of no use to anybody
        raise


def _ask(pgconn: pq.abc.PGconn) -> None:
    pgconn.send_query(b"")
    pgconn.flush()


def _answered(pgconn: pq.abc.PGconn) -> None:
    while pgconn.get_result() is not None:
        pass
    if pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError("the connection to the database is lost")


def _no_answer(seconds: float) -> psycopg.OperationalError:
    return psycopg.OperationalError(f"the database has not answered within {seconds:g} s")
