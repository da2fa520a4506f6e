"""Threads that go on although their message was given back. In real time: a thread does not know of any other."""

import threading
from collections.abc import Callable

import pytest
import trio

from svc import Batch, processor
from svc.processors import Batching, Item, Message, Process, ThreadRun, Threads, opened, threads_of

MESSAGE = Message("1", "body")


class Held:
    """A processor whose calls wait in their threads until they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.began: list[str] = []
        self.outcome: Callable[[], object] = lambda: None

    def __call__(self, message: Message) -> object:
        self.began.append(message.id)
        self.let_go.wait(20)
        return self.outcome()


@pytest.fixture
def held():
    held = Held()
    yield held
    held.let_go.set()


async def until(satisfied: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not satisfied():
            await trio.sleep(0.005)


async def leave_behind(process: Process, held: Held, message: Message) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process, message)
        await until(lambda: message.id in held.began)
        nursery.cancel_scope.cancel()


async def test_a_thread_that_was_left_behind_takes_no_place_and_is_known_until_it_ends(held: Held) -> None:
    finished: list[str] = []
    async with opened(held, None, threads=1) as process:
        threads = threads_of(process)
        threads.on_finished = finished.append
        await leave_behind(process, held, MESSAGE)
        assert threads.left_behind.keys() == {"1"}
        assert "in thread" in threads.left_behind["1"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process, Message("2", "body"))
            await until(lambda: "2" in held.began)  # there is one place, and it has it
            run = threads.at_work_on("1")
            assert run is not None
            assert run.message_ids == ("1",)
            held.let_go.set()
        await threads.changed.wait_until(lambda: not threads.left)
        assert threads.at_work_on("1") is None
        assert finished == ["1"]  # not of "2", whose task was there


@pytest.mark.expects_errors
async def test_no_more_than_twice_as_many_threads_as_there_are_places(held: Held) -> None:
    async with opened(held, None, threads=2) as process:
        threads = threads_of(process)
        for number in range(4):
            await leave_behind(process, held, Message(str(number), ""))
        assert threads.left == 4
        with trio.move_on_after(0.05) as waiting:
            await process(Message("4", ""))
        assert waiting.cancelled_caught
        assert "4" not in held.began
        held.let_go.set()
        await threads.changed.wait_until(lambda: not threads.left)
        await process(Message("5", ""))  # all places are there again
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(process, Message("6", ""))
    assert "4" not in held.began


@pytest.mark.parametrize("outcome", [ValueError, "return", "coroutine"])
async def test_only_work_that_was_done_is_finished(held: Held, outcome: object) -> None:
    async def forgotten() -> None:
        raise AssertionError("nobody awaits it")

    def end() -> object:
        if outcome is ValueError:
            raise ValueError
        if outcome == "coroutine":
            coroutine = forgotten()
            coroutine.close()
            return coroutine
        return ValueError("returned")

    held.outcome = end
    finished: list[str] = []
    async with opened(held, None, threads=1) as process:
        threads = threads_of(process)
        threads.on_finished = finished.append
        await leave_behind(process, held, MESSAGE)
        held.let_go.set()
        await threads.changed.wait_until(lambda: not threads.left)
    assert finished == []


async def test_each_cancelled_call_is_left_behind_or_never_begins() -> None:
    """Trio hands a call to its thread, which gets to run later: on a loaded machine that was after the cancellation in a third of
    the cases, and nobody knew of it."""
    began: list[str] = []
    given_back: list[str] = []

    def note(message: Message) -> None:
        began.append(message.id)

    async with opened(note, None, threads=100) as process:
        threads = threads_of(process)

        async def cancelled(message: Message, scope: trio.CancelScope) -> None:
            with scope:
                await process(message)
            if scope.cancelled_caught and message.id not in threads.left_behind and message.id not in began:
                given_back.append(message.id)

        for number in range(100):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(cancelled, Message(str(number), ""), scope)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        await threads.changed.wait_until(lambda: not threads.left)
        await process(Message("last", ""))
    assert began[-1] == "last"
    assert not set(given_back) & set(began)


def test_a_run_that_was_given_back_before_its_thread_got_to_run_does_not_begin() -> None:
    async def main() -> None:
        threads = Threads(1)
        run, other = ThreadRun(threads, "1"), ThreadRun(threads, "2")
        await run.acquire_on_behalf_of(object())
        assert threads.at_work_on("1") is run
        run.give_back()
        assert threads.at_work_on("1") is None
        assert threads.left == 0
        await other.acquire_on_behalf_of(object())  # the place is free
        assert not run.begin("too late")
        run.release_on_behalf_of(object())
        assert threads.left == 0
        other.release_on_behalf_of(object())

    trio.run(main)


async def test_what_has_ended_in_the_moment_of_its_cancellation_is_known_to_be_finished() -> None:
    """Its task does not know it yet, and gives the message back: it must not be processed again."""
    finished: list[str] = []
    threads = Threads(1)
    threads.on_finished = finished.append
    run = ThreadRun(threads, "1")
    await threads.acquire(run)
    assert run.begin("a thread")
    run.finished = ["1"]
    threads.end(run)
    assert finished == []  # its task tells
    assert threads.at_work_on("1") is run  # until then no copy of the message is begun
    run.give_back()
    assert (finished, threads.left, threads.at_work_on("1")) == (["1"], 0, None)


async def test_a_thread_has_its_message_until_its_task_has_heard_of_the_end() -> None:
    threads = Threads(1)
    run = ThreadRun(threads, "1", "2")
    await threads.acquire(run)
    assert run.begin("a thread")
    threads.end(run)
    assert threads.at_work_on("1") is threads.at_work_on("2") is run
    waiting = threads.changed
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.wait_until, lambda: threads.at_work_on("1") is None)
            await trio.testing.wait_all_tasks_blocked()
            run.task_ends()
    assert threads.at_work_on("2") is None


async def test_a_place_that_was_given_up_is_counted_until_its_thread_ends_and_not_longer() -> None:
    threads = Threads(1)
    for number in range(3):  # one after the other: none of them keeps its place
        run = ThreadRun(threads, str(number))
        with trio.fail_after(1):
            await threads.acquire(run)
        assert run.begin("a thread")
        run.give_back()
        assert not run.has_place
        threads.end(run)


async def test_of_a_batch_that_was_left_behind_what_was_marked_as_done_is_finished_though_it_raises(held: Held) -> None:
    @processor(batch=2)
    def handle(batch: Batch[Message]) -> None:
        batch[0].done()
        held(batch[0].message)
        raise ValueError

    finished: list[str] = []
    async with opened(handle, None, threads=1) as process:
        assert isinstance(process, Batching)
        threads = threads_of(process)
        threads.on_finished = finished.append
        items = [Item(message, message) for message in (MESSAGE, Message("2", "body"))]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.call, Batch(items))
            await until(lambda: held.began)
            nursery.cancel_scope.cancel()
        assert threads.left == 1
        held.let_go.set()
        await until(lambda: threads.left == 0)
    assert finished == ["1"]
