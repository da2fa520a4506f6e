"""The worker: receives messages, runs the processor on each, and can be drained without stranding one.

Three nested scopes, of which a drain closes the first, gives the second a deadline, and ends the third last:

1. *Intake* (`intake.py`): the loop that starts receives. Maintenance cancels this loop, never a receive.
2. *Work* (`tasks.py`): one task per message, each in a cancel scope of its own.
3. *Far side*: receives on the wire, heartbeats (`leases.py`) and settlement (`settlement.py`). It outlives the other two,
   shielded from their cancellation and bounded by a deadline.

Which way a delivery goes that has landed is decided in `deliveries.py`. What is in flight stands in the ledger (`ledger.py`) and
nowhere else. Nothing here knows SQS, HTTP, etcd or the wall clock.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import structlog
import trio

from svc.backoff import backoff
from svc.consumer.breaker import Breaker
from svc.consumer.breaker_state import BreakerConfig, BreakerSnapshot
from svc.consumer.deliveries import Deliveries
from svc.consumer.drain import DrainTally
from svc.consumer.intake import Intake, IntakeConfig
from svc.consumer.leases import Heartbeat
from svc.consumer.ledger import RELEASED, Counts, Entry, ErrorRecord, Ledger, Outcome
from svc.consumer.observer import UNOBSERVED, Observer
from svc.consumer.probe import Probe
from svc.consumer.queue import Queue, QueueError, Received
from svc.consumer.settlement import Settlement
from svc.consumer.tasks import MessageTasks
from svc.defects import Defects, PartFailed
from svc.processors import Process, unstoppable
from svc.wakeup import WakeUp

__all__ = ["LAST_RELEASE", "Worker", "WorkerConfig", "WorkerStatistics"]

log = structlog.get_logger(__name__)

LAST_RELEASE = 2.0
"""Seconds that a cancelled worker takes at most to release what it still holds (SPEC, second signal)."""

LATE = 1.0
"""Seconds that a drain may outlast its deadline, for settlement calls that are on the wire."""

LEARN_EVERY = 300.0
"""Seconds between two looks at the queue's redrive policy."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the worker needs of the settings; times in seconds. Ranges: see `settings.py`."""

    concurrency: int = 100
    batch: int = 10
    wait: int = 20
    visibility: int = 30
    poll_interval: float = 1.0
    drain_timeout: float = 30.0
    receivers: int = 10
    """Receives on the wire at once, under load."""
    linger: float = 0.1
    """How long a settlement may wait for company."""
    fifo: bool = False
    most_bytes: int = 268_435_456
    """Memory that the bodies in flight may take."""
    breaker: BreakerConfig | None = None
    """None: no circuit breaker."""
    retry_backoff: tuple[float, float] | None = None
    """How long a failed message stays invisible: after its first receive, and at most. None: until its lease ends."""

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
class WorkerStatistics:
    """A snapshot: all figures are of the same moment."""

    counts: Counts
    receiving: bool
    """The intake is open."""
    receives_outstanding: int
    batches: Mapping[str, int]
    """Settlement batches that have left, by the reason why: `size`, `time` or `flush`."""
    received_once: bool
    """A receive has been answered since the start."""
    last_message_at: float | None
    """Trio time."""
    recent_errors: tuple[ErrorRecord, ...]
    queue_error: str | None
    """Why receives fail at present."""
    queue_error_since: float | None
    """Trio time."""
    breaker: BreakerSnapshot | None
    """None: switched off."""


class Worker:
    """A `maintenance.Handler` named `sqs`."""

    name = "sqs"

    def __init__(
        self,
        queue: Queue,
        process: Process,
        config: WorkerConfig,
        *,
        observer: Observer = UNOBSERVED,
        defects: Defects | None = None,
        may_receive: Callable[[], bool] = lambda: True,
        rng: random.Random | None = None,
    ) -> None:
        rng = rng or random.Random()
        self._observer = observer
        self._defects = defects = defects or Defects()
        self._queue = queue
        self._process = process
        self._config = config
        self._rng = rng
        self._changed = WakeUp()
        self._closing = trio.Event()
        self._life = trio.CancelScope()
        self._probe = Probe(queue.attributes, defects)
        self._nursery: trio.Nursery | None = None
        self.ledger = Ledger(on_end=self._on_end, on_decided=self._on_decided)
        self.settlement = Settlement(
            queue,
            self.ledger,
            observer=observer,
            linger=0
            if config.fifo
            else config.linger,  # the next message of a group waits for the delete of the one before
            more_may_come=self._more_may_come,
            defects=defects,
            rng=rng,
        )
        self.breaker = Breaker(config.breaker, self.ledger, rng)
        self.tasks = MessageTasks(
            process,
            self.ledger,
            self.settlement,
            observer=observer,
            fifo=config.fifo,
            retry_backoff=config.retry_backoff,
            had_last_receive=self._had_its_last_receive,
            on_verdict=self._verdict,
            defects=defects,
            rng=rng,
        )
        self.tally = DrainTally(self.ledger)
        self.deliveries = Deliveries(
            self.ledger,
            self.settlement,
            self.tally,
            fifo=config.fifo,
            receiving=lambda: self.intake.is_open,
            closing=self._closing.is_set,
            start=self._start,
            had_its_last_receive=self._had_its_last_receive,
            lose=self._lose,
        )
        self.heartbeat = Heartbeat(
            queue,
            self.ledger,
            visibility=config.visibility,
            on_lost=self._lose,
            on_landed=self.settlement.look_again,
            observer=observer,
            defects=defects,
            rng=rng,
        )
        self.intake = Intake(
            queue,
            IntakeConfig(
                places=config.concurrency,
                batch=config.batch,
                wait=config.effective_wait,
                visibility=config.visibility,
                poll_interval=config.poll_interval,
                receivers=config.receivers,
                most_bytes=config.most_bytes,
            ),
            in_flight=lambda: len(self.ledger),
            bytes_in_flight=lambda: self.ledger.bytes,
            land=self._land,
            on_change=self._changed.notify,
            may_begin=may_receive,
            grants=self.breaker.grants,
            defects=defects,
            rng=rng,
        )

    # -- the handler's side: what the manager of the maintenance calls --

    def enter(self) -> None:
        """Receive nothing new from this moment on."""
        self.intake.close("maintenance or stop")
        self.settlement.flush(True)
        self.deliveries.hold()
        self.tally.begin(receives_outstanding=self.intake.outstanding)

    def leave(self) -> None:
        """Receive again. What landed during the drain and was to be released is processed instead."""
        self.tally.end(receives_unlanded=self.intake.outstanding)
        self.settlement.flush(False)
        self.deliveries.start_held()
        self.breaker.resume()
        self.intake.open()

    async def wait_drained(self, deadline: float) -> str | None:
        """Let receives land and work finish, cancel and release what is unfinished when only the reserve is left before
        `deadline` (Trio time), and return None when all went well, else what did not, with message ids.

        Ends at most `LATE` seconds after the deadline. A cancelled wait leaves everything consistent: what was begun goes on.
        """
        with trio.CancelScope(deadline=deadline - self._config.reserve):
            # First the receives land, then what they brought is released: a receive of our own that is still out would
            # otherwise take the released messages back, and each receive counts towards the dead-letter queue.
            await self._changed.wait_until(lambda: self.intake.outstanding == 0)
            await trio.lowlevel.checkpoint_if_cancelled()  # switched off in this very moment: leave() has taken over
            self.deliveries.release_held()
            await self._changed.wait_until(lambda: not self.ledger)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.intake.outstanding or self.ledger:
            self.deliveries.release_held()
            await self._end_work(deadline)
        return self.tally.end(receives_unlanded=self.intake.outstanding).error()

    async def _end_work(self, deadline: float) -> None:
        """The time for the work is over: cancel it, release it, and leave the rest of the time to the settlement."""
        unfinished = [entry for entry in self.ledger if entry.is_undecided()]
        last_receive = [entry for entry in unfinished if self._had_its_last_receive(entry)]
        self.tally.note(timed_out=unfinished, next_receive_dead_letters=last_receive)
        for entry in unfinished:
            if entry.scope is None:
                self.settlement.settle(entry, RELEASED)
            else:
                entry.scope.cancel(reason="drain timeout")
        with trio.CancelScope(deadline=deadline - self._config.reserve / 2):
            await self._changed.wait_until(lambda: not self.ledger.undecided)
        await trio.lowlevel.checkpoint_if_cancelled()
        # The task of a message that a thread works on ends at once when it is cancelled; the thread goes on.
        theirs = {entry.message.id for entry in unfinished}
        threads = {id_: thread for id_, thread in unstoppable(self._process).items() if id_ in theirs}
        self.tally.note(stubborn=self.deliveries.release_undecided(), threads=threads)
        with trio.CancelScope(deadline=deadline + LATE):
            await self._changed.wait_until(lambda: not self.ledger and not self.intake.outstanding)
        await trio.lowlevel.checkpoint_if_cancelled()

    def drain(self) -> Mapping[str, object]:
        """The figures of `drain.Drain`, of the running drain so far or of the last one."""
        return asdict(self.tally.so_far())

    async def health(self) -> bool:
        """Whether the queue answers; asked at most once a second, and for no longer than 5 s."""
        return await self._probe.works()

    @property
    def probe_error(self) -> str | None:
        """What the queue said to the last `health()`, if that failed."""
        return self._probe.error

    @property
    def probe_trouble(self) -> tuple[str | None, float | None]:
        """That, and since when (Trio time)."""
        return self._probe.error, self._probe.error_since

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(
            counts=self.ledger.counts(),
            receiving=self.intake.is_open,
            receives_outstanding=self.intake.outstanding,
            batches=dict(self.settlement.left),
            received_once=self.intake.received_once,
            last_message_at=self.ledger.last_received_at,
            recent_errors=tuple(self.ledger.errors),
            queue_error=self.intake.error,
            queue_error_since=self.intake.error_since,
            breaker=self.breaker.snapshot(),
        )

    # -- running --

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends by cancellation, or by the failure of one of its parts (`PartFailed`, in groups), within `LAST_RELEASE` seconds,
        in which everything still held is released."""
        async with trio.open_nursery() as nursery:
            self._life = nursery.cancel_scope
            try:
                wire = await nursery.start(self._run_far_side)
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._close_when_cancelled)
                    self._nursery.start_soon(self._defects.guard, "queue_attributes", self._learn_about_queue)
                    task_status.started()
                    await self._defects.guard("intake", self.intake.run, wire)
            finally:
                self._closing.set()  # cancelled while it started: the far side waits for this behind its shield

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.intake.close("the worker is cancelled")
            self._closing.set()

    async def _run_far_side(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        # Cancelled before it began: behind the shield `started()` could not tell (Trio keeps a cancelled start with its caller).
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True) as bound:
            async with trio.open_nursery() as wire:
                # None of what runs in there may fail: it would take the others with it, and nothing could be released.
                failures: list[PartFailed] = []
                wire.start_soon(self._run_settlement, wire, failures)
                wire.start_soon(self._run_heartbeat, wire, failures)
                task_status.started(wire)
                await self._closing.wait()
                bound.deadline = trio.current_time() + LAST_RELEASE
                self.settlement.flush(True)
                self.deliveries.release_held()
                # The message tasks are being cancelled and give back what they hold; those that ignore it lose it here.
                with trio.move_on_after(LAST_RELEASE / 2):
                    await self._changed.wait_until(lambda: not self.ledger.undecided)
                self.deliveries.release_undecided()
                await self._changed.wait_until(lambda: not self.ledger and not self.intake.outstanding)
                wire.cancel_scope.cancel(reason="everything is settled")
        if self.ledger or self.intake.outstanding:
            log.warning(
                "stopped before everything was settled; these messages become visible when their lease ends",
                message_ids=[entry.message.id for entry in self.ledger],
                receives_without_answer=self.intake.outstanding,
            )
        for failed in failures:
            raise failed

    async def _run_heartbeat(self, wire: trio.Nursery, failures: list[PartFailed]) -> None:
        try:
            await self._defects.guard("heartbeat", self.heartbeat.run, wire)
        except PartFailed as failed:
            failures.append(failed)
            self._life.cancel(reason="the heartbeat has failed")

    async def _run_settlement(self, wire: trio.Nursery, failures: list[PartFailed]) -> None:
        try:
            await self._defects.guard("settlement", self.settlement.run, wire)
        except PartFailed as failed:
            failures.append(failed)
            self.settlement.run_out(wire)
            self._life.cancel(reason="the settlement has failed")

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
            except Exception as defect:
                failures += 1
                self._defects.note("queue_attributes", defect)
            else:
                failures = 0
            pause = backoff(failures, first=1, cap=60, rng=self._rng) if failures else LEARN_EVERY
            await trio.sleep(pause)

    # -- a delivery's landing and end --

    def _land(self, deliveries: Sequence[Received], sent: float) -> None:
        """A receive has landed: enter what it brought, and have the way of each chosen. No checkpoint."""
        landed = []
        spoilt: set[str | None] = set()  # FIFO groups of which one could not be routed: nobody passes it
        for delivery in deliveries:
            if delivery.receipt in self.ledger:
                log.warning("the queue handed out one receipt handle twice", message_id=delivery.message.id)
                continue
            twin = self.ledger.at_work_on(delivery.message.id)
            entry = self.ledger.add(delivery, received_at=sent, lease_until=sent + self._config.visibility)
            landed.append(entry)
            self._observer.landed(entry)
            if self._config.fifo and delivery.message.group_id in spoilt:
                self.settlement.settle(entry, RELEASED)
                continue
            try:
                self.deliveries.route(entry, twin)
            except Exception as defect:
                spoilt.add(delivery.message.group_id)
                self._defects.note("receive", defect)
                if entry.is_undecided():
                    self.tasks.fail(entry, defect)
        self.heartbeat.cover(landed)

    def _start(self, entry: Entry) -> None:
        assert self._nursery is not None
        self.tasks.start(entry, self._nursery)

    def _had_its_last_receive(self, entry: Entry) -> bool:
        limit = self._queue.max_receive_count
        return limit is not None and entry.message.receive_count >= limit

    def _verdict(self, entry: Entry, failed: bool) -> None:
        self.breaker.verdict(entry, failed=failed)
        self.intake.look_again()

    def _lose(self, entry: Entry, why: str) -> None:
        """The lease is over: stop the work if it has begun, touch the message no more."""
        log.warning("message lost", message_id=entry.message.id, error=why)
        self.ledger.note_error(entry.message.id, f"lost: {why}")
        self.ledger.end(entry, Outcome.LOST)
        if entry.scope is not None:
            entry.scope.cancel(reason="lease lost")

    def _more_may_come(self) -> bool:
        """Whether a settlement that waits a little may get company: something is being worked on, or the last receive has brought
        something just now and another one is out."""
        if self.ledger.undecided:
            return True
        return self.intake.is_asking and trio.current_time() < self.intake.last_brought_at + self._config.linger

    def _on_decided(self, entry: Entry) -> None:
        self.heartbeat.uncover(entry)
        self.deliveries.decided(entry)
        self._changed.notify()

    def _on_end(self, entry: Entry) -> None:
        self.heartbeat.uncover(entry)
        self._observer.ended(entry)
        if entry.ended is Outcome.LOST:
            self.tally.note_lost(entry)
        self.deliveries.ended(entry)
        self._changed.notify()
        self.intake.look_again()
