"""Deadlines that count only time in which this process ran.

A process that is stopped for a while (SIGSTOP, a virtual machine that is moved, a processor that blocks the loop) finds every
ordinary deadline passed when it goes on. For a receive that is wrong: its answer may lie in the socket, with messages that are
ours, and to give the call up in that moment strands them until their lease ends. So a receive's time is counted in ticks, and a
tick that took much longer than it should counts as two.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from svc.sqs.background import background
from svc.wakeup import next_tick

TICK = 1.0
"""Seconds between two looks: a deadline is met as much later at most."""


class RunningTime:
    """Made by `running()`."""

    def __init__(self) -> None:
        self._left: dict[trio.CancelScope, float] = {}

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[None]:
        """As `trio.fail_after`, but for the time that is counted: raises `trio.TooSlowError`, up to a tick later."""
        scope = trio.CancelScope()
        self._left[scope] = seconds
        try:
            with scope:
                yield
        finally:
            del self._left[scope]
        if scope.cancelled_caught:
            raise trio.TooSlowError

    async def count(self) -> None:
        """Ends only by cancellation."""
        while True:
            before = trio.current_time()
            await trio.sleep_until(next_tick(TICK))
            lived = min(trio.current_time() - before, 2 * TICK)
            for scope, left in self._left.items():
                self._left[scope] = left - lived
                if left <= lived:
                    scope.cancel(reason="no answer in time")


@asynccontextmanager
async def running() -> AsyncIterator[RunningTime]:
    """A `RunningTime` that counts within the block. An `Exception` raised inside comes out as it is, in no group."""
    async with background("nothing is to be counted any more") as nursery:
        lived = RunningTime()
        nursery.start_soon(lived.count)
        yield lived
