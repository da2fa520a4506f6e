"""What exactly once costs: `python -m tests.exactly_once.cost`.

Each colour of processor writes one row, once in a transaction of its own (`svc.database`'s connection), once with `exactly_once`;
then the same in batches, which are one transaction each. CPU is that of this process (threads included) and of PostgreSQL's, per
message; ten calls are under way at once. Statements and round trips are counted by libpq, in a run of their own.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import trio

from svc import Batch, Message, Transaction, database, processor, processors
from svc.database import Database, in_use, inbox
from svc.devstack.postgres import Postgres
from svc.processors import UnitOfWork
from svc.settings import load
from tests.bench.processes import _cpu, family

INSERT = "INSERT INTO effects VALUES (%s)"
QUEUE = "us-east-1/000000000000/orders"
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


@processor(batch=100)
async def trio_batch_own(batch: Batch[Message]) -> None:
    async with database.connection() as connection:
        await connection.executemany(INSERT, [(message.id,) for message in batch.payloads])


@processor(batch=100, exactly_once=True)
async def trio_batch_once(batch: Batch[Message], transaction: Transaction) -> None:
    await transaction.executemany(INSERT, [(message.id,) for message in batch.payloads])


@processor(batch=100, runtime="asyncio")
async def asyncio_batch_own(batch: Batch[Message]) -> None:
    async with database.asyncio_connection() as connection, connection.cursor() as cursor:
        await cursor.executemany(INSERT, [(message.id,) for message in batch.payloads])


@processor(batch=100, exactly_once=True, runtime="asyncio")
async def asyncio_batch_once(batch: Batch[Message], connection: psycopg.AsyncConnection[Any]) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany(INSERT, [(message.id,) for message in batch.payloads])


@processor(batch=100)
def thread_batch_own(batch: Batch[Message]) -> None:
    with database.sync_connection() as connection, connection.cursor() as cursor:
        cursor.executemany(INSERT, [(message.id,) for message in batch.payloads])


@processor(batch=100, exactly_once=True)
def thread_batch_once(batch: Batch[Message], connection: psycopg.Connection[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [(message.id,) for message in batch.payloads])


SINGLE = (trio_own, trio_once, asyncio_own, asyncio_once, thread_own, thread_once)
IN_BATCHES = (
    trio_batch_own,
    trio_batch_once,
    asyncio_batch_own,
    asyncio_batch_once,
    thread_batch_own,
    thread_batch_once,
)


async def measure(
    url: str, postgres: int, function: Callable[..., object], messages: int, size: int
) -> tuple[float, float, float, float, float]:
    """Per message: seconds on the clock, of CPU here, of CPU in PostgreSQL; statements, round trips. In batches of `size`."""
    settings = load({"DATABASE_URL": url, "DATABASE_MAX_CONNECTIONS": str(AT_ONCE + 1)})
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
                call = _calls(process, size)
                costs = await _run(call, postgres, max(messages // size, AT_ONCE))
                statements, trips = await _counted(call, opened)
                return *(cost / size for cost in costs), statements / size, trips / size
    finally:
        await opened.close("measured", 5)


def _calls(process: Any, size: int) -> Callable[[int], Awaitable[None]]:
    if size == 1:
        return lambda number: process(Message(f"m{number}", "x"))
    return lambda number: process.call(Batch([process.read(Message(f"m{number}-{item}", "x")) for item in range(size)]))


async def _run(call: Callable[[int], Awaitable[None]], postgres: int, calls: int) -> tuple[float, float, float]:
    """Seconds per call."""
    numbers = iter(range(-20 * AT_ONCE, calls))

    async def work(until: int) -> None:
        for number in numbers:
            await call(number)
            if number >= until:
                return

    async with trio.open_nursery() as nursery:  # statements are prepared, caches warm
        for _ in range(AT_ONCE):
            nursery.start_soon(work, -AT_ONCE - 1)
    began, here, there = time.perf_counter(), time.process_time(), _postgres_cpu(postgres)
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work, calls)
    took = time.perf_counter() - began
    return took / calls, (time.process_time() - here) / calls, (_postgres_cpu(postgres) - there) / calls


async def _counted(call: Callable[[int], Awaitable[None]], opened: Database) -> tuple[float, float]:
    """Statements and round trips per call, the pool's look at the connection included."""
    with tempfile.TemporaryFile() as trace:
        raws = [raw for raw in opened._held if not raw.closed]
        for raw in raws:
            raw.pgconn.trace(trace.fileno())
        for number in range(1_000_000, 1_000_000 + AT_ONCE):
            await call(number)
        for raw in raws:
            raw.pgconn.untrace()
        trace.seek(0)
        sent = [line.split(b"\t")[3].strip() for line in trace if b"\tF\t" in line]
    statements = sum(sent.count(kind) for kind in (b"Query", b"Execute"))
    return statements / AT_ONCE, sum(sent.count(kind) for kind in (b"Query", b"Sync")) / AT_ONCE


def _postgres_cpu(pid: int) -> float:
    return sum(_cpu(one) for one in family(pid))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.exactly_once.cost", description="What exactly once costs.")
    parser.add_argument("--messages", type=int, default=3000, help="of each (default 3000)")
    options = parser.parse_args()
    print(f"{options.messages} messages each, {AT_ONCE} calls at once, {os.cpu_count()} CPUs; ms per message")
    with Postgres("-c", "max_connections=50") as postgres:
        for function, size in (
            *((function, 1) for function in SINGLE),
            *((function, size) for size in (10, 100) for function in IN_BATCHES),
        ):
            wall, here, there, statements, trips = trio.run(
                measure, postgres.url, postgres.pid, function, options.messages, size
            )
            cpu = f"{here * 1e3:.3f} of CPU here, {there * 1e3:.3f} in PostgreSQL"
            counts = f"{statements:.2f} statements, {trips:.2f} round trips"
            print(f"{function.__name__:18} {size:3} {wall * 1e3:7.3f} on the clock, {cpu}; {counts}", flush=True)


if __name__ == "__main__":
    main()
