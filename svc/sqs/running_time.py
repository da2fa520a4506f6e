"""Deadlines that count only time in which this process ran.

A process that is stopped for a while (SIGSTOP, a virtual machine that is moved, a processor that blocks the loop) finds every
ordinary deadline passed when it goes on. For a receive that is wrong: its answer may lie in the socket, with messages that are
ours, and to give the call up in that moment strands them until their lease ends. So a receive's time is counted in ticks, and a
tick that took much longer than it should counts as two.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

import trio

from svc.sqs.background import background
from svc.wakeup import next_tick

TICK = 1.0
"""Seconds between two looks: a deadline is met as much later at most."""


class RunningTime:
    """Made by `running()`."""

    def __init__(self) -> None:
        self._left: dict[trio.CancelScope, float] = {}

    def move_on_after(self, seconds: float) -> "_Bounded":
        """As `trio.move_on_after`, but for the time that is counted: up to a tick later."""
        return _Bounded(self._left, seconds)

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


class _Bounded:
    """A cancel scope that stands in the list of those whose time is counted."""

    __slots__ = ("_left", "_scope", "_seconds")

    def __init__(self, left: dict[trio.CancelScope, float], seconds: float) -> None:
        self._left = left
        self._scope = trio.CancelScope()
        self._seconds = seconds

    def __enter__(self) -> trio.CancelScope:
        self._left[self._scope] = self._seconds
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        del self._left[self._scope]
        return self._scope.__exit__(kind, error, traceback)


@asynccontextmanager
async def running() -> AsyncIterator[RunningTime]:
    """A `RunningTime` that counts within the block. An `Exception` raised inside comes out as it is, in no group."""
    async with background("nothing is to be counted any more") as nursery:
        lived = RunningTime()
        nursery.start_soon(lived.count)
        yield lived
