"""One processor in three colours, and one of batches: two statements, a pause between them, now and then an error."""

import asyncio
import os
import random
import time

import psycopg
import trio

from svc import Batch, Message, Transaction, processor

PAUSE = float(os.environ.get("PROOF_PAUSE", "0.01"))
"""Seconds at most."""

FAILS = float(os.environ.get("PROOF_FAILS", "0.02"))
"""Share of the runs that raise, after their first statement."""

FIRST = "INSERT INTO effects (number, pid) VALUES (%s, %s)"
SECOND = "INSERT INTO more_effects (number, pid) VALUES (%s, %s)"


def _pause() -> float:
    return random.uniform(0, PAUSE)


def _perhaps_fail() -> None:
    if random.random() < FAILS:
        raise ValueError("now and then it fails")


def key(message: Message) -> int:
    return int(message.body)


@processor(exactly_once=key)
async def on_trio(message: Message, transaction: Transaction) -> None:
    row = (int(message.body), os.getpid())
    await transaction.execute(FIRST, row)
    await trio.sleep(_pause())
    _perhaps_fail()
    await transaction.execute(SECOND, row)


@processor(exactly_once=key, runtime="asyncio")
async def on_asyncio(message: Message, connection: psycopg.AsyncConnection) -> None:
    row = (int(message.body), os.getpid())
    await connection.execute(FIRST, row)
    await asyncio.sleep(_pause())
    _perhaps_fail()
    await connection.execute(SECOND, row)


@processor(exactly_once=key)
def in_a_thread(message: Message, connection: psycopg.Connection) -> None:
    row = (int(message.body), os.getpid())
    connection.execute(FIRST, row)
    time.sleep(_pause())
    _perhaps_fail()
    connection.execute(SECOND, row)


@processor(batch=10, linger=0.1, exactly_once=key)
async def in_batches(batch: Batch[Message], transaction: Transaction) -> None:
    rows = []
    for item in batch:
        if random.random() < FAILS:
            item.fail("now and then it fails")
        else:
            rows.append((int(item.payload.body), os.getpid()))
    await transaction.executemany(FIRST, rows)
    await trio.sleep(_pause())
    _perhaps_fail()
    await transaction.executemany(SECOND, rows)
