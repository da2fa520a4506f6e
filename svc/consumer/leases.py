"""The heartbeat: keeps the lease (visibility timeout) of everything that is still being worked on, and notices lost leases.

One loop wakes when the first lease comes due, extends all that are due, ten per call, and sleeps until the next. What is not due
is not looked at: the entries stand in groups, one for each receive or extension that gave them one lease, and the groups in a
heap by when they come due. A message that is finished before costs no call, and leaves its group. A lease that the queue refuses
to extend, or that runs out before an extension is confirmed, is lost: the work on it is cancelled and no delete is attempted,
because another consumer may hold the message by then.

Only undecided entries are covered: once the fate of a delivery is known, its remaining lease is the time to settle it in.
"""

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog
import trio

from svc.backoff import backoff
from svc.consumer.ledger import Entry, Ledger, Listener
from svc.consumer.observer import Observer
from svc.consumer.queue import MAX_BATCH, MAX_VISIBILITY, Queue, QueueError
from svc.defects import Defects
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

Group = dict[Entry, None]
"""Entries with one lease; a dictionary for its order."""

CALLS_AT_ONCE = 10
"""Heartbeats on the wire at once. With 10,000 messages in flight a thousand come due in one moment; a delete must not wait for
all of them to have had a connection."""

CALL_LIMIT = 10.0
"""Seconds after which a heartbeat on the wire is given up; the queue's own client is expected to fail before."""


class Overtaken(Protocol):
    """What waits until a heartbeat is no longer on the wire, which could overtake it."""

    def look_again(self) -> None: ...


class Heartbeat(Listener):
    """Listens to the ledger for what needs no lease any more."""

    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        overtaken: Overtaken,
        *,
        visibility: int,
        observer: Observer,
        defects: Defects,
        rng: random.Random,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._visibility = visibility
        self._overtaken = overtaken
        self._observer = observer
        self._defects = defects
        self._rng = rng
        self._wake_up = WakeUp()
        self._groups: list[tuple[float, int, Group]] = []  # a heap, by when one of the group comes due
        self._grouped = 0  # since the start: no two groups compare equal
        self._empty = 0  # groups in the heap that all have left
        self._calls: trio.Nursery | None = None
        self._room = trio.CapacityLimiter(CALLS_AT_ONCE)
        self._failures = 0

    def cover(self, entries: Iterable[Entry]) -> None:
        """These stand in the ledger, with one lease: keep it for those that are undecided."""
        first = self._groups[0][0] if self._groups else math.inf
        if self._group(entries) < first:
            self._wake_up.notify()

    def uncover(self, entry: Entry) -> None:
        """It is decided, or has ended. Nothing here holds it any longer."""
        group, entry.lease.group = entry.lease.group, None
        if group is None:
            return
        del group[entry]
        if not group:
            self._empty += 1
            if self._empty > 100 and self._empty > len(self._groups) / 2:
                self._groups = [held for held in self._groups if held[2]]
                heapq.heapify(self._groups)
                self._empty = 0

    decided = uncover
    ended = uncover

    def slept(self, seconds: float) -> None:
        """The machine has slept, and the ledger's leases have moved: those that are over by now are lost at once."""
        self._groups = [(when - seconds, number, group) for when, number, group in self._groups]  # still a heap
        now = trio.current_time()
        for entry in list(self._ledger):
            if entry.is_undecided and entry.lease.until <= now:
                self._ledger.lose(entry, f"its lease ran out while the machine slept ({seconds:.0f} s)")
        self._wake_up.notify()

    async def run(self, wire: trio.Nursery) -> None:
        """Send heartbeats in `wire`, which outlives this. Ends only by cancellation."""
        self._calls = wire
        while True:
            await self._wake_up.wait(self._look)

    def _due_at(self, entry: Entry) -> float:
        """With a third of the lease left an extension is due: time for several attempts."""
        return max(entry.lease.until - self._visibility / 3, entry.lease.next_try)

    def _covers(self, entry: Entry) -> bool:
        return entry.is_undecided

    def _group(self, entries: Iterable[Entry]) -> float:
        """Put those that are covered into one group; returns when to look at it."""
        group: Group = {}
        when = math.inf
        before = None
        for entry in entries:
            if self._covers(entry):
                group[entry] = None
                lease = entry.lease
                lease.group = group
                if before is None or (lease.until, lease.next_try) != before:  # most of a group have the same
                    before = lease.until, lease.next_try
                    when = min(when, self._due_at(entry), lease.until)
        if not group:
            return math.inf
        self._grouped += 1
        heapq.heappush(self._groups, (when, self._grouped, group))
        return when

    def _look(self) -> float:
        """Send what is due, give up what is lost; returns when to look again."""
        now = trio.current_time()
        soon = now + self._visibility / 12  # what comes due soon is sent too: many leases must not cost a look each
        due: list[Entry] = []
        later: list[list[Entry]] = []
        while self._groups and self._groups[0][0] <= soon:
            _, _, group = heapq.heappop(self._groups)
            self._empty -= not group
            for entry in group:
                entry.lease.group = None
            not_yet = []
            for entry in group:
                if not self._covers(entry):
                    continue  # it was a copy of one that was lost a line above
                if entry.lease.until <= now:
                    why = f": {entry.lease.error}" if entry.lease.error else ""
                    self._ledger.lose(entry, f"its lease ran out before an extension was confirmed{why}")
                elif entry.lease.next_try <= now and self._due_at(entry) <= soon:
                    entry.lease.next_try = math.inf  # it waits for its call
                    due.append(entry)
                else:
                    not_yet.append(entry)
            later.append(not_yet)
        assert self._calls is not None
        for first in range(0, len(due), MAX_BATCH):
            batch = due[first : first + MAX_BATCH]
            later.append(batch)  # they are looked at again when their lease runs out
            self._calls.start_soon(self._extend, batch)
        for entries in later:
            self._group(entries)
        return self._groups[0][0] if self._groups else math.inf

    def _timeouts(self, batch: Sequence[Entry]) -> dict[str, int]:
        """What to ask for, by receipt: for those of the batch that are still undecided and can be extended."""
        now = trio.current_time()
        timeouts = {}
        for entry in batch:
            # SQS refuses an extension beyond 12 hours after the receive; the last one is cut to fit.
            seconds = min(self._visibility, math.floor(entry.received_at + MAX_VISIBILITY - now))
            if entry.is_undecided and now + seconds > entry.lease.until:
                entry.lease.extending = True
                # If it acts as late as it can.
                self._ledger.hide(entry, max(entry.hidden_until, now + CALL_LIMIT + seconds))
                timeouts[entry.delivery.receipt] = seconds
        return timeouts

    async def _extend(self, batch: Sequence[Entry]) -> None:
        async with self._room:
            try:
                if timeouts := self._timeouts(batch):
                    await self._send([entry for entry in batch if entry.lease.extending], timeouts)
            except Exception as defect:
                # It happened after the answer. What was not reached is extended once more.
                self._defects.note("heartbeat", defect)
                for entry in batch:
                    if entry.is_undecided and entry.lease.next_try == math.inf:
                        self._put_off(entry)
                    self.uncover(entry)
                self.cover(batch)

    async def _send(self, batch: Sequence[Entry], timeouts: dict[str, int]) -> None:
        sent = self._ledger.moment()
        error = "no answer"
        refused = None
        try:
            with trio.move_on_after(CALL_LIMIT):
                refused = await self._queue.change_visibility(timeouts)
        except QueueError as failure:
            error = str(failure)
        except Exception as defect:
            self._defects.note("heartbeat", defect)
            error = f"internal error ({type(defect).__name__})"
        finally:
            answered_at = trio.current_time()
            for entry in batch:
                entry.lease.extending = False
            self._overtaken.look_again()
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
            if refusal is None or refusal.unconfirmed:
                # Without an answer it may have acted too. An entry that has failed meanwhile stays invisible for as long as
                # this extension says, and the drain report tells so.
                self._ledger.hide(entry, answered_at + timeouts[entry.delivery.receipt])
            if refused is not None and refusal is None:
                # Counted from the sending: never later than SQS counts.
                entry.lease.until = self._ledger.time_of(sent) + timeouts[entry.delivery.receipt]
                if entry.is_undecided:
                    entry.lease.next_try = -math.inf
            elif refusal is not None and refusal.gone and entry.is_undecided:
                self._ledger.hide(entry, answered_at)  # not by us any more
                self._ledger.lose(entry, f"the queue refused to extend its lease: {refusal.why}")
            elif entry.is_undecided:
                if refusal is not None and entry.lease.attempts == 0:
                    log.warning(
                        "a lease could not be extended, trying again", message_id=entry.message.id, error=refusal.why
                    )
                self._put_off(entry)
                entry.lease.error = error if refusal is None else refusal.why
            if refusal is None and refused is not None:
                entry.lease.attempts, entry.lease.error = 0, ""
            self.uncover(entry)
        self.cover(batch)

    def _put_off(self, entry: Entry) -> None:
        """It was not extended: when to try again."""
        entry.lease.attempts += 1
        entry.lease.next_try = trio.current_time() + backoff(
            entry.lease.attempts, first=self._visibility / 30, cap=self._visibility / 10, rng=self._rng
        )
