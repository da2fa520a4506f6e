"""A user's processor: it holds a connection, asks for later delivery, and turns away what makes no sense."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from svc import Message, Reject, Retry


class Warehouse:
    """Stands for a client of something."""

    def __init__(self) -> None:
        self.is_open = False
        self.shipped: list[int] = []

    async def open(self) -> None:
        await trio.sleep(0.1)
        self.is_open = True

    async def close(self) -> None:
        await trio.sleep(0.1)
        self.is_open = False

    async def ship(self, order: int, seconds: float) -> None:
        assert self.is_open
        await trio.sleep(seconds)
        self.shipped.append(order)


warehouse = Warehouse()


@asynccontextmanager
async def processor() -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    await warehouse.open()

    async def handle(message: Message) -> None:
        try:
            order = message.json()
        except ValueError:
            raise Reject("not JSON") from None
        if "order" not in order:
            raise Reject("an order without a number")
        if order.get("stock") == 0 and message.receive_count == 1:
            raise Retry("out of stock", after=60)
        await warehouse.ship(order["order"], order.get("seconds", 0.5))

    try:
        yield handle
    finally:
        await warehouse.close()
