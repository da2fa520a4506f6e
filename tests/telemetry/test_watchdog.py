"""The watchdog, in real time: it names what blocks the loop, once, and says when it is over."""

import threading
import time
from functools import partial

import trio
from structlog.testing import capture_logs

from svc.defects import Defects
from svc.telemetry.loop_delay import measure_lag
from svc.telemetry.watchdog import watched


async def wait_until(condition, seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def test_a_blocked_loop_is_told_once_with_its_stack_and_its_end() -> None:
    with capture_logs() as lines:
        async with watched(Defects(), limit=0.2, every=0.05) as alive, trio.open_nursery() as nursery:
            nursery.start_soon(partial(measure_lag, lambda lag: None, alive, every=0.05))
            await trio.sleep(0.1)
            began = time.monotonic()
            while not lines and time.monotonic() < began + 20:
                time.sleep(0.02)  # noqa: ASYNC251 - this is what it is about
            time.sleep(0.3)  # noqa: ASYNC251 - blocked on: it must not be told twice
            blocked = time.monotonic() - began
            await wait_until(lambda: len(lines) == 2)
            nursery.cancel_scope.cancel(reason="seen")
    first, second = lines
    assert "blocked" in first["event"]
    assert "test_a_blocked_loop_is_told_once" in first["stack"]
    assert "time.sleep" in first["stack"]
    assert second["event"] == "the event loop runs again"
    assert 0.5 <= second["blocked_seconds"] <= blocked + 0.2


async def test_a_loop_that_runs_is_not_told_and_the_thread_ends() -> None:
    with capture_logs() as lines:
        async with watched(Defects(), limit=5, every=0.01) as alive, trio.open_nursery() as nursery:
            nursery.start_soon(partial(measure_lag, lambda lag: None, alive, every=0.01))
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel(reason="long enough")
        await wait_until(lambda: not any(thread.name == "watchdog" for thread in threading.enumerate()))
    assert lines == []


class _OtherLoop:
    """Answers at once, in the thread that asks."""

    thread_id = None

    def __init__(self) -> None:
        self.questions = 0

    def post(self, function) -> None:
        self.questions += 1
        function()


async def test_a_loop_that_gives_signs_is_not_asked_and_one_that_does_not_is() -> None:
    loop, late = _OtherLoop(), 0
    async with watched(Defects(), loop, every=0.2) as alive:
        alive()
        for _ in range(12):
            before = time.monotonic()
            await trio.sleep(0.05)
            alive()
            late += time.monotonic() - before > 0.2  # on a busy machine
        assert loop.questions <= late
        await wait_until(lambda: loop.questions > late + 1)
