"""Processors on asyncio: the loop in its thread, in real time; and the same processors under a drain, in virtual time."""

import asyncio
import contextvars
import gc
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from svc import Message, Reject, Retry, processor
from svc.consumer.queue import Received
from svc.defects import Defects
from svc.processors import UnusableProcessor, asyncio_loop, check, opened
from svc.processors.asyncio_thread import LoopEnded
from svc.telemetry.watchdog import watched
from svc.testing import SimulatedQueue, SimulatedService

ONE = Message("m-1", "body")


def on_asyncio(function, **options):  # type: ignore[no-untyped-def]
    return opened(check(processor(runtime="asyncio", **options)(function), "handle"), None, threads=1)


async def test_it_runs_on_one_loop_in_a_thread_of_its_own_with_the_task_s_context() -> None:
    seen = []
    colour = contextvars.ContextVar("colour", default="none")

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        bound = structlog.contextvars.get_contextvars()
        seen.append((asyncio.get_running_loop(), threading.current_thread(), colour.get(), bound, message.id))

    async with on_asyncio(handle) as process:
        colour.set("red")
        with structlog.contextvars.bound_contextvars(message_id="m-1"):
            await process(ONE)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(process, ONE)
    assert len(seen) == 21
    assert len({loop for loop, *_ in seen}) == 1
    assert {thread for _, thread, *_ in seen}.isdisjoint({threading.current_thread()})
    assert seen[0][2:] == ("red", {"message_id": "m-1"}, "m-1")


@pytest.mark.parametrize(
    "error", [Retry(after=3), Reject("no"), KeyError("x"), SystemExit(3), ExceptionGroup("g", [OSError()])]
)
async def test_what_it_raises_arrives_as_it_is(error: BaseException) -> None:
    async def handle(message: Message) -> None:
        raise error

    async with on_asyncio(handle) as process:
        with pytest.raises(type(error)) as raised:
            await process(ONE)
        assert raised.value is error


async def test_a_cancellation_of_its_own_is_a_failure_and_a_time_out_its_own_business() -> None:
    async def cancelled(message: Message) -> None:
        raise asyncio.CancelledError

    async def timed_out(message: Message) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)

    async with on_asyncio(cancelled) as process:
        with pytest.raises(RuntimeError, match="nobody had cancelled it"):
            await process(ONE)
    async with on_asyncio(timed_out) as process:
        await process(ONE)


async def test_a_cancellation_arrives_once_and_is_waited_for() -> None:
    seen = []
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def handle(message: Message) -> None:
        try:
            token.run_sync_soon(begun.set)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0.01)  # its clean-up is not cut short
            seen.append("cleaned up")
            raise

    async with on_asyncio(handle) as process, trio.open_nursery() as nursery:
        nursery.start_soon(process, ONE)
        await begun.wait()
        nursery.cancel_scope.cancel(reason="test")
    assert seen == ["cancelled", "cleaned up"]


async def test_what_ignores_its_cancellation_is_outlived() -> None:
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def handle(message: Message) -> None:
        token.run_sync_soon(begun.set)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)

    async with on_asyncio(handle) as process, trio.open_nursery() as nursery:
        ended = False

        async def run() -> None:
            nonlocal ended
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await process(ONE)
                ended = True
            assert not scope.cancelled_caught

        scopes: list[trio.CancelScope] = []
        nursery.start_soon(run)
        await begun.wait()
        scopes[0].cancel(reason="test")
    assert ended


async def test_tasks_left_behind_are_cancelled_and_told() -> None:
    left = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            left.append("cancelled")

    async def handle(message: Message) -> None:
        left.append(asyncio.ensure_future(forgotten()))
        await asyncio.sleep(0)

    with capture_logs() as lines:
        async with on_asyncio(handle) as process:
            await process(ONE)
            assert left[1:] == ["cancelled"]
    (line,) = lines
    assert "left tasks behind" in line["event"]
    assert line["count"] == 1
    assert "forgotten" in line["tasks"][0]


async def test_a_context_manager_lives_in_one_task_on_the_same_loop() -> None:
    seen = []

    @asynccontextmanager
    async def pool():  # type: ignore[no-untyped-def]
        entered = asyncio.current_task(), asyncio.get_running_loop()
        seen.append("open")
        async with asyncio.timeout(60):  # which has to be left by the task that entered it

            async def handle(message: Message) -> None:
                assert asyncio.get_running_loop() is entered[1]
                seen.append(message.id)

            yield handle
        assert asyncio.current_task() is entered[0]
        seen.append("closed")

    async with on_asyncio(pool) as process:
        await process(ONE)
        await process(ONE)
    assert seen == ["open", "m-1", "m-1", "closed"]


async def test_a_context_manager_that_fails_to_open() -> None:
    @asynccontextmanager
    async def pool():  # type: ignore[no-untyped-def]
        raise OSError("no database")
        yield

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no database"), flatten_subgroups=True):
        async with on_asyncio(pool):
            raise AssertionError("never reached")


async def test_a_loop_that_dies_fails_its_messages_and_ends_the_processor() -> None:
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def waits(message: Message) -> None:
        if message.id == "killer":
            asyncio.get_running_loop().stop()
        else:
            token.run_sync_soon(begun.set)
        await asyncio.sleep(60)

    failed = []
    with pytest.RaisesGroup(pytest.RaisesExc(LoopEnded, match=r"loop\.stop"), flatten_subgroups=True):
        async with on_asyncio(waits) as process, trio.open_nursery() as nursery:

            async def run(message: Message) -> None:
                with pytest.raises(LoopEnded):
                    await process(message)
                failed.append(message.id)

            nursery.start_soon(run, ONE)
            await begun.wait()
            nursery.start_soon(run, Message("killer", ""))
    assert sorted(failed) == ["killer", "m-1"]


async def test_a_blocked_loop_is_told_with_its_stack() -> None:
    over = threading.Event()

    async def handle(message: Message) -> None:
        over.wait(20)

    async with on_asyncio(handle) as process, trio.open_nursery() as nursery:
        loop = asyncio_loop(process)
        assert loop is not None
        with capture_logs() as lines:
            async with watched(Defects(), loop, limit=0.1, every=0.02):
                nursery.start_soon(process, ONE)
                with trio.fail_after(20):
                    while not lines:
                        await trio.sleep(0.01)
                    over.set()
                    while len(lines) < 2:
                        await trio.sleep(0.01)
    assert "asyncio loop of the processors is blocked" in lines[0]["event"]
    assert "over.wait(20)" in lines[0]["stack"]
    assert lines[1]["event"] == "the asyncio loop runs again"


@pytest.mark.parametrize(
    ("function", "options", "default", "words"),
    [
        ("def", {"runtime": "asyncio"}, "auto", "a plain function, which runs in threads"),
        ("async", {"runtime": "thread"}, "auto", "an async def, which cannot run in a thread"),
        ("async", {}, "thread", "an async def, which cannot run in a thread"),
    ],
)
async def test_a_runtime_that_cannot_be_is_found_at_the_start(function, options, default, words) -> None:  # type: ignore[no-untyped-def]
    def plain(message: Message) -> None: ...

    async def direct(message: Message) -> None: ...

    with pytest.raises(UnusableProcessor, match=words):
        async with opened(
            processor(**options)({"def": plain, "async": direct}[function]), None, threads=1, runtime=default
        ):
            pass
    with pytest.raises(ValueError, match="runtime='gevent'"):
        processor(runtime="gevent")  # type: ignore[arg-type]


async def test_message_runtime_says_it_for_undecorated_functions() -> None:
    seen = []

    async def handle(message: Message) -> None:
        seen.append(asyncio.get_running_loop())

    async with opened(handle, None, threads=1, runtime="asyncio") as process:
        await process(ONE)
    assert len(seen) == 1


async def test_a_trip_to_the_loop_costs_no_polling() -> None:
    """A hundred trips after one another: what a wait or a sleep in between would cost is seen."""

    async def handle(message: Message) -> None: ...

    async with on_asyncio(handle) as process:
        began = time.monotonic()
        for _ in range(100):
            await process(ONE)
        assert time.monotonic() - began < 5


# -- under a drain, in virtual time --

virtual = pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not run on Python 3.14")


@virtual
async def test_a_drain_lets_it_finish(autojump_clock: object) -> None:
    @processor(runtime="asyncio")
    async def handle(message: Message) -> None:
        await asyncio.sleep(5)

    queue = SimulatedQueue()
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="30s") as service:
        queue.put("hello")
        await service.at_work("hello", seconds=2)
        began = trio.current_time()
        service.maintenance("on")
        await service.drained()
        assert service.processed == ["hello"]
        assert trio.current_time() - began >= 3


@virtual
@pytest.mark.expects_errors
async def test_a_deadline_cancels_it_and_releases_its_message(autojump_clock: object) -> None:
    seen = []

    @processor(runtime="asyncio")
    async def handle(message: Message) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append(trio.current_time())
            raise

    queue = SimulatedQueue()
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        queue.put("hello")
        await service.at_work("hello", seconds=2)
        service.maintenance("on")
        report = await service.drained()
        assert report.error is not None
        assert "1 message" in report.error
        assert service.released == ["hello"]
        assert len(queue.visible()) == 1
        assert len(seen) == 1


@virtual
@pytest.mark.expects_errors
@pytest.mark.parametrize("fails_at", [0.2, 1000])
async def test_a_task_that_it_starts_ends_with_its_message_and_never_the_service(
    autojump_clock: object, fails_at: float
) -> None:
    left: list[asyncio.Task[None]] = []

    async def forgotten() -> None:
        await asyncio.sleep(fails_at)
        raise OSError("nobody waits for it")

    @processor(runtime="asyncio")
    async def handle(message: Message) -> None:
        left.append(asyncio.create_task(forgotten()))
        await asyncio.sleep(0.5)

    queue = SimulatedQueue()
    with capture_logs() as lines:
        async with SimulatedService(queue, handle) as service:
            for body in ("first", "second"):
                queue.put(body)
            await service.idle()
            assert sorted(service.processed) == ["first", "second"]
            assert [task.cancelled() for task in left] == [fails_at == 1000] * 2
            left.clear()  # and with the last reference, what nobody asked is told
            gc.collect()
    told = Counter(line["event"] for line in lines if "task" in line["event"])
    if fails_at == 1000:
        assert told == {"the processor left tasks behind: they are cancelled": 2}
    else:
        assert told == {"asyncio: a processor's task failed, and nobody waits for it": 2}


@virtual
@pytest.mark.expects_errors
async def test_a_message_is_worked_on_whoever_starts_it(autojump_clock: object) -> None:
    """A copy takes the place of one that is lost in the task of whoever finds that out, which need not know of the loop."""
    worked: list[int] = []

    @processor(runtime="asyncio")
    async def handle(message: Message) -> None:
        worked.append(message.receive_count)
        await asyncio.sleep(5)

    queue = SimulatedQueue()
    message_id = queue.put("twice")
    async with SimulatedService(queue, handle) as service:
        await trio.sleep(1)
        copy = Received(Message(message_id, "twice", receive_count=2), "its receipt")
        worker = service.core.worker
        worker.deliveries.land([copy], trio.current_time())
        first = worker.ledger.at_work_on(message_id)
        assert first is not None
        worker.ledger.lose(first, "the machine has slept")
        await trio.sleep(1)
        assert worked == [1, 2]
        service.crash()
