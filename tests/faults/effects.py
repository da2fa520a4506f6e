"""Processors whose effect is a row in PostgreSQL, and who write down what they do (tests/recording.py)."""

import time

import trio

from svc import Message, Transaction, database, processor
from tests import recording

TABLES = """
CREATE TABLE effects (body text NOT NULL);
CREATE TABLE shared (n int NOT NULL);
INSERT INTO shared VALUES (0);
"""

EFFECT = "INSERT INTO effects (body) VALUES (%s)"

LOOK = "SELECT n FROM shared FOR SHARE"
"""Waits for who is changing it, and is a serialization failure (where the isolation is so strict) when somebody has."""

SECONDS = 0.2
"""Of work, in the middle of the transaction."""


@processor(exactly_once=True)
async def once(message: Message, transaction: Transaction) -> None:
    recording.note("began", message)
    try:
        await transaction.execute(EFFECT, (message.body,))
        await trio.sleep(SECONDS)
        await transaction.execute(LOOK)
    except BaseException:
        recording.note("broke off", message)
        raise
    recording.note("succeeded", message)


def ordinary(message: Message) -> None:
    """At least once: a plain function that asks for a connection, and commits it before it returns."""
    recording.note("began", message)
    try:
        with database.sync_connection() as connection:
            connection.execute(EFFECT, (message.body,))
            time.sleep(SECONDS)
    except BaseException:
        recording.note("broke off", message)
        raise
    recording.note("succeeded", message)
