"""Deadlines that count only time in which this process ran.

A process that is stopped for a while (SIGSTOP, a virtual machine that is moved, a processor that blocks the loop) finds every
ordinary deadline passed when it goes on. For a receive that is wrong: its answer may lie in the socket, with messages that are
ours, and to give the call up in that moment strands them until their lease ends. So a receive's time is counted in ticks, and a
tick that took much longer than it should counts as two. While nothing begins and no deadline is near, ticks are longer: an idle
service does nothing but wait in a long poll.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

import trio

from svc.sqs.background import background
from svc.wakeup import REST, next_tick

TICK = 1.0
"""Seconds between two looks: a deadline is met as much later at most."""

_NEAR = REST + TICK
"""Seconds before a deadline from which on ticks are short: what a long one counts as at most."""


class RunningTime:
    """Made by `running()`."""

    def __init__(self) -> None:
        self.left: dict[trio.CancelScope, float] = {}
        """Seconds, by whom they are counted for."""
        self.resting: trio.Event | None = None
        """While a long tick runs: ends it."""

    def move_on_after(self, seconds: float) -> "_Bounded":
        """As `trio.move_on_after`, but for the time that is counted: up to a tick later."""
        return _Bounded(self, seconds)

    async def count(self) -> None:
        """Ends only by cancellation."""
        known: set[trio.CancelScope] = set()
        while True:
            before, most, counted = trio.current_time(), 2 * TICK, self.left
            if self.left.keys() <= known and min(self.left.values(), default=math.inf) > _NEAR:
                most, self.resting = _NEAR, trio.Event()
                counted = dict(self.left)  # and not what begins meanwhile, and so ends the tick
                with trio.move_on_at(next_tick(REST)):
                    await self.resting.wait()
                self.resting = None
            else:
                known = set(self.left)
                await trio.sleep_until(next_tick(TICK))
            lived = min(trio.current_time() - before, most)
            for scope in counted.keys() & self.left.keys():
                self.left[scope] -= lived
                if self.left[scope] <= 0:
                    scope.cancel(reason="no answer in time")


class _Bounded:
    """A cancel scope that stands in the list of those whose time is counted."""

    __slots__ = ("_scope", "_seconds", "_time")

    def __init__(self, time: RunningTime, seconds: float) -> None:
        self._time = time
        self._scope = trio.CancelScope()
        self._seconds = seconds

    def __enter__(self) -> trio.CancelScope:
        self._time.left[self._scope] = self._seconds
        if self._time.resting is not None:
            self._time.resting.set()
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        del self._time.left[self._scope]
        return self._scope.__exit__(kind, error, traceback)


@asynccontextmanager
async def running() -> AsyncIterator[RunningTime]:
    """A `RunningTime` that counts within the block. An `Exception` raised inside comes out as it is, in no group."""
    async with background("nothing is to be counted any more") as nursery:
        lived = RunningTime()
        nursery.start_soon(lived.count)
        yield lived
