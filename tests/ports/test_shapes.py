"""The shapes of the ports in virtual time, with a list in place of the database: the same drains, to the second."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from pydantic import BaseModel

from svc import Batch, Message, processor
from svc.testing import ScriptedQueue

EFFECTS: list[int] = []


class Order(BaseModel):
    id: int
    seconds: float = 2.0


async def asynchronously(order: Order) -> None:
    await asyncio.sleep(order.seconds)
    EFFECTS.append(order.id)


@processor(runtime="asyncio")
@asynccontextmanager
async def worker() -> AsyncIterator[Callable[[Order], Awaitable[None]]]:
    yield asynchronously


@processor(runtime="asyncio", envelope="sns")
async def fanout(order: Order, message: Message) -> None:
    await asynchronously(order)


@processor(batch=500, linger=0.5)
async def bulk(batch: Batch[Order]) -> None:
    await trio.sleep(max(order.seconds for order in batch.payloads))
    EFFECTS.extend(order.id for order in batch.payloads)


@processor(runtime="asyncio", batch=500, linger=0.5)
async def bulk_on_asyncio(batch: Batch[Order]) -> None:
    await asyncio.sleep(max(order.seconds for order in batch.payloads))
    EFFECTS.extend(order.id for order in batch.payloads)


SHAPES = [bulk] if sys.version_info >= (3, 14) else [worker, fanout, bulk, bulk_on_asyncio]
"""asyncio has virtual time where trio-asyncio is."""

every_shape = pytest.mark.parametrize("handle", SHAPES, ids=lambda handle: handle.__name__)


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    EFFECTS.clear()


def put(queue: ScriptedQueue, handle: object, number: int, **more: float) -> str:
    return (queue.put_sns if handle is fanout else queue.put)({"id": number, **more})


@every_shape
async def test_a_drain_finishes_what_has_begun(handle: Any, svc_queue, svc_service, autojump_clock) -> None:
    sent = [put(svc_queue, handle, number) for number in range(25)]
    service = await svc_service(handle, MAX_CONCURRENCY=500)
    await service.at_work(sent[0], seconds=0.5)
    began = trio.current_time()
    service.maintenance("on")
    report = await service.drained()
    assert report.error is None
    assert report.ended is not None
    assert report.ended - began < 2 + 20  # what is at work, and the poll that lands
    assert not svc_queue.in_flight()
    assert len(EFFECTS) + len(svc_queue.visible()) == 25
    service.maintenance("off")
    await service.idle()
    assert sorted(EFFECTS) == list(range(25))


@pytest.mark.expects_errors
@every_shape
async def test_at_the_deadline_what_is_unfinished_goes_back(
    handle: Any, svc_queue, svc_service, autojump_clock
) -> None:
    sent = put(svc_queue, handle, 7, seconds=600)
    service = await svc_service(handle, MAX_CONCURRENCY=500, DRAIN_TIMEOUT="5s")
    await service.at_work(sent)
    began = trio.current_time()
    report = await service.stop()
    assert trio.current_time() - began < 6
    assert sent in str(report.error)
    assert svc_queue.visible() == [sent]
    assert EFFECTS == []


@every_shape
async def test_what_a_crash_leaves_is_done_by_the_next(handle: Any, svc_queue, svc_service, autojump_clock) -> None:
    sent = put(svc_queue, handle, 7)
    first = await svc_service(handle, MAX_CONCURRENCY=500)
    await first.at_work(sent, seconds=1)
    first.crash()
    second = await svc_service(handle, MAX_CONCURRENCY=500)
    assert await second.outcome(sent) == "processed"
    assert EFFECTS == [7]


@every_shape
async def test_a_lost_lease_cancels_the_work(handle: Any, svc_queue, svc_service, autojump_clock) -> None:
    sent = put(svc_queue, handle, 7, seconds=45)
    service = await svc_service(handle, MAX_CONCURRENCY=500)
    await service.at_work(sent)
    svc_queue.let_lease_run_out(sent)
    assert await service.outcome(sent) == "lost"
    assert EFFECTS == []
    assert await service.outcome(sent, nth=2) == "processed"
    assert EFFECTS == [7]
