"""The worker of a FastAPI-style application: asyncio, SQLAlchemy's async engine, a Pydantic model."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from svc import Message, processor


class Order(BaseModel):
    id: int
    seconds: float = 0.0


@processor(runtime="asyncio")
@asynccontextmanager
async def handle() -> AsyncIterator[Callable[[Order, Message], Awaitable[None]]]:
    engine = create_async_engine(os.environ["EFFECTS"].replace("postgresql://", "postgresql+asyncpg://"))

    async def work(order: Order, message: Message) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(
                text("INSERT INTO effects VALUES (:id, :message)"), {"id": order.id, "message": message.id}
            )
            await asyncio.sleep(order.seconds)

    try:
        yield work
    finally:
        await engine.dispose()
