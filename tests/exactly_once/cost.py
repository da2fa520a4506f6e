"""What exactly once costs: `python -m tests.exactly_once.cost`.

Each colour of processor writes one row, once in a transaction of its own (`svc.database`'s connection), once with `exactly_once`.
CPU is that of this process (threads included) and of PostgreSQL's, per message; ten messages are under way at once.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import psycopg
import trio

from svc import Message, Transaction, database, processor, processors
from svc.database import Database, in_use, inbox
from svc.devstack.postgres import Postgres
from svc.processors import UnitOfWork
from svc.settings import load
from tests.bench.processes import _cpu, family

INSERT = "INSERT INTO effects VALUES (%s)"
QUEUE = "http://sqs/000000000000/orders"
AT_ONCE = 10


async def trio_own(message: Message) -> None:
    async with database.connection() as connection:
        await connection.execute(INSERT, (message.id,))


@processor(runtime="asyncio")
async def asyncio_own(message: Message) -> None:
    async with database.asyncio_connection() as connection:
        await connection.execute(INSERT, (message.id,))


def thread_own(message: Message) -> None:
    with database.sync_connection() as connection:
        connection.execute(INSERT, (message.id,))


@processor(exactly_once=True)
async def trio_once(message: Message, transaction: Transaction) -> None:
    await transaction.execute(INSERT, (message.id,))


@processor(exactly_once=True, runtime="asyncio")
async def asyncio_once(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(INSERT, (message.id,))


@processor(exactly_once=True)
def thread_once(message: Message, connection: psycopg.Connection[Any]) -> None:
    connection.execute(INSERT, (message.id,))


async def measure(
    url: str, postgres: int, function: Callable[..., object], messages: int
) -> tuple[float, float, float]:
    """Seconds per message: on the clock, of CPU here, of CPU in PostgreSQL."""
    settings = load({"DATABASE_URL": url, "DATABASE_MAX_CONNECTIONS": str(AT_ONCE + 1), "SQS_QUEUE_URL": QUEUE})
    opened = Database(settings, "cost")
    await opened.open(AT_ONCE, AT_ONCE + 1)
    try:
        await inbox.create(opened)
        async with opened.connection() as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS effects (id text)")
            await connection.execute("TRUNCATE effects, svc_inbox")
        unit = UnitOfWork(inbox.PostgresInbox(opened, QUEUE), patience=30)
        with in_use(opened):
            async with processors.opened(function, settings, threads=AT_ONCE, unit_of_work=unit) as process:
                return await _run(process, postgres, messages)
    finally:
        await opened.close("measured", 5)


async def _run(process: Any, postgres: int, messages: int) -> tuple[float, float, float]:
    numbers = iter(range(-200, messages))

    async def work(until: int) -> None:
        for number in numbers:
            await process(Message(f"m{number}", "x"))
            if number >= until:
                return

    async with trio.open_nursery() as nursery:  # statements are prepared, caches warm
        for _ in range(AT_ONCE):
            nursery.start_soon(work, -AT_ONCE - 1)
    began, here, there = time.perf_counter(), time.process_time(), _postgres_cpu(postgres)
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work, messages)
    took = time.perf_counter() - began
    return took / messages, (time.process_time() - here) / messages, (_postgres_cpu(postgres) - there) / messages


def _postgres_cpu(pid: int) -> float:
    return sum(_cpu(one) for one in family(pid))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.exactly_once.cost", description="What exactly once costs.")
    parser.add_argument("--messages", type=int, default=3000, help="of each (default 3000)")
    options = parser.parse_args()
    print(f"{options.messages} messages each, {AT_ONCE} at once, {os.cpu_count()} CPUs; ms per message")
    with Postgres("-c", "max_connections=50") as postgres:
        for function in (trio_own, trio_once, asyncio_own, asyncio_once, thread_own, thread_once):
            wall, here, there = trio.run(measure, postgres.url, postgres.pid, function, options.messages)
            cpu = f"{here * 1e3:.2f} of CPU here, {there * 1e3:.2f} in PostgreSQL"
            print(f"{function.__name__:14} {wall * 1e3:6.2f} on the clock, {cpu}", flush=True)


if __name__ == "__main__":
    main()
