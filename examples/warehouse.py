# warehouse.py
from contextlib import asynccontextmanager

import httpx

from svc import Message


def handler(client: httpx.AsyncClient):
    async def handle(message: Message) -> None:
        answer = await client.post("/orders", json=message.json())
        answer.raise_for_status()  # a failure: tried again later

    return handle


@asynccontextmanager
async def processor():
    """Entered before the first message, left after the last."""
    async with httpx.AsyncClient(base_url="http://warehouse.internal") as client:
        yield handler(client)
