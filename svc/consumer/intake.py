"""The intake: starts a receive whenever there are free places, and never abandons one.

A loop looks at the whole state (open? free places? receives out? a pause?) and starts what that justifies. Closing the intake
cancels this loop and never a receive: the receives run in a nursery that outlives it, land, and hand over what they bring.

Places first: a receive asks for at most the places that are free, holds them while it is on the wire, and so nothing ever lands
that there is no room for. Large messages need room of their own (`_fits`). One receive is out when the queue has little; more
follow while they come back full.

FIFO queues know a receive by an id, and it can be asked for again (`attempts.py`): one whose answer was lost is, and so is one
that a maintenance cuts short, for it lands at once then.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio

from svc.backoff import backoff
from svc.consumer.attempts import Attempt, Attempts
from svc.consumer.breaker import Breaker
from svc.consumer.config import WorkerConfig
from svc.consumer.ledger import Entry, Ledger, Listener, Outcome
from svc.consumer.queue import (
    NoAnswer,
    Queue,
    QueueError,
    QueueMisconfigured,
    QueueUnavailable,
    Received,
    is_fifo,
)
from svc.consumer.waiting_groups import WaitingGroups
from svc.defects import Defects
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

BACKOFF_CAP = 5.0
"""Seconds; the longest pause after failed receives, unless SQS_POLL_INTERVAL is longer. Recovery is a matter of seconds."""

MISCONFIGURED_CAP = 30.0
"""Seconds; the longest pause where an operator has to act first (no such queue, no permission, wrong credentials): nothing is
gained by asking more often, and when it is put right the work goes on within this time."""

GATHER = 0.1
"""Seconds that a receive for less than a full batch waits for more free places, while the queue is full: each receive costs the
same, and so does each place that is free meanwhile."""

FEW = 0.1
"""The part of the places that may be free for ten times as long."""


WAY = 1.0
"""Seconds that a receive may be on its way beside its long poll."""


class Landing(Protocol):
    """Where receives land."""

    def land(self, deliveries: Sequence[Received], sent: float) -> None:
        """Enter them into the ledger, without a checkpoint. `sent` is the Trio time at which their receive was sent."""


class Intake(Listener):
    """Listens to the ledger for places that become free."""

    def __init__(
        self,
        queue: Queue,
        config: WorkerConfig,
        ledger: Ledger,
        breaker: Breaker,
        *,
        may_begin: Callable[[], bool],
        defects: Defects,
        rng: random.Random,
    ) -> None:
        """While `may_begin()` says no, no receive begins; who changes that says `look_again()`."""
        self._queue = queue
        self._config = config
        self._ledger = ledger
        self._breaker = breaker
        self._batch = min(config.batch, config.concurrency)
        self._may_begin = may_begin
        self._defects = defects
        self._rng = rng
        self._landing: Landing | None = None
        self._wake_up = WakeUp()
        self.changed = WakeUp()
        """Notified when a receive has ended."""
        self._scope = trio.CancelScope()
        self._receivers = 0  # of which some may not have been sent yet
        self._places_asked_for = 0
        self._receivers_wanted = 1
        self._bytes_expected = 0.0  # of one receive
        self._wait = config.effective_wait
        self._waiting = WaitingGroups(config.visibility)
        self._reach: dict[object, float] = {}  # until when each receive for several messages may be answered
        self._cuts: set[trio.CancelScope] = set()  # of the receives that may be cut short
        self._attempts = Attempts()
        self._pause_until = -math.inf
        self._last_full_at = -math.inf
        self._failures = 0
        self.is_open = False
        self.outstanding = 0
        """Receives on the wire."""
        self.received_once = False
        """A receive has been answered since the start."""
        self.last_brought_at = -math.inf
        """Trio time at which a receive last brought something."""
        self.error: str | None = None
        """Why receives fail at present."""
        self.error_since: float | None = None
        """Trio time."""

    def brings_more(self, seconds: float) -> bool:
        """Whether more may come soon: a receive is on the wire, and the last one brought something within so many seconds."""
        return self._receivers > 0 and trio.current_time() < self.last_brought_at + seconds

    def landed(self, entry: Entry) -> None:
        if entry.message.group_id is not None and (group := self._fifo_group(entry)) is not None:
            self._waiting.landed(group)

    def ended(self, entry: Entry) -> None:
        """A place is free."""
        if entry.message.group_id is not None and (group := self._fifo_group(entry)) is not None:
            self._note_end(entry, group)
        self._wake_up.notify()

    def _note_end(self, entry: Entry, group: str) -> None:
        now = trio.current_time()
        retried = entry.ended is Outcome.RELEASED and entry.fate is not None and entry.fate.after > 0
        if entry.is_finished:
            self._waiting.finished(group, entry.landed_at)
        elif retried or entry.ended is Outcome.FAILED:
            self._waiting.failed(group, entry.hidden_until, now)
        else:
            self._waiting.given_back(group, now)

    def _fifo_group(self, entry: Entry) -> str | None:
        group = entry.message.group_id
        return group if group is not None and is_fifo(self._queue, self._config.fifo) else None

    async def wait_for_receives(self, group: str) -> None:
        """Return when no receive on the wire may bring several messages of this group, which waits for one that has failed."""

        def none_reaches_it() -> bool:
            visible_at = self._waiting.visible_at(group)
            return visible_at is None or all(end < visible_at for end in self._reach.values())

        await self.changed.wait_until(none_reaches_it)

    def _one_by_one(self) -> bool:
        """Whether a receive that begins now asks for one message only (`waiting_groups.py`)."""
        now = trio.current_time()
        return self._waiting.meets(now, now + self._wait + WAY)

    def verdict(self, entry: Entry, *, failed: bool, now: float | None = None) -> None:
        """The processor has failed with this message, or it has succeeded or asked for a retry or a rejection: now."""
        if self._breaker.verdict(entry, failed=failed, now=now):
            self._wake_up.notify()

    def slept(self, seconds: float) -> None:
        """The machine has slept: what was to become visible is as much nearer to it."""
        self._waiting.slept(seconds)

    def hold(self, reason: str | None) -> None:
        """Pause receiving at once, because something that the work needs is away; None: it is back."""
        self._breaker.hold(reason)
        self._wake_up.notify()

    def open(self) -> None:
        self.is_open = True
        self._pause_until = -math.inf
        self._wake_up.notify()

    def close(self, reason: str) -> None:
        """No receive begins from this moment on; those on the wire land."""
        self.is_open = False
        self._scope.cancel(reason=reason)

    def land_soon(self) -> None:
        """Cut those receives on the wire short that can be asked for again: they land at once. What the queue may hand to a cut
        one all the same (nothing says that it does not) is asked for when receiving goes on. Does not wait."""
        if self._queue.max_receive_count == 1:
            return  # if nobody asks for that, it would be dead-lettered untried
        for cut in self._cuts:
            cut.cancel(reason="it is asked for again")

    def look_again(self) -> None:
        """A receive may begin again."""
        self._wake_up.notify()

    async def run(self, wire: trio.Nursery, landing: Landing) -> None:
        """Start receives in `wire`, which land at `landing`. Ends only by cancellation."""
        self._landing = landing
        while True:
            await self._wake_up.wait_until(lambda: self.is_open)
            with trio.CancelScope() as self._scope:
                while True:
                    await self._wake_up.wait(lambda: self._start_receives(wire))

    def _start_receives(self, wire: trio.Nursery) -> float | None:
        """Start every receive that the free places justify; returns when to look again, if that is a matter of time."""
        now = trio.current_time()
        while self.is_open and self._may_begin():
            if now < self._pause_until:
                return self._pause_until
            granted, ask_again = self._breaker.grants()
            if granted < 1:
                return ask_again
            free = int(min(self._config.concurrency - len(self._ledger), granted)) - self._places_asked_for
            if free < 1 or self._receivers >= self._receivers_wanted:
                return None
            if not self._fits():
                return None
            one_by_one = self._one_by_one()
            if not one_by_one and free < self._batch and now < (until := self._last_full_at + self._gathering(free)):
                return until
            limit = 1 if one_by_one else min(free, self._batch)
            self._receivers += 1
            self._places_asked_for += limit
            wire.start_soon(self._receive, limit)
        return None

    def _gathering(self, free: int) -> float:
        return GATHER if free > FEW * self._config.concurrency else 10 * GATHER

    def _fits(self) -> bool:
        """Whether the receives that are out and one more stay within the bytes that may be in flight, if they bring as much as
        those before them. One may always be out when nothing is in flight."""
        bytes_then = self._ledger.bytes + (self._receivers + 1) * self._bytes_expected
        return bytes_then <= self._config.most_bytes or not (self._receivers or len(self._ledger))

    async def _receive(self, limit: int) -> None:
        """One receive, from its sending to its landing. Raises nothing: it runs among the calls of all others."""
        wait, this = self._wait, object()
        try:
            if not (self.is_open and self._may_begin() and self._breaker.grants()[0] >= 1):
                return  # closed between the decision and this first step
            sent = self._ledger.moment()
            asked = 1 if self._one_by_one() else limit
            if asked > 1:
                self._reach[this] = trio.current_time() + wait + WAY
            self.outstanding += 1
            try:
                # No checkpoint may come between the answer and the ledger.
                if self._queue.repeats_receives:
                    deliveries, sent = await self._received(self._attempts.next(asked, sent), asked, wait, sent)
                else:
                    deliveries = await self._queue.receive(limit=asked, wait=wait, visibility=self._config.visibility)
                self._landed(deliveries, self._ledger.time_of(sent), asked, wait)
            finally:
                self.outstanding -= 1
        except QueueError as error:
            self._failed(error)
        except Exception as defect:
            self._defects.note("receive", defect)
            self._failed(QueueError(f"internal error ({type(defect).__name__}); the log has its traceback"))
        finally:
            self._reach.pop(this, None)
            self._receivers -= 1
            self._places_asked_for -= limit
            self.changed.notify()
            self._wake_up.notify()

    async def _received(self, attempt: Attempt, asked: int, wait: int, sent: float) -> tuple[Sequence[Received], float]:
        """A receive that is asked for again, without waiting, when it has no answer or is cut short. Returns what it brought, and
        when it was sent that leased it. (`sent` and that are moments, as the ledger has them.)"""
        visibility = self._config.visibility
        try:
            with trio.CancelScope() as cut:
                self._cuts.add(cut)
                try:
                    deliveries = await self._queue.receive(
                        limit=asked, wait=wait, visibility=visibility, attempt=attempt.id
                    )
                    return deliveries, sent
                except NoAnswer as error:
                    log.info("a receive without an answer is asked for again", error=str(error))
                finally:
                    self._cuts.discard(cut)
            again = self._ledger.moment()
            deliveries = await self._queue.receive(limit=asked, wait=0, visibility=visibility, attempt=attempt.id)
        except (QueueUnavailable, QueueMisconfigured):
            # One of them may have acted, up to now. (Where the queue does not know the attempt any more, nothing is to be had.)
            self._attempts.keep(attempt, asked, max(sent + wait, self._ledger.moment()) + visibility)
            raise
        if not deliveries:
            # It may wait there still, for as long as it was to wait. What it is handed is visible by itself after its lease.
            self._attempts.keep(attempt, asked, sent + wait + visibility)
        return deliveries, again

    def _failed(self, error: QueueError) -> None:
        self._failures += 1
        self._receivers_wanted = 1
        now, first = trio.current_time(), self._config.poll_interval
        cap = MISCONFIGURED_CAP if isinstance(error, QueueMisconfigured) else BACKOFF_CAP
        self._pause_until = now + backoff(self._failures, first=first, cap=max(first, cap), rng=self._rng)
        if self.error is None:
            self.error_since = now
        if self.error != str(error):
            log.warning("receiving failed, trying again", error=str(error))
        self.error = str(error)

    def _landed(self, deliveries: Sequence[Received], sent: float, limit: int, wait: int) -> None:
        now, config = trio.current_time(), self._config
        took = now - sent
        if deliveries and took >= config.visibility:
            # They came when their lease was over, and would time after time: a message that becomes visible while the poll waits,
            # on a way that takes the rest of the lease. So do not wait, until there is time for it.
            self._wait = 0
        elif wait == 0 and took + config.effective_wait < config.visibility:
            self._wait = config.effective_wait
        if self.error_since is not None:
            log.info("receiving works again", after_seconds=round(now - self.error_since, 1))
        self.error = self.error_since = None
        self._failures = 0
        self.received_once = True
        if len(deliveries) >= limit:
            if limit == self._batch or self._one_by_one():
                self._receivers_wanted = min(self._receivers_wanted + 1, config.receivers)
            self._last_full_at = now
        else:
            self._receivers_wanted = 1
            self._last_full_at = -math.inf
        if not deliveries:
            # Without long polling there is a pause after nothing; and a queue that cuts our polls short makes no hot loop.
            pause = now + config.poll_interval if wait == 0 else sent + min(config.poll_interval, wait)
            self._pause_until = max(self._pause_until, pause)
        else:
            self.last_brought_at = now
        assert self._landing is not None
        before = self._ledger.bytes_landed
        self._landing.land(deliveries, sent)
        self._bytes_expected = max(self._ledger.bytes_landed - before, self._bytes_expected * 0.9)
