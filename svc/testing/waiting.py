"""Waiting in a test until something holds: exact, because it is looked at after every step that any task makes."""

import math
from collections.abc import Callable

import trio


async def holds(satisfied: Callable[[], bool], *, every: float = math.inf) -> None:
    """Return as soon as `satisfied()`. What comes true by the mere passing of time, without anybody doing anything, is
    looked at `every` so many seconds. Raises what `satisfied` raises."""
    await trio.lowlevel.checkpoint()
    while not satisfied():
        look = _Look(satisfied)
        trio.lowlevel.add_instrument(look)
        try:
            with trio.move_on_after(every):
                await look.seen.wait()
        finally:
            trio.lowlevel.remove_instrument(look)
        if look.error is not None:
            raise look.error


class _Look(trio.abc.Instrument):
    def __init__(self, satisfied: Callable[[], bool]) -> None:
        self.seen = trio.Event()
        self.error: Exception | None = None
        self._satisfied = satisfied

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.seen.is_set():
            return
        try:
            seen = self._satisfied()
        except Exception as error:  # an instrument that raises is thrown out, with no more than a line in the log
            self.error, seen = error, True
        if seen:
            self.seen.set()


class ThreadsHoldTheClock(trio.abc.Instrument):
    """Lets virtual time stand still while a thread works: an autojump clock sees only that all tasks wait, and would jump
    to the next deadline (python-trio/trio#456).

    Not for ever: a thread that does nothing for `PATIENCE` seconds of real time may be one that waits for virtual time to
    go on.
    """

    PATIENCE = 1.0

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._threshold = clock.autojump_threshold
        self._holding = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        at_work = trio.testing.active_thread_count() > 0
        if at_work != self._holding:
            self._holding = at_work
            patience = max(self.PATIENCE, self._threshold) if at_work else self._threshold
            self._clock.autojump_threshold = patience
