"""The watchdog, in real time: it names what blocks the loop, once, and says when it is over."""

import threading
import time

import trio
from structlog.testing import capture_logs

from svc.defects import Defects
from svc.telemetry.loop_state import loop_state
from svc.telemetry.watchdog import watched


async def wait_until(condition, seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def test_a_blocked_loop_is_told_once_with_its_stack_and_its_end() -> None:
    blocks: list[float] = []
    with capture_logs() as lines:
        async with watched(Defects(), limit=0.2, every=0.05, on_blocked=lambda: blocks.append(time.monotonic())):
            await trio.sleep(0.1)
            began = time.monotonic()
            while not lines and time.monotonic() < began + 20:
                time.sleep(0.02)  # noqa: ASYNC251 - this is what it is about
            time.sleep(0.3)  # noqa: ASYNC251 - blocked on: it must not be told twice
            blocked = time.monotonic() - began
            await wait_until(lambda: len(lines) == 2)
    first, second = lines
    assert "blocked" in first["event"]
    assert "test_a_blocked_loop_is_told_once" in first["stack"]
    assert "time.sleep" in first["stack"]
    assert second["event"] == "the event loop runs again"
    assert 0.5 <= second["blocked_seconds"] <= blocked + 0.2
    assert len(blocks) > 2  # again and again: who listens may have begun to later
    assert began <= blocks[0] <= blocks[-1] <= began + blocked + 0.2


async def test_a_loop_that_runs_is_not_told_and_the_thread_ends() -> None:
    with capture_logs() as lines:
        async with watched(Defects(), limit=5, every=0.01):
            await trio.sleep(0.2)
        await wait_until(lambda: not any(thread.name == "watchdog" for thread in threading.enumerate()))
    assert lines == []


async def test_a_loop_that_waits_is_not_woken_up_and_told_that_it_runs() -> None:
    beats, state = [], loop_state()

    def beat() -> None:
        beats.append(time.monotonic())

    async with watched(Defects(), every=0.01, beat=beat):
        passes = state.passes
        await trio.sleep(0.3)
        assert state.passes - passes <= 3
        assert len(beats) > 5


async def test_what_the_beat_asks_for_is_done_in_the_loop_and_a_blocked_one_does_not_beat() -> None:
    done, beats = [], []
    us = threading.get_ident()

    def beat():
        beats.append(threading.get_ident())
        return lambda: done.append(threading.get_ident())

    with capture_logs():
        async with watched(Defects(), limit=5, every=0.01, beat=beat):
            await wait_until(lambda: bool(done))
            time.sleep(0.1)  # noqa: ASYNC251 - the question that came first is not answered
            before = len(beats)
            time.sleep(0.3)  # noqa: ASYNC251
            assert len(beats) <= before + 1
            await wait_until(lambda: len(beats) > before + 1)
    assert set(done) == {us} != set(beats)


class _OtherLoop:
    """Answers at once, in the thread that asks."""

    thread_id = None

    def __init__(self) -> None:
        self.questions = 0

    def post(self, function) -> None:
        self.questions += 1
        function()


async def test_another_loop_is_asked() -> None:
    loop = _OtherLoop()
    async with watched(Defects(), loop, every=0.05):
        await wait_until(lambda: loop.questions > 2)


async def test_the_longest_stretch_at_work_is_known() -> None:
    state = loop_state()
    assert loop_state() is state
    await trio.lowlevel.checkpoint()
    state.longest = 0.0
    time.sleep(0.2)  # noqa: ASYNC251 - this is what it is about
    await trio.lowlevel.checkpoint()
    time.sleep(0.01)  # noqa: ASYNC251
    await trio.lowlevel.checkpoint()
    assert state.longest >= 0.2
