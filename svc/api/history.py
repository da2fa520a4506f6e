"""The last quarter of an hour of the figures: a ring of samples, for the small charts of the page.

A sample is the difference of two looks at the ledger's counts, `EVERY` seconds apart; the ring forgets the oldest, so that memory
is bounded whatever happens. Nothing is counted here, and the wall clock is not read.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from svc.consumer.ledger import Counts
from svc.wakeup import next_tick

EVERY = 5.0
"""Seconds between two samples: fine enough to see a drain of 30 s, coarse enough to cost nothing."""

KEPT = 180
"""Samples: 15 minutes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened between two looks."""

    at: float
    """Trio time of the later one."""
    seconds: float
    """Between them. More than `EVERY` when the process did not get to run, say because the machine slept."""
    processed: int
    failed: int
    """Failed, rejected and lost."""
    released: int
    in_flight: int
    """At the later look."""


class History:
    def __init__(self, look: Callable[[], Counts], *, every: float = EVERY, kept: int = KEPT) -> None:
        self._look = look
        self.every = every
        self.kept = kept
        self._samples: deque[Sample] = deque(maxlen=kept)
        self.taken = 0
        """How many samples were ever taken: it tells whether there is a new one."""

    def samples(self) -> tuple[Sample, ...]:
        """Oldest first."""
        return tuple(self._samples)

    async def run(self) -> None:
        """Ends only by cancellation."""
        before, since = self._look(), trio.current_time()
        while True:
            await trio.sleep_until(next_tick(self.every))  # a beat that was missed is not made up for
            counts, now = self._look(), trio.current_time()
            change = counts - before
            self._samples.append(
                Sample(
                    at=now,
                    seconds=now - since,
                    processed=change.processed,
                    failed=change.failed + change.rejected + change.lost,
                    released=change.released,
                    in_flight=counts.in_flight,
                )
            )
            self.taken += 1
            before, since = counts, now
