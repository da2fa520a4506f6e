"""A wake-up that carries no data and means "look again"; and when those look whom nobody tells (`next_tick`).

Whoever waits looks at the state first and waits after; whoever changes the state notifies after. The event is there before the
waiter looks, so a notification between the look and the wait is not lost, and a thousand of them cost one look.
"""

import math
from collections.abc import Callable

import trio

REST = 5.0
"""Seconds between two looks of what has nothing to look at: an idle process does little but wake up."""


class WakeUp:
    def __init__(self) -> None:
        self._event: trio.Event | None = None  # None: nobody has looked since the last notification

    def notify(self) -> None:
        """Make everybody who waits look again."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait_until(self, satisfied: Callable[[], bool]) -> None:
        """Return as soon as `satisfied()` holds, looking again at every notification."""
        while True:
            event = self._fresh()
            if satisfied():
                return
            await event.wait()

    async def wait(self, look: Callable[[], float | None]) -> None:
        """`look()` once, then wait for a notification, or until the Trio time that `look` returned (None: no such time)."""
        event = self._fresh()
        until = look()
        if until is None or until == math.inf:  # a scope costs as much as all the rest here
            await event.wait()
            return
        with trio.CancelScope(deadline=until):
            await event.wait()

    def _fresh(self) -> trio.Event:
        if self._event is None:
            self._event = trio.Event()
        return self._event


def next_tick(every: float) -> float:
    """The next multiple of `every` seconds on Trio's clock. Parts that look at something now and then look in the same moment,
    so that an idle process wakes up once for all of them."""
    now = trio.current_time()
    until = (now // every + 1) * every
    return until if until > now else now + every
