"""Which messages make a batch, and when it leaves: everything that `batches.py` decides before it calls the processor.

A *portion* is what goes into a batch together: one message of a standard queue, or several of one group of a FIFO queue, which
stand in their order and are not torn apart. A batch leaves for one of three named reasons: `size` (it is full), `time` (one of it
has lingered long enough) or `flush` (a drain has begun; every place is taken, so that no company can come; half of a lease is
over; or the next portion does not fit).

Nothing here waits, calls, logs or reads a clock: `now` is Trio's time.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from svc.consumer.ledger import Entry
from svc.consumer.observer import BatchReason


@dataclass(slots=True, eq=False)
class Portion:
    """What goes into a batch together."""

    entries: Sequence[Entry]
    ran: trio.Event | None = None
    """Set when the processor has ended, or will never be called: for whoever keeps the order of the group, and waits for that."""
    until: float = math.inf
    """When it has lingered long enough."""
    margin: float = math.inf
    """When half of a lease is over. (It would be extended; but what waits for company need not cost a call.)"""

    def undecided(self) -> Sequence[Entry]:
        """Those that may still be worked on: of a FIFO group, up to the first that was given back or lost meanwhile."""
        for number, entry in enumerate(self.entries):
            if not entry.is_undecided:
                return self.entries[:number]
        return self.entries


@dataclass(frozen=True, slots=True)
class Leaving:
    """A batch that leaves."""

    portions: Sequence[Portion]
    reason: BatchReason


class Gathering:
    def __init__(self, *, size: int, linger: float) -> None:
        self._size = size
        self._linger = linger
        self._waiting: deque[Portion]
        self._messages: int  # in them, with those that were decided since the last look
        self._changed: bool
        self._keep(())
        self.flushing = False
        """While true nothing lingers: set by a drain."""

    def put(self, portion: Portion, now: float) -> None:
        """A portion of no more than `size` entries waits for company."""
        lease = min(entry.lease.until for entry in portion.entries)
        portion.until, portion.margin = now + self._linger, now + (lease - now) / 2
        self._waiting.append(portion)
        self._messages += len(portion.entries)

    def look_again(self) -> None:
        """One of them was decided, or has ended."""
        self._changed = True

    def take(self, now: float, *, company: bool) -> tuple[list[Leaving], list[Portion], float]:
        """The batches that leave now; the portions of which nothing is left to be worked on; and when to ask again at the latest.
        `company`: more messages may come."""
        gone: list[Portion] = []
        if self._changed:
            gone = [portion for portion in self._waiting if not portion.undecided()]
            self._keep([portion for portion in self._waiting if portion.undecided()])
        leaving: list[Leaving] = []
        while self._waiting:
            count, full = self._first()
            reason, until = (full, now) if full is not None else self._reason(now, company)
            if reason is None:
                return leaving, gone, until
            portions = list(self._waiting)
            leaving.append(Leaving(portions[:count], reason))
            self._keep(portions[count:])
        return leaving, gone, math.inf

    def _keep(self, portions: Sequence[Portion]) -> None:
        self._waiting = deque(portions)
        self._messages = sum(len(portion.undecided()) for portion in portions)
        self._changed = False

    def take_all(self) -> list[Portion]:
        """Everything: it will not be worked on any more."""
        portions = list(self._waiting)
        self._keep(())
        return portions

    def _first(self) -> tuple[int, BatchReason | None]:
        """How many portions make the next batch, and why it takes no more, if it does not."""
        if self._messages < self._size:
            return len(self._waiting), None
        messages = 0
        for number, portion in enumerate(self._waiting):
            messages += len(portion.undecided())
            if messages > self._size:
                return number, "flush"
            if messages == self._size:
                return number + 1, "size"
        return len(self._waiting), None

    def _reason(self, now: float, company: bool) -> tuple[BatchReason | None, float]:
        """Why everything that waits leaves now, or None and when it will at the latest."""
        if self.flushing or not company:
            return "flush", now
        until = self._waiting[0].until
        margin = min(portion.margin for portion in self._waiting)
        if until <= now:
            return "time", now
        return ("flush" if margin <= now else None), min(until, margin)
