"""Processors of each colour that write a row for each message."""

import asyncio
import time

import trio

from svc import Message, database, processor

INSERT = "INSERT INTO effects VALUES (%s)"


async def on_trio(message: Message) -> None:
    async with database.connection() as connection:
        await connection.execute(INSERT, (message.id,))
        await trio.sleep(0.02)


def plain(message: Message) -> None:
    with database.sync_connection() as connection:
        connection.execute(INSERT, (message.id,))
        time.sleep(0.02)


@processor(runtime="asyncio")
async def on_asyncio(message: Message) -> None:
    async with database.asyncio_connection() as connection:
        await connection.execute(INSERT, (message.id,))
        await asyncio.sleep(0.02)


COLOURS = ("on_trio", "plain", "on_asyncio")
