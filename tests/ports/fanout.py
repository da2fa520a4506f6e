"""A subscriber of an SNS topic: asyncio, asyncpg's pool, a Pydantic model within the notification."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
from pydantic import BaseModel

from svc import Message, processor


class Order(BaseModel):
    id: int
    seconds: float = 0.0


@processor(runtime="asyncio", envelope="sns")
@asynccontextmanager
async def handle() -> AsyncIterator[Callable[[Order, Message], Awaitable[None]]]:
    async with asyncpg.create_pool(os.environ["EFFECTS"], min_size=1, max_size=10) as pool:

        async def work(order: Order, message: Message) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("INSERT INTO effects VALUES ($1, $2)", order.id, message.id)
                await asyncio.sleep(order.seconds)

        yield work
