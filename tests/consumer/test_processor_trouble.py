"""What a processor can do wrong, and that no other message, no drain and no service suffers from it."""

import asyncio
import contextlib
import threading

import pytest
import trio
import trio.lowlevel
from structlog.testing import capture_logs

from svc import Message, Reject, Retry
from svc.maintenance.handler import DrainOutcome
from svc.processors import opened
from svc.testing import ScriptedQueue, SimulatedQueue
from svc.testing.fleet import SimulatedFleet
from svc.testing.history import Refused, VisibilityChanged
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text to be had")


class HalfARetry(Retry):
    def __init__(self) -> None:
        pass  # it has no `after`


class HalfAReject(Reject):
    def __init__(self) -> None:
        pass


class OddReject(Reject):
    def __init__(self) -> None:
        self.reason = 42  # type: ignore[assignment]


def stored_cancellation() -> BaseException:
    """A `trio.Cancelled` that somebody has caught and kept."""
    kept: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    return kept[0]


RAISED = {
    "Exception": ValueError("no good"),
    "BaseException": BaseException("base"),
    "group": ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    "group of groups": BaseExceptionGroup("g", [BaseExceptionGroup("h", [SystemExit(3)]), ValueError("one")]),
    "SystemExit": SystemExit(7),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "StopIteration": StopIteration("x"),
    "StopAsyncIteration": StopAsyncIteration(),
    "asyncio's cancellation": asyncio.CancelledError(),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError(),
    "a stored cancellation": stored_cancellation(),
    "a stored cancellation in a group": BaseExceptionGroup("g", [stored_cancellation(), ValueError("one")]),
    "no text": Unshowable(),
    "Retry without its time": HalfARetry(),
    "Reject without its reason": HalfAReject(),
}


@pytest.mark.parametrize("what", RAISED)
async def test_whatever_is_raised_fails_its_message_and_no_other(autojump_clock, what: str) -> None:
    queue = SimulatedQueue()
    for body in ("good 1", "bad", "good 2"):
        queue.put(body)

    async def handle(message: Message) -> None:
        await trio.sleep(1)
        if message.body == "bad" and message.receive_count == 1:
            raise RAISED[what]

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert sorted(service.processed) == ["bad", "good 1", "good 2"]
        assert service.failed == ["bad"]
        assert len(service.core.worker.statistics().recent_errors) == 1


async def test_a_reason_that_is_no_text_is_made_one(autojump_clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=3)
    queue.put("bad")

    async def handle(message: Message) -> None:
        raise OddReject

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert service.rejected == ["bad"]


async def leave_a_scope_open(tasks: list[str]) -> None:
    trio.CancelScope().__enter__()


async def leave_a_cancelled_scope_open(tasks: list[str]) -> None:
    scope = trio.CancelScope()
    scope.__enter__()
    scope.cancel()
    await trio.lowlevel.checkpoint()


async def leave_a_shield_open(tasks: list[str]) -> None:
    trio.CancelScope(shield=True).__enter__()
    await trio.lowlevel.checkpoint()


async def leave_a_nursery_open(tasks: list[str]) -> None:
    async def leaked() -> None:
        try:
            await trio.sleep_forever()
        finally:
            tasks.append("cancelled")

    nursery = await trio.open_nursery().__aenter__()
    nursery.start_soon(leaked)
    await trio.lowlevel.checkpoint()


async def leave_a_nursery_open_and_raise(tasks: list[str]) -> None:
    await leave_a_nursery_open(tasks)
    raise ValueError("and that")


async def leave_a_failing_nursery_open(tasks: list[str]) -> None:
    async def leaked() -> None:
        await trio.lowlevel.checkpoint()
        tasks.append("failed")
        raise ValueError("in a task that nobody waits for")

    nursery = await trio.open_nursery().__aenter__()
    nursery.start_soon(leaked)
    await trio.sleep(1)


async def leave_an_exit_stack_open(tasks: list[str]) -> None:
    stack = contextlib.AsyncExitStack()
    await stack.enter_async_context(trio.open_nursery())
    tasks.append("opened")
    stack.pop_all()


LEFT = (
    leave_a_scope_open,
    leave_a_cancelled_scope_open,
    leave_a_shield_open,
    leave_a_nursery_open,
    leave_a_nursery_open_and_raise,
    leave_a_failing_nursery_open,
    leave_an_exit_stack_open,
)


@pytest.mark.parametrize("leave", LEFT)
@pytest.mark.parametrize("fifo", [False, True])
async def test_what_is_left_open_fails_its_message_and_no_other(autojump_clock, leave, fifo: bool) -> None:
    queue = SimulatedQueue(fifo=fifo, content_deduplication=fifo)
    for body in ("good 1", "bad", "good 2"):
        queue.put(body, group_id="g" if fifo else None)
    tasks: list[str] = []

    async def handle(message: Message) -> None:
        await trio.sleep(1)
        if message.body == "bad" and message.receive_count == 1:
            await leave(tasks)

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert sorted(service.processed) == ["bad", "good 1", "good 2"]
        assert service.failed == ["bad"]
        service.maintenance("on")
        assert (await service.drained()).outcome is DrainOutcome.DRAINED
    if "nursery" in leave.__name__:
        assert tasks


async def test_a_cancellation_of_its_own_is_no_concern_of_ours(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("timeout inside")

    async def handle(message: Message) -> None:
        with trio.move_on_after(1):
            await trio.sleep_forever()

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert service.processed == ["timeout inside"]


RETURNED = {
    "nothing": (None, "processed", 0),
    "True": (True, "processed", 1),
    "False": (False, "processed", 1),
    "a text": ("done", "processed", 1),
    "Retry": (Retry(after=5), "released", 0),
    "Reject": (Reject("no"), "rejected", 0),
    "an error": (ValueError("no good"), "failed", 0),
    "a generator": ((number for number in ()), "failed", 0),
    "a context manager": (contextlib.AsyncExitStack(), "failed", 0),
}


@pytest.mark.parametrize("what", RETURNED)
async def test_what_is_returned(autojump_clock, what: str) -> None:
    returned, outcome, warnings = RETURNED[what]
    queue = SimulatedQueue()
    for number in range(3):
        queue.put(str(number))

    async def handle(message: Message) -> object:
        await trio.sleep(1)
        return returned if message.receive_count == 1 else None

    with capture_logs() as lines:
        async with SimulatedService(queue, handle, REJECT_WITHOUT_DLQ="delete") as service:
            await service.wait_for(lambda: len(service.endings) >= 3)
            assert {ending.outcome for ending in service.endings[:3]} == {outcome}
    assert sum("returned something" in line["event"] for line in lines) == warnings


async def test_a_forgotten_await_is_awaited_and_not_taken_for_a_success() -> None:
    done = []

    async def work() -> None:
        done.append("work")

    async def handle(message: Message) -> object:
        return work()

    async with opened(handle, None, threads=1) as process:
        await process(Message("1", "body"))
    assert done == ["work"]


def test_a_message_cannot_be_changed() -> None:
    message = Message("1", "body")
    for name in ("id", "body", "attributes", "receive_count", "sent_at", "group_id"):
        with pytest.raises(AttributeError):
            setattr(message, name, "changed")
    with pytest.raises((AttributeError, TypeError)):
        message.invented = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        message.attributes["new"] = "x"  # type: ignore[index]


async def test_a_message_of_the_queue_cannot_be_changed_either(autojump_clock) -> None:
    queue = SimulatedQueue()
    await queue.send("body", attributes={"a": "b"})
    (delivery,) = await queue.receive(limit=1, wait=0, visibility=30)
    with pytest.raises(TypeError):
        delivery.message.attributes["a"] = "x"  # type: ignore[index]
    with pytest.raises(AttributeError):
        delivery.message.body = "x"  # type: ignore[misc]


async def test_a_thread_that_cannot_be_stopped_is_named_in_the_report() -> None:
    """In real time: a thread does not know of any other."""
    release, began = threading.Event(), threading.Event()
    queue = SimulatedQueue()

    def stuck(message: Message) -> None:
        if message.body == "stuck":
            began.set()
            release.wait(30)

    try:
        async with SimulatedFleet(queue) as start:
            stuck_id = queue.put("stuck")
            queue.put("free")
            service = await start(stuck, DRAIN_TIMEOUT="1s", SQS_WAIT_TIME_SECONDS=0)
            with trio.fail_after(20):
                while not (began.is_set() and service.processed == ["free"]):
                    await trio.sleep(0.01)
            service.maintenance("on")
            with trio.fail_after(20):
                report = await service.drained()
            figures = report.handlers["sqs"]
            assert report.outcome is DrainOutcome.EXPIRED
            assert report.ended - report.began < 2.5
            assert figures["stubborn"] == figures["timed_out"] == (stuck_id,)
            assert "stuck in thread " in figures["threads"][stuck_id]
            assert queue.visible() == [stuck_id]
    finally:
        release.set()


async def test_what_waits_behind_a_processor_that_blocks_the_loop_is_not_begun_after_its_lease(autojump_clock):
    queue = SimulatedQueue()
    for body in "abc":
        queue.put(body)
    begun: list[tuple[str, int]] = []

    async def work(message: Message) -> None:
        begun.append((message.body, message.receive_count))
        if len(begun) == 1:
            autojump_clock.jump(60)

    async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS="60") as service:
        await service.idle()
    assert len(begun) == 3
    assert {receives for _, receives in begun[1:]} == {2}


async def test_what_blocked_the_loop_beyond_its_lease_is_not_given_back_by_its_receipt(autojump_clock):
    """Another consumer may have the message by then, and some queues let old receipts act."""
    queue = SimulatedQueue()
    queue.put("a")

    async def work(message: Message) -> None:
        if message.receive_count == 1:
            autojump_clock.jump(60)
            raise Retry(after=1)

    async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS="60") as service:
        await service.idle()
    assert (service.lost, service.processed) == (["a"], ["a"])
    assert not [event for event in queue.history if isinstance(event, (VisibilityChanged, Refused))]


async def test_a_message_that_was_lost_and_cancelled_is_worked_on_when_it_comes_back(autojump_clock):
    """To be cancelled is not to be finished: remembered as finished, it would be deleted unprocessed."""
    queue = ScriptedQueue()
    queue.put("a")
    finished: list[int] = []

    async def work(message: Message) -> None:
        await trio.sleep(60 if message.receive_count == 1 else 0)
        finished.append(message.receive_count)

    async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS="30") as service:
        await service.at_work("a", seconds=1)
        queue.let_lease_run_out("a")
        await service.idle()
    assert (service.lost, service.processed, finished) == (["a"], ["a"], [2])
