"""`@processor(batch=…)`: what can be said, what is found at the start, and a call on each runtime."""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from pydantic import BaseModel

from svc import Batch, Item, Message, Reject, processor, processors
from svc.processors import Batching, InvalidMessage, UnusableProcessor, check, opened, options_of
from svc.testing import SimulatedQueue, SimulatedService


class Order(BaseModel):
    id: int


def ready(function: Callable[..., object]):  # type: ignore[no-untyped-def]
    return opened(check(function, "handle"), None, threads=2)


async def batching(function: Callable[..., object]) -> Batching:
    async with ready(function) as process:
        assert isinstance(process, Batching)
        return process


# -- what can be said --


@pytest.mark.parametrize("size", [0, -1, 10_001, 1.5, True, "10"])
def test_sizes_out_of_range(size: Any) -> None:
    with pytest.raises(ValueError, match="a whole number of messages from 1 to 10000"):
        processor(batch=size)


@pytest.mark.parametrize("linger", [-1, -0.001, 300.1, float("nan"), float("inf"), "1"])
def test_lingers_out_of_range(linger: Any) -> None:
    with pytest.raises(ValueError, match="0 to 300 seconds"):
        processor(batch=10, linger=linger)


def test_a_linger_without_a_batch() -> None:
    with pytest.raises(ValueError, match="batch= has to be there"):
        processor(linger=1)


def test_what_svc_config_shows() -> None:
    @processor(batch=100, linger=2.5)
    def handle(batch: Batch) -> None: ...

    options = options_of(handle)
    assert options is not None
    assert options.described() == {"batch": "100", "linger": "2.5 s"}


async def test_a_function_of_one_message_takes_no_batches() -> None:
    async def handle(message: Message) -> None: ...

    async def typed(order: Order, message: Message) -> None: ...

    async def unsaid(batch) -> None: ...  # type: ignore[no-untyped-def]

    def nothing() -> None: ...

    for function in (handle, typed, unsaid, nothing):
        with pytest.raises(UnusableProcessor, match=r"batch=10, so its first parameter has to be annotated svc\.Batch"):
            await batching(processor(batch=10)(function))


async def test_a_batch_without_a_size() -> None:
    async def handle(batch: Batch[Order]) -> None: ...

    def bare(batch: "Batch") -> None: ...

    for function in (handle, processor()(handle), bare, processor(envelope="sns")(bare)):
        with pytest.raises(UnusableProcessor, match=r"wants a svc\.Batch: say how large, @processor\(batch=…\)"):
            async with ready(function):
                pass


async def test_a_batch_and_something_else() -> None:
    async def handle(batch: Batch[Order], message: Message) -> None: ...

    with pytest.raises(UnusableProcessor, match="it cannot have the parameter 'message'"):
        await batching(processor(batch=10)(handle))

    async def with_a_default(batch: Batch[Order], *, table: str = "orders") -> None: ...

    await batching(processor(batch=10)(with_a_default))


async def test_items_of_a_type_that_nobody_can_validate() -> None:
    class Odd:
        pass

    async def handle(batch: Batch[Odd]) -> None: ...

    with pytest.raises(UnusableProcessor, match="cannot be validated"):
        await batching(processor(batch=10)(handle))


# -- its items --


async def test_items_are_read_one_by_one() -> None:
    async def handle(batch: Batch[Order]) -> None: ...

    made = await batching(processor(batch=10, linger=0)(handle))
    assert (made.size, made.linger) == (10, 0.0)
    item = made.read(Message("m", '{"id": 7}'))
    assert isinstance(item, Item)
    assert (item.payload, item.message.id, item.lost) == (Order(id=7), "m", False)
    with pytest.raises(Reject, match="id: Field required"):
        made.read(Message("m", "{}"))
    with pytest.raises(InvalidMessage):
        (await batching(processor(batch=10, invalid="fail")(handle))).read(Message("m", "{}"))


async def test_items_without_a_type_are_messages() -> None:
    async def handle(batch: Batch) -> None: ...

    async def said(batch: Batch[Message]) -> None: ...

    for function in (handle, said):
        item = (await batching(processor(batch=10)(function))).read(Message("m", "body"))
        assert item is not None
        assert item.payload == item.message == Message("m", "body")


async def test_envelopes_are_taken_off_each() -> None:
    async def handle(batch: Batch[Order]) -> None: ...

    made = await batching(processor(batch=10, envelope="s3")(handle))
    assert made.read(Message("m", '{"Event": "s3:TestEvent", "Service": "Amazon S3", "Bucket": "b"}')) is None
    with pytest.raises(Reject):
        made.read(Message("m", "{}"))


# -- the call --


def batch(*bodies: str) -> Batch[Message]:
    messages = [Message(f"m-{number}", body) for number, body in enumerate(bodies)]
    return Batch([Item(message, message) for message in messages])


async def test_on_each_runtime() -> None:
    seen: list[tuple[str, int, bool]] = []
    main = threading.current_thread()

    async def on_trio(batch: Batch) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(("trio", len(batch), threading.current_thread() is main))

    async def on_asyncio(batch: Batch) -> None:
        await asyncio.sleep(0)
        seen.append(("asyncio", len(batch), threading.current_thread() is main))

    def in_a_thread(batch: Batch) -> None:
        seen.append(("thread", len(batch), threading.current_thread() is main))

    functions = (
        processor(batch=5)(on_trio),
        processor(batch=5, runtime="asyncio")(on_asyncio),
        processor(batch=5)(in_a_thread),
    )
    for function in functions:
        async with ready(function) as process:
            assert isinstance(process, Batching)
            await process.call(batch("a", "b"))
    assert seen == [("trio", 2, True), ("asyncio", 2, False), ("thread", 2, False)]


async def test_a_context_manager_function_may_yield_it() -> None:
    seen: list[int] = []

    @processor(batch=5)
    @asynccontextmanager
    async def loader():  # type: ignore[no-untyped-def]
        async def handle(batch: Batch[Order]) -> None:
            seen.append(len(batch))

        yield handle

    async with ready(loader) as process:
        assert isinstance(process, Batching)
        await process.call(batch("a", "b", "c"))
    assert seen == [3]


async def test_what_it_returns() -> None:
    async def handle(batch: Batch) -> object:
        return []

    async with ready(processor(batch=5)(handle)) as process:
        assert isinstance(process, Batching)
        with pytest.raises(TypeError, match="say what becomes of an item at the item"):
            await process.call(batch("a"))


@pytest.mark.expects_errors
async def test_a_thread_that_goes_on_is_named_for_all_its_messages() -> None:
    began, goes_on = threading.Event(), threading.Event()

    def handle(batch: Batch) -> None:
        began.set()
        goes_on.wait(30)

    async with ready(processor(batch=5)(handle)) as process:
        assert isinstance(process, Batching)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.call, batch("a", "b"))
            await trio.to_thread.run_sync(began.wait)
            nursery.cancel_scope.cancel()
        threads = processors.threads_of(process)
        finished: list[str] = []
        threads.on_finished = finished.append
        assert list(threads.left_behind) == ["m-0", "m-1"]
        goes_on.set()
        with trio.fail_after(30):
            await threads.changed.wait_until(lambda: not threads.left)
        assert finished == ["m-0", "m-1"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not run on Python 3.14")
@pytest.mark.expects_errors
async def test_a_batch_on_asyncio_under_a_drain(autojump_clock) -> None:
    cancelled: list[float] = []

    @processor(batch=10, linger=0, runtime="asyncio")
    async def handle(batch: Batch[Order]) -> None:
        batch[0].done()
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(trio.current_time())
            raise

    queue = SimulatedQueue()
    queue.put('{"id": 1}')
    queue.put('{"id": 2}')
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work('{"id": 1}', seconds=1)
        service.maintenance("on")
        await service.drained()
        assert cancelled == [10]
        assert (service.processed, service.released) == (['{"id": 1}'], ['{"id": 2}'])
