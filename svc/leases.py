"""The heartbeat: keeps the lease (visibility timeout) of everything that is still being worked on, and notices lost leases.

One loop looks at the ledger when the first lease comes due, extends all that are due, ten per call, and sleeps until the next.
A message that is finished before its lease comes due costs no call. A lease that the queue refuses to extend, or that runs out
before an extension is confirmed, is lost: the work on it is cancelled and no delete is attempted, because another consumer may
hold the message by then.

Only undecided entries are covered: once the fate of a delivery is known, its remaining lease is the time to settle it in.
"""

import math
import random
from collections.abc import Callable, Sequence

import structlog
import trio

from svc.bell import Bell
from svc.ledger import Entry, Ledger
from svc.observer import Observer
from svc.queue import MAX_BATCH, MAX_VISIBILITY, Queue, QueueError
from svc.retry import backoff

log = structlog.get_logger(__name__)

CALL_LIMIT = 10.0
"""Seconds after which a heartbeat on the wire is given up; the queue's own client is expected to fail before."""


class Heartbeat:
    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        *,
        visibility: int,
        on_lost: Callable[[Entry, str], None],
        on_landed: Callable[[], None],
        observer: Observer,
        rng: random.Random,
    ) -> None:
        """`on_lost(entry, why)` must end the entry; `on_landed()` tells that a heartbeat is no longer on the wire."""
        self._queue = queue
        self._ledger = ledger
        self._visibility = visibility
        self._on_lost = on_lost
        self._on_landed = on_landed
        self._observer = observer
        self._rng = rng
        self._bell = Bell()
        self._next_look = math.inf
        self._calls: trio.Nursery | None = None
        self._failures = 0

    def cover(self, entry: Entry) -> None:
        """A new entry stands in the ledger: make sure that the loop looks in time."""
        if self._due_at(entry) < self._next_look:
            self._bell.ring()

    async def run(self) -> None:
        """Ends only by cancellation."""
        async with trio.open_nursery() as self._calls:
            while True:
                await self._bell.wait(self._look)

    def _due_at(self, entry: Entry) -> float:
        """With a third of the lease left an extension is due: time for several attempts."""
        return max(entry.lease_until - self._visibility / 3, entry.next_try)

    def _look(self) -> float:
        """Send what is due, give up what is lost; returns when to look again."""
        now = trio.current_time()
        soon = now + self._visibility / 12  # taken along, so that a crowd of leases does not cost a look each
        due, lost, next_look = [], [], math.inf
        for entry in self._ledger:
            if not entry.is_undecided():
                continue
            if entry.lease_until <= now:
                lost.append(entry)
            elif entry.extending:
                next_look = min(next_look, entry.lease_until)
            elif entry.next_try <= now and self._due_at(entry) <= soon:
                due.append(entry)
                next_look = min(next_look, entry.lease_until)
            else:
                next_look = min(next_look, self._due_at(entry), entry.lease_until)
        for entry in lost:
            self._on_lost(entry, "its lease ran out before an extension was confirmed")
        assert self._calls is not None
        for first in range(0, len(due), MAX_BATCH):
            self._send(due[first : first + MAX_BATCH], now)
        self._next_look = next_look
        return next_look

    def _send(self, batch: Sequence[Entry], now: float) -> None:
        timeouts = {}
        for entry in batch:
            # SQS refuses an extension beyond 12 hours after the receive; the last one is cut to fit.
            seconds = min(self._visibility, math.floor(entry.received_at + MAX_VISIBILITY - now))
            if now + seconds <= entry.lease_until:
                entry.next_try = math.inf
                continue
            entry.extending = True
            entry.hidden_until = max(entry.hidden_until, now + CALL_LIMIT + seconds)  # if it acts as late as it can
            timeouts[entry.delivery.receipt] = seconds
        if timeouts:
            assert self._calls is not None
            self._calls.start_soon(self._extend, [entry for entry in batch if entry.extending], timeouts)

    async def _extend(self, batch: Sequence[Entry], timeouts: dict[str, int]) -> None:
        sent = trio.current_time()
        error = "no answer"
        refused = None
        try:
            with trio.move_on_after(CALL_LIMIT):
                refused = await self._queue.change_visibility(timeouts)
        except QueueError as failure:
            error = str(failure)
        finally:
            answered_at = trio.current_time()
            for entry in batch:
                entry.extending = False
            self._on_landed()
        if refused is None:
            self._failures += 1
            if self._failures == 1:
                log.warning("leases could not be extended, trying again", messages=len(batch), error=error)
        else:
            if self._failures:
                log.info("leases are extended again", failed_calls=self._failures)
            self._failures = 0
        self._observer.extended(
            confirmed=0 if refused is None else len(batch) - len(refused),
            refused=0 if refused is None else len(refused),
            unanswered=len(batch) if refused is None else 0,
        )
        for entry in batch:
            refusal = refused.get(entry.delivery.receipt) if refused is not None else None
            if refusal is None:
                # Without an answer it may have acted too. An entry that has failed meanwhile stays invisible for as long as
                # this extension says, and the drain report tells so.
                entry.hidden_until = answered_at + timeouts[entry.delivery.receipt]
            if refused is not None and refusal is None:
                # Counted from the sending: never later than SQS counts.
                entry.lease_until = sent + timeouts[entry.delivery.receipt]
            elif refusal is not None and refusal.gone and entry.is_undecided():
                entry.hidden_until = answered_at  # not by us any more
                self._on_lost(entry, f"the queue refused to extend its lease: {refusal.text}")
            elif entry.is_undecided():
                entry.attempts += 1
                entry.next_try = trio.current_time() + backoff(
                    entry.attempts, first=self._visibility / 30, cap=self._visibility / 10, rng=self._rng
                )
            if refusal is None and refused is not None:
                entry.attempts = 0
        self._bell.ring()
