"""Suspensions: that the machine has slept, and for how long, told before anything else is decided after it woke.

Trio's clock stands still while the machine sleeps (CLOCK_MONOTONIC), and what others count for us goes on: leases, above all. So
a second clock, which goes on, is looked at each time Trio's loop comes back from its wait, and how far it has run ahead is told.
A process that is stopped (SIGSTOP) has not slept: both clocks go on.
"""

from collections.abc import Callable

import trio

LEAST = 0.2
"""Seconds; less is told together with what follows."""

AT_ONCE = 0.05
"""Seconds between two looks at Trio's clock, around one at the other, above which they are not of the same moment."""


class Suspensions(trio.abc.Instrument):
    """Made and added within a Trio run. `clock` goes on while the machine sleeps; `on_slept` gets the seconds, and must not raise
    or wait."""

    def __init__(self, clock: Callable[[], float], on_slept: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_slept = on_slept
        self._ahead = clock() - trio.current_time()

    def after_io_wait(self, timeout: float) -> None:
        before = trio.current_time()
        ahead = self._clock() - before
        slept = ahead - self._ahead
        if abs(slept) < LEAST or trio.current_time() - before > AT_ONCE:
            return
        self._ahead = ahead
        if slept > 0:
            self._on_slept(slept)
