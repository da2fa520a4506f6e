"""The worker: receives messages, runs the processor on each in a task of its own, and can be drained without stranding one.

Three nested scopes, of which a drain closes the first, gives the second a deadline, and ends the third last:

1. *Intake*: a loop that starts a receive whenever there are free places. Maintenance cancels this loop, never a receive: the
   receives themselves run outside of it, land, and what they bring enters the ledger like everything else.
2. *Work*: one task per message (one per message group on a FIFO queue), each in a cancel scope of its own.
3. *Far side*: receives on the wire, heartbeats (`leases.py`) and settlement (`settlement.py`). It outlives the other two,
   shielded from their cancellation and bounded by a deadline.

What is in flight stands in the ledger (`ledger.py`) and nowhere else. Nothing here knows SQS, HTTP, etcd or the wall clock.
"""

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import structlog
import trio

from svc.bell import Bell
from svc.leases import Heartbeat
from svc.ledger import PROCESSED, RELEASED, Action, Counts, Entry, ErrorRecord, Fate, Ledger, Outcome
from svc.probe import Probe
from svc.processors import Process, Reject, Retry
from svc.queue import Queue, QueueError, Received
from svc.retry import backoff
from svc.settlement import Settlement

log = structlog.get_logger(__name__)

LAST_RELEASE = 2.0
"""Seconds that a cancelled worker takes at most to release what it still holds (SPEC, second signal)."""

BACKOFF_CAP = 5.0
"""Seconds; the longest pause after failed receives, unless SQS_POLL_INTERVAL is longer. Recovery is a matter of seconds."""

LEARN_EVERY = 300.0
"""Seconds between two looks at the queue's redrive policy."""

MAX_RECEIVERS = 10
"""Receives on the wire at once, under load."""

LINGER = 0.1
"""Seconds that a settlement may wait for company, and a receive for more free places while the queue is full."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the worker needs of the settings; times in seconds. Ranges: see `settings.py`."""

    concurrency: int = 100
    batch: int = 10
    wait: int = 20
    visibility: int = 30
    poll_interval: float = 1.0
    drain_timeout: float = 30.0
    fifo: bool = False

    @property
    def full_batch(self) -> int:
        """Messages that a receive asks for when there is room."""
        return min(self.batch, self.concurrency)

    @property
    def reserve(self) -> float:
        """The last part of a drain, kept for releasing what the work did not finish."""
        return min(2.0, self.drain_timeout / 10)

    @property
    def effective_wait(self) -> int:
        """The long-poll wait in whole seconds: short enough for a receive to land within a drain, with a second for the way,
        and for two thirds of the lease, which counts from the sending of the receive, not to pass before it lands."""
        return max(0, min(self.wait, math.floor(self.drain_timeout - self.reserve - 1), 2 * self.visibility // 3))


@dataclass(frozen=True, slots=True)
class Drain:
    """How a drain of this worker goes, or went."""

    in_flight: int = 0
    """At its begin."""
    receives_outstanding: int = 0
    """At its begin: receives on the wire."""
    receives_brought: int = 0
    """Messages that those brought."""
    receives_unlanded: int = 0
    """At its end: receives that still had no answer. What they bring is released when they land."""
    completed: int = 0
    failed: int = 0
    released: int = 0
    rejected: int = 0
    lost: int = 0
    timed_out: tuple[str, ...] = ()
    """Ids of the messages whose work was cancelled because the time was over."""
    unsettled: tuple[str, ...] = ()
    """At its end: ids of the messages whose delete or release the queue has not confirmed. It is tried further."""
    lost_ids: tuple[str, ...] = ()
    stubborn: tuple[str, ...] = ()
    """Ids of the messages whose processor ignored the cancellation; they were released all the same."""
    deferred: Mapping[str, float] = field(default_factory=dict)
    """Failed, or to be retried later: message id → seconds from this snapshot until it is visible again, as is meant."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A snapshot: all figures are of the same moment."""

    counts: Counts
    receiving: bool
    """The intake is open."""
    receives_outstanding: int
    received_once: bool
    """A receive has been answered since the start."""
    last_message_at: float | None
    """Trio time."""
    recent_errors: tuple[ErrorRecord, ...]
    queue_error: str | None
    """Why receives fail at present."""
    queue_error_since: float | None
    """Trio time."""


class Worker:
    """A `maintenance.Handler` named `sqs`."""

    name = "sqs"

    def __init__(
        self, queue: Queue, process: Process, config: WorkerConfig, *, rng: random.Random | None = None
    ) -> None:
        self._queue = queue
        self._process = process
        self._config = config
        self._rng = rng or random.Random()
        self._changed = Bell()
        self._room = Bell()
        self.ledger = Ledger(on_end=self._on_end, on_decided=self._on_decided)
        self.settlement = Settlement(queue, self.ledger, linger=0 if config.fifo else LINGER, rng=self._rng)
        self.heartbeat = Heartbeat(
            queue,
            self.ledger,
            visibility=config.visibility,
            on_lost=self._lose,
            on_landed=self.settlement.look_again,
            rng=self._rng,
        )
        self._open = False
        self._intake = trio.CancelScope()
        self._wire: trio.Nursery | None = None
        self._work: trio.Nursery | None = None
        self._outstanding = 0
        self._places_asked_for = 0
        self._receivers_wanted = 1
        self._pause_until = -math.inf
        self._last_full_at = -math.inf
        self._failures = 0
        self._queue_error: str | None = None
        self._queue_error_since: float | None = None
        self._received_once = False
        self._held: list[Entry] = []
        self._twins: dict[str, list[Entry]] = {}
        self._groups: dict[str, deque[Entry]] = {}
        self._closing = trio.Event()
        self._probe = Probe(queue.attributes)
        self._drain = Drain()
        self._drain_began = self.ledger.counts()
        self._drain_lost: list[str] = []
        self._draining = False

    # -- the handler's side: what the manager of the maintenance calls --

    def enter(self) -> None:
        """Receive nothing new from this moment on."""
        self._open = False
        self._intake.cancel(reason="maintenance or stop: no new receives")
        self._draining = True
        self._drain_began = self.ledger.counts()
        self._drain_lost = []
        self._drain = Drain(in_flight=len(self.ledger), receives_outstanding=self._outstanding)
        self.settlement.flush(True)

    def leave(self) -> None:
        """Receive again. What landed during the drain and was to be released is processed instead."""
        if self._draining:
            self._drain = self._drained_so_far()
        self._draining = False
        self.settlement.flush(False)
        self._open = True
        self._pause_until = -math.inf
        held, self._held = self._held, []
        for entry in held:
            if entry.undecided:
                self._start(entry)
        self._room.ring()
        self._changed.ring()

    async def wait_drained(self, deadline: float) -> str | None:
        """Let receives land and work finish, cancel and release what is unfinished when only the reserve is left before
        `deadline` (Trio time), and return None when all went well, else what did not, with message ids.

        Ends at most a second after the deadline. A cancelled wait leaves everything consistent: what was begun goes on.
        """
        work_until = deadline - self._config.reserve
        with trio.CancelScope(deadline=work_until):
            # First the receives land, then what they brought is released: a receive of our own that is still out would
            # otherwise take the released messages back, and each receive counts towards the dead-letter queue.
            await self._changed.wait_until(lambda: self._outstanding == 0)
            await trio.lowlevel.checkpoint_if_cancelled()  # switched off in this very moment: leave() has taken over
            self._release_held()
            await self._changed.wait_until(lambda: not self.ledger)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._release_held()
        if self._outstanding or self.ledger:
            await self._end_work(deadline)
        self._drain = self._drained_so_far(
            receives_unlanded=self._outstanding, unsettled=tuple(entry.message.id for entry in self.ledger)
        )
        self._draining = False
        return self._drain_error()

    async def _end_work(self, deadline: float) -> None:
        """The time for the work is over: cancel it, release it, and leave the rest of the time to the settlement."""
        unfinished = [entry for entry in self.ledger if entry.undecided]
        self._drain = self._drained_so_far(timed_out=tuple(entry.message.id for entry in unfinished))
        for entry in unfinished:
            if entry.scope is None:
                self.settlement.settle(entry, RELEASED)
            else:
                entry.scope.cancel(reason="drain timeout")
        with trio.CancelScope(deadline=deadline - self._config.reserve / 2):
            await self._changed.wait_until(lambda: not self.ledger.undecided)
        await trio.lowlevel.checkpoint_if_cancelled()
        stubborn = [entry for entry in self.ledger if entry.undecided]
        for entry in stubborn:
            self.settlement.settle(entry, RELEASED)
        if stubborn:
            self._drain = self._drained_so_far(stubborn=tuple(entry.message.id for entry in stubborn))
        with trio.CancelScope(deadline=deadline + 1):
            await self._changed.wait_until(lambda: not self.ledger and not self._outstanding)
        await trio.lowlevel.checkpoint_if_cancelled()

    def drain(self) -> Mapping[str, object]:
        """The figures of `Drain`, of the running drain so far or of the last one."""
        return asdict(self._drained_so_far() if self._draining else self._drain)

    def _drained_so_far(self, **changes: object) -> Drain:
        difference, moment = self.ledger.counts() - self._drain_began, trio.current_time()
        now = {name: getattr(self._drain, name) for name in Drain.__slots__}
        now.update(
            completed=difference.processed,
            failed=difference.failed,
            released=difference.released,
            rejected=difference.rejected,
            lost=difference.lost,
            lost_ids=tuple(self._drain_lost),
            receives_brought=difference.received,
            deferred={id_: round(at - moment, 3) for id_, at in self.ledger.deferred(moment).items()},
        )
        return Drain(**{**now, **changes})

    def _drain_error(self) -> str | None:
        drain, parts = self._drain, []
        if drain.timed_out:
            parts.append(
                f"{_messages(drain.timed_out)} unfinished, cancelled and given back: {', '.join(drain.timed_out)}"
            )
        if drain.stubborn:
            parts.append(
                f"{_messages(drain.stubborn)} still running after the cancellation: {', '.join(drain.stubborn)}"
            )
        if drain.unsettled:
            parts.append(f"{_messages(drain.unsettled)} not confirmed by the queue: {', '.join(drain.unsettled)}")
        if drain.lost_ids:
            parts.append(f"{_messages(drain.lost_ids)} lost: {', '.join(drain.lost_ids)}")
        if drain.receives_unlanded:
            parts.append(f"{drain.receives_unlanded} receive(s) without an answer; what they bring will be given back")
        return "; ".join(parts) or None

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(
            counts=self.ledger.counts(),
            receiving=self._open,
            receives_outstanding=self._outstanding,
            received_once=self._received_once,
            last_message_at=self.ledger.last_received_at,
            recent_errors=tuple(self.ledger.errors),
            queue_error=self._queue_error,
            queue_error_since=self._queue_error_since,
        )

    # -- running --

    async def health(self) -> bool:
        """Whether the queue answers; asked at most once a second, and for no longer than 5 s."""
        return await self._probe.works()

    @property
    def probe_error(self) -> str | None:
        """What the queue said to the last `health()`, if that failed."""
        return self._probe.error

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends by cancellation, within `LAST_RELEASE` seconds, in which everything still held is released."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_far_side)
            async with trio.open_nursery() as self._work:
                self._work.start_soon(self._close_when_cancelled)
                self._work.start_soon(self._learn_about_queue)
                task_status.started()
                await self._run_intake()

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._open = False
            self._closing.set()

    async def _run_far_side(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope(shield=True) as bound:
            async with trio.open_nursery() as self._wire:
                self._wire.start_soon(self.settlement.run)
                self._wire.start_soon(self.heartbeat.run)
                task_status.started()
                await self._closing.wait()
                bound.deadline = trio.current_time() + LAST_RELEASE
                self.settlement.flush(True)
                # The work tasks are being cancelled and give back what they hold; those that ignore it lose it here.
                with trio.move_on_after(LAST_RELEASE / 2):
                    await self._changed.wait_until(lambda: not self.ledger.undecided)
                for entry in [entry for entry in self.ledger if entry.undecided]:
                    self.settlement.settle(entry, RELEASED)
                await self._changed.wait_until(lambda: not self.ledger and not self._outstanding)
                self._wire.cancel_scope.cancel(reason="everything is settled")
        if self.ledger or self._outstanding:
            log.warning(
                "stopped before everything was settled; these messages become visible when their lease ends",
                message_ids=[entry.message.id for entry in self.ledger],
                receives_without_answer=self._outstanding,
            )

    async def _learn_about_queue(self) -> None:
        """Keep the redrive policy known: it decides what may be released without ending in the dead-letter queue."""
        failures = 0
        while True:
            try:
                await self._queue.attributes()
            except QueueError as error:
                failures += 1
                if failures == 1:
                    log.warning("the queue's redrive policy could not be read", error=str(error))
                await trio.sleep(backoff(failures, first=1, cap=60, rng=self._rng))
            else:
                failures = 0
                await trio.sleep(LEARN_EVERY)

    # -- intake --

    async def _run_intake(self) -> None:
        while True:
            await self._room.wait_until(lambda: self._open)
            with trio.CancelScope() as self._intake:
                while True:
                    await self._room.wait(self._receive_if_there_is_room)

    def _receive_if_there_is_room(self) -> float | None:
        """Start every receive that the free places justify; returns when to look again, if that is a matter of time."""
        now, batch = trio.current_time(), self._config.full_batch
        while self._open:
            if now < self._pause_until:
                return self._pause_until
            free = self._config.concurrency - len(self.ledger) - self._places_asked_for
            if free < 1 or self._outstanding >= self._receivers_wanted:
                return None
            if free < batch and now < self._last_full_at + LINGER:
                return (
                    self._last_full_at + LINGER
                )  # the queue is full: a moment later there is more room for one receive
            limit = min(free, batch)
            self._outstanding += 1
            self._places_asked_for += limit
            assert self._wire is not None
            self._wire.start_soon(self._receive, limit)
        return None

    async def _receive(self, limit: int) -> None:
        """One receive, from its sending to its landing. Never cancelled by a drain."""
        config, sent = self._config, trio.current_time()
        try:
            # No checkpoint may come between the answer and the ledger.
            deliveries = await self._queue.receive(
                limit=limit, wait=config.effective_wait, visibility=config.visibility
            )
        except QueueError as error:
            self._receive_failed(error)
        else:
            self._landed(deliveries, sent, limit)
        finally:
            self._outstanding -= 1
            self._places_asked_for -= limit
            self._changed.ring()
            self._room.ring()

    def _receive_failed(self, error: QueueError) -> None:
        self._failures += 1
        self._receivers_wanted = 1
        now = trio.current_time()
        first = self._config.poll_interval
        self._pause_until = now + backoff(self._failures, first=first, cap=max(first, BACKOFF_CAP), rng=self._rng)
        if self._queue_error is None:
            self._queue_error_since = now
        if self._queue_error != str(error):
            log.warning("receiving failed, trying again", error=str(error))
        self._queue_error = str(error)

    def _landed(self, deliveries: Sequence[Received], sent: float, limit: int) -> None:
        now, config = trio.current_time(), self._config
        if self._queue_error is not None and self._queue_error_since is not None:
            log.info("receiving works again", after_seconds=round(now - self._queue_error_since, 1))
        self._queue_error = self._queue_error_since = None
        self._failures = 0
        self._received_once = True
        if len(deliveries) >= limit:
            if limit == config.full_batch:
                self._receivers_wanted = min(self._receivers_wanted + 1, MAX_RECEIVERS)
            self._last_full_at = now
        else:
            self._receivers_wanted = 1
            self._last_full_at = -math.inf
        if not deliveries:
            # Without long polling there is a pause after nothing; and no queue that cuts our polls short makes a hot loop.
            pause_from = now if config.effective_wait == 0 else sent
            self._pause_until = max(
                self._pause_until, pause_from + min(config.poll_interval, config.effective_wait or math.inf)
            )
        for delivery in deliveries:
            self._take(delivery, sent)

    def _take(self, delivery: Received, sent: float) -> None:
        """A delivery enters the ledger, and its way is chosen."""
        message_id = delivery.message.id
        if delivery.receipt in self.ledger:
            log.warning("the queue handed out one receipt handle twice", message_id=message_id)
            return
        twin = self.ledger.at_work_on(message_id)
        entry = self.ledger.add(delivery, received_at=sent, lease_until=sent + self._config.visibility)
        self.heartbeat.cover(entry)
        if self.ledger.is_finished(message_id):
            log.info("a message that was processed before has come back and is deleted", message_id=message_id)
            self.settlement.settle(entry, PROCESSED)
        elif twin is not None:
            # A second copy of what is being worked on (standard queues deliver at least once): it shares the first one's fate.
            self._twins.setdefault(message_id, []).append(entry)
        elif entry.lease_until <= trio.current_time():
            self.settlement.settle(entry, RELEASED)  # the answer took longer than the lease
        elif self._open or (self._draining and self._release_would_dead_letter(entry)):
            self._start(entry)
        elif self._draining:
            self._held.append(entry)
        else:
            self.settlement.settle(entry, RELEASED)  # landed after the drain's end

    def _release_would_dead_letter(self, entry: Entry) -> bool:
        limit = self._queue.max_receive_count
        if limit is None or entry.message.receive_count < limit:
            return False
        group = entry.message.group_id
        return not (self._config.fifo and any(held.message.group_id == group for held in self._held))

    def _release_held(self) -> None:
        """What landed during the drain goes back, all receives having landed or run out of time."""
        held, self._held = self._held, []
        for entry in held:
            if entry.undecided:
                self.settlement.settle(entry, RELEASED)

    # -- work --

    def _start(self, entry: Entry) -> None:
        assert self._work is not None
        group = entry.message.group_id
        if not self._config.fifo or group is None:
            self._work.start_soon(self._work_on, entry)
        elif group in self._groups:
            self._groups[group].append(entry)
        else:
            self._groups[group] = deque([entry])
            self._work.start_soon(self._work_on_group, group)

    async def _work_on_group(self, group: str) -> None:
        """Message after message. One that is not finished lets none of its successors pass: they go back too."""
        line = self._groups[group]
        try:
            while line:
                entry = line[0]
                if entry.undecided:
                    await self._work_on(entry)
                if entry.ended is None:
                    entry.done = trio.Event()
                    await entry.done.wait()
                if entry.ended not in (Outcome.PROCESSED, Outcome.REJECTED):
                    break
                line.popleft()
        finally:
            del self._groups[group]
            for entry in line:
                if entry.undecided:
                    self.settlement.settle(entry, RELEASED)

    async def _work_on(self, entry: Entry) -> None:
        if not entry.undecided:
            return
        message = entry.message
        structlog.contextvars.bind_contextvars(message_id=message.id)
        error: BaseException | None = None
        try:
            with trio.CancelScope() as entry.scope:
                try:
                    await self._process(message)
                except trio.Cancelled:
                    raise
                except BaseException as raised:
                    error = _without_cancellation(raised)
            # From here to the settlement there is no checkpoint: a finished message cannot be released by a cancellation.
            if entry.undecided:
                if entry.scope.cancelled_caught:
                    self.settlement.settle(entry, RELEASED)
                elif error is None:
                    self.settlement.settle(entry, PROCESSED)
                else:
                    self._settle_raised(entry, error)
        finally:
            if entry.undecided:  # the whole worker is cancelled
                self.settlement.settle(entry, RELEASED)

    def _settle_raised(self, entry: Entry, error: BaseException) -> None:
        match _single(error):
            case Retry() as retry:
                self.settlement.settle(
                    entry, Fate(Action.CHANGE_VISIBILITY, Outcome.RELEASED, after=math.ceil(retry.after))
                )
                log.info("message will be retried", after_seconds=retry.after, reason=str(retry))
            case Reject() as reject:
                self.ledger.note_error(entry.message.id, f"rejected: {reject.reason}")
                log.warning("message rejected", reason=reject.reason)
                self.settlement.settle(entry, Fate(Action.DEAD_LETTER, Outcome.REJECTED, reason=reject.reason))
            case other:
                self.ledger.note_error(entry.message.id, f"{type(other).__name__}: {other}")
                log.error("message failed", receive_count=entry.message.receive_count, exc_info=error)
                self.ledger.end(entry, Outcome.FAILED)

    # -- ends --

    def _lose(self, entry: Entry, why: str) -> None:
        """The lease is over while the work goes on: stop the work, touch the message no more."""
        log.warning("message lost", message_id=entry.message.id, why=why)
        self.ledger.note_error(entry.message.id, f"lost: {why}")
        self.ledger.end(entry, Outcome.LOST)
        if entry.scope is not None:
            entry.scope.cancel(reason="lease lost")

    def _on_decided(self) -> None:
        self._changed.ring()

    def _on_end(self, entry: Entry) -> None:
        if self._draining and entry.ended is Outcome.LOST:
            self._drain_lost.append(entry.message.id)
        if entry.message.id in self._twins:
            self._end_twins(entry)
        self._changed.ring()
        self._room.ring()

    def _end_twins(self, ended: Entry) -> None:
        """The first copy of a message has ended: the others share its fate, or one of them takes its place."""
        twins = [twin for twin in self._twins.pop(ended.message.id) if twin.undecided]
        if not twins:
            return
        match ended.ended:
            case Outcome.PROCESSED | Outcome.REJECTED:
                for twin in twins:
                    self.settlement.settle(twin, PROCESSED)
            case Outcome.FAILED:
                for twin in twins:
                    self.ledger.end(twin, Outcome.FAILED)
            case _:
                for twin in twins:
                    self.settlement.settle(twin, ended.fate or RELEASED)


def _single(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one (every Trio nursery wraps what its tasks raise), else the group itself."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        if len(inner.exceptions) != 1:
            return error
        inner = inner.exceptions[0]
    return inner


def _without_cancellation(raised: BaseException) -> BaseException:
    """What the processor raised, without the cancellations that Trio put beside it; those are raised on."""
    if isinstance(raised, BaseExceptionGroup):
        cancelled, rest = raised.split(trio.Cancelled)
        if cancelled is not None:
            raise cancelled
        assert rest is not None
        return rest
    return raised


def _messages(ids: Sequence[str]) -> str:
    return "1 message" if len(ids) == 1 else f"{len(ids)} messages"
