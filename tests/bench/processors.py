"""The processors that the bench gives to `svc run`, chosen by `MESSAGE_PROCESSOR=tests.bench.processors:NAME`."""

import os
import random
import time

import pydantic
import trio

from svc import Batch, Message, processor


async def nothing(message: Message) -> None:
    """No work at all: what is left is the consumer's own cost."""


@processor(runtime="asyncio")
async def nothing_on_asyncio(message: Message) -> None: ...


def nothing_in_a_thread(message: Message) -> None: ...


@processor(batch=10, linger=0.1)
async def ten(batch: Batch) -> None: ...


@processor(batch=100, linger=0.1)
async def hundred(batch: Batch) -> None: ...


@processor(batch=10, linger=0.1, runtime="asyncio")
async def ten_on_asyncio(batch: Batch) -> None: ...


@processor(batch=100, linger=0.1, runtime="asyncio")
async def hundred_on_asyncio(batch: Batch) -> None: ...


@processor(batch=100, linger=0.1)
def hundred_in_a_thread(batch: Batch) -> None: ...


class Item(pydantic.BaseModel):
    sku: str
    quantity: int


class Order(pydantic.BaseModel):
    order: int
    customer: str
    items: list[Item]


async def a_dict(order: dict[str, object]) -> None: ...


async def a_model(order: Order) -> None: ...


@processor(batch=100, linger=0.1)
async def hundred_models(batch: Batch[Order]) -> None: ...


@processor(envelope="sns")
async def from_sns(order: Order) -> None: ...


@processor(envelope="eventbridge")
async def from_eventbridge(order: Order) -> None: ...


@processor(envelope="s3")
async def from_s3(message: Message) -> None: ...


async def sleep(message: Message) -> None:
    """Waits for BENCH_WORK_SECONDS."""
    await trio.sleep(_WORK)


async def varied(message: Message) -> None:
    """Waits for half to one and a half of BENCH_WORK_SECONDS: a steady flow, where equal times would make waves."""
    await trio.sleep(_WORK * random.uniform(0.5, 1.5))


async def stamp(message: Message) -> None:
    """Appends the moment at which it starts to BENCH_STAMPS."""
    os.write(_stamps(), f"{time.monotonic():.6f}\n".encode())


_WORK = float(os.environ.get("BENCH_WORK_SECONDS", "0"))
_file = -1


def _stamps() -> int:
    global _file
    if _file < 0:
        _file = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return _file
