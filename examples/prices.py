# prices.py
import asyncio
from contextlib import asynccontextmanager

from svc import Message, processor


class Pool:
    """Stands for a pool of connections of an asyncio library: asyncpg, SQLAlchemy's async engine, redis, …"""

    def __init__(self) -> None:
        self.prices: dict[str, int] = {}

    async def store(self, article: str, cents: int) -> None:
        await asyncio.sleep(0.01)
        self.prices[article] = cents


@processor(runtime="asyncio")
@asynccontextmanager
async def prices():
    """Entered, called and left on one asyncio loop that the service keeps."""
    pool = Pool()

    async def handle(price: dict, message: Message) -> None:
        await pool.store(price["article"], price["cents"])

    yield handle
