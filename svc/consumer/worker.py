"""The worker: receives messages, runs the processor on each, and can be drained without stranding one.

Three nested scopes, of which a drain closes the first, gives the second a deadline, and ends the third last:

1. *Intake* (`intake.py`): the loop that starts receives. Maintenance cancels this loop, never a receive.
2. *Work* (`tasks.py`): one task per message, each in a cancel scope of its own.
3. *Far side*: receives on the wire, heartbeats (`leases.py`) and settlement (`settlement.py`). It outlives the other two,
   shielded from their cancellation and bounded by a deadline.

The parts are put together here, in the order of a message's journey; no message passes this file. What is in flight stands in the
ledger (`ledger.py`) and nowhere else. Nothing here knows SQS, HTTP, etcd or the wall clock.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import structlog
import trio

from svc.consumer.breaker import Breaker
from svc.consumer.breaker_state import BreakerSnapshot
from svc.consumer.config import WorkerConfig
from svc.consumer.deliveries import Deliveries
from svc.consumer.drain import DrainTally
from svc.consumer.fates import Fates
from svc.consumer.holder import WorkerHolder
from svc.consumer.intake import Intake
from svc.consumer.leases import Heartbeat
from svc.consumer.ledger import RELEASED, Counts, ErrorRecord, Ledger
from svc.consumer.observer import UNOBSERVED, Observer
from svc.consumer.probe import Probe
from svc.consumer.queue import Queue, had_last_receive
from svc.consumer.settlement import Settlement
from svc.consumer.tasks import MessageTasks
from svc.defects import Defects, PartFailed
from svc.processors import AnyProcess, Batching, Now, UnusableProcessor, threads_of, unit_of_work_of, wall_clock

__all__ = ["LAST_RELEASE", "Worker", "WorkerConfig", "WorkerStatistics"]

log = structlog.get_logger(__name__)

LAST_RELEASE = 2.0
"""Seconds that a cancelled worker takes at most to release what it still holds (SPEC, second signal)."""

LATE = 1.0
"""Seconds that a drain may outlast its deadline, for settlement calls that are on the wire."""


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
    threads: Mapping[str, str]
    """Message id → thread, of those that go on although their message was given back."""
    duplicates: int
    """Of those processed: deleted without a call of the processor, whose effects had been committed before (`exactly_once`)."""


class Worker:
    """A `maintenance.Handler` named `sqs`."""

    name = "sqs"
    after: tuple[str, ...] = ()

    def __init__(
        self,
        queue: Queue,
        process: AnyProcess,
        config: WorkerConfig,
        *,
        observer: Observer = UNOBSERVED,
        defects: Defects | None = None,
        may_receive: Callable[[], bool] = lambda: True,
        rng: random.Random | None = None,
        now: Now = wall_clock,
    ) -> None:
        rng = rng or random.Random()
        if isinstance(process, Batching) and process.size > config.concurrency:
            raise UnusableProcessor(
                f"its decorator says batch={process.size}, but MAX_CONCURRENCY={config.concurrency} is how many messages may be "
                "in flight: raise MAX_CONCURRENCY (twice the batch lets one gather while another is at work)"
            )
        self._defects = defects = defects or Defects()
        self._queue = queue
        self._config = config
        self._quiet_asked = False
        self._closing = trio.Event()
        self._life = trio.CancelScope()
        self._probe = Probe(queue, defects, rng, delete_rejected=config.delete_rejected)
        # In the order of a message's journey; what is met on it first is built last where it needs those behind it.
        self.ledger = ledger = Ledger()
        self.threads = threads_of(process)
        self.threads.changed = ledger.changed  # a drain waits for both
        self.threads.on_finished = ledger.remember
        self.breaker = Breaker(config.breaker, ledger, rng)
        self.intake = Intake(queue, config, ledger, self.breaker, may_begin=may_receive, defects=defects, rng=rng)
        # On a FIFO queue the next message of a group waits for the delete of the one before.
        linger = 0 if config.fifo else config.linger
        self.settlement = Settlement(queue, ledger, self.intake, linger=linger, defects=defects, rng=rng)
        self.heartbeat = Heartbeat(
            queue,
            ledger,
            self.settlement,
            visibility=config.visibility,
            observer=observer,
            defects=defects,
            rng=rng,
        )
        self.fates = Fates(
            ledger, self.settlement, self.intake, queue, fifo=config.fifo, retry_backoff=config.retry_backoff, rng=rng
        )
        if not config.delete_rejected:
            self.settlement.keep_rejected = self.fates.keep_rejected
        self.tasks = MessageTasks(
            process,
            ledger,
            self.settlement,
            self.intake,
            queue,
            self.fates,
            self.threads,
            observer=observer,
            fifo=config.fifo,
            places=config.concurrency,
            defects=defects,
        )
        self.tally = DrainTally(ledger, self.threads)
        self.holder = WorkerHolder(ledger, queue, now)
        self._unit_of_work = unit_of_work_of(process)
        if self._unit_of_work is not None:
            self._unit_of_work.is_ours = self.holder.is_ours
        self.deliveries = Deliveries(
            ledger,
            self.heartbeat,
            self.tasks,
            self.fates,
            self.settlement,
            self.tally,
            queue,
            self.holder,
            visibility=config.visibility,
            fifo=config.fifo,
            defects=defects,
        )
        ledger.listen(self.heartbeat, observer, self.tasks, self.deliveries, self.intake)

    # -- the handler's side: what the manager of the maintenance calls --

    def enter(self) -> None:
        """Receive nothing new from this moment on."""
        self.intake.close("maintenance or stop")
        self.settlement.flush(True)
        self.tasks.flush(True)
        self.deliveries.hold()
        self.holder.shut_down()
        self.tally.begin(receives_outstanding=self.intake.outstanding)

    def leave(self) -> None:
        """Receive again. What landed during the drain and was to be released is processed instead."""
        self.tally.end(receives_unlanded=self.intake.outstanding)
        self.settlement.flush(False)
        self.tasks.flush(False)
        self.holder.go_on()
        self.deliveries.resume()
        self.breaker.resume()
        self.intake.open()

    def land_soon(self) -> None:
        self.intake.land_soon()

    def slept(self, seconds: float) -> None:
        """The machine has slept for so many seconds, which Trio's clock does not count. What was lost by that is lost before
        anything else is decided. Does not wait."""
        self.ledger.slept(seconds)
        self.intake.slept(seconds)
        self.heartbeat.slept(seconds)
        self.settlement.look_again()

    def ask_quiet(self, asked: bool) -> None:
        if asked != self._quiet_asked:
            self._quiet_asked = asked
            self.ledger.changed.notify()

    async def wait_quiet(self) -> None:
        """Return when no processor is at work and none will be called before `leave()`. Receives may be on the wire: what they
        bring goes back, even in its last receive. So where the redrive policy counts receives, this comes only with the end of
        the drain, unless it was asked for (`ask_quiet`)."""
        await self.ledger.changed.wait_until(self._becomes_quiet)

    def _becomes_quiet(self) -> bool:
        at_work = self.ledger.undecided != self.deliveries.held or self.tasks.running or self.threads.left
        if at_work or not (self._quiet_asked or self._queue.max_receive_count is None):
            return False
        self.deliveries.become_quiet()
        return True

    async def wait_drained(self, deadline: float) -> str | None:
        """Let receives land and work finish, cancel and release what is unfinished when only the reserve is left before
        `deadline` (Trio time), and return None when all went well, else what did not, with message ids.

        Ends at most `LATE` seconds after the deadline. A cancelled wait leaves everything consistent: what was begun goes on.
        """
        with trio.CancelScope(deadline=deadline - self._config.reserve):
            # First the receives land, then what they brought is released: a receive of our own that is still out would
            # otherwise take the released messages back, and each receive counts towards the dead-letter queue.
            await self.intake.changed.wait_until(lambda: self.intake.outstanding == 0)
            await trio.lowlevel.checkpoint_if_cancelled()  # switched off in this very moment: leave() has taken over
            self.deliveries.release_held()
            # A processor that ignored the loss of its lease is at work too, and so is a thread that was left behind.
            await self.ledger.changed.wait_until(
                lambda: not self.ledger and not self.tasks.running and not self.threads.left
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.intake.outstanding or self.ledger or self.tasks.running:
            self.deliveries.release_held()
            await self._end_work(deadline)
        return self.tally.end(receives_unlanded=self.intake.outstanding).error()

    async def _end_work(self, deadline: float) -> None:
        """The time for the work is over: cancel it, release it, and leave the rest of the time to the settlement."""
        unfinished = [entry for entry in self.ledger if entry.is_undecided]
        last_receive = [entry for entry in unfinished if had_last_receive(self._queue, entry.message)]
        self.tally.note(timed_out=unfinished, next_receive_dead_letters=last_receive)
        for entry in unfinished:
            if entry.scope is None:
                self.settlement.settle(entry, RELEASED)
            else:
                entry.scope.cancel(reason="drain timeout")
        with trio.CancelScope(deadline=deadline - self._config.reserve / 2):
            await self.ledger.changed.wait_until(lambda: not self.ledger.undecided)
        await trio.lowlevel.checkpoint_if_cancelled()
        stubborn = dict.fromkeys([*self.deliveries.release_undecided(), *self.tasks.running])
        self.tally.note(stubborn=list(stubborn))
        with trio.CancelScope(deadline=deadline + LATE):
            await self._everything_settled()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _everything_settled(self) -> None:
        while self.ledger or self.intake.outstanding:
            await self.intake.changed.wait_until(lambda: not self.intake.outstanding)
            # A copy that has landed by now waits for the first delivery, whose call may stay without an answer for longer.
            self.deliveries.release_undecided()
            await self.ledger.changed.wait_until(lambda: not self.ledger)

    def drain(self) -> Mapping[str, object]:
        """The figures of `drain.Drain`, of the running drain so far or of the last one."""
        return asdict(self.tally.so_far(receives_unlanded=self.intake.outstanding))

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
            threads=self.threads.left_behind,
            duplicates=0 if self._unit_of_work is None else self._unit_of_work.duplicates,
        )

    # -- running --

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends by cancellation, or by the failure of one of its parts (`PartFailed`, in groups), within `LAST_RELEASE` seconds,
        in which everything still held is released."""
        self.holder.start()
        async with trio.open_nursery() as nursery:
            self._life = nursery.cancel_scope
            try:
                wire = await nursery.start(self._run_far_side)
                async with trio.open_nursery() as working:
                    self.tasks.run_in(working)
                    working.start_soon(self._close_when_cancelled)
                    working.start_soon(self._defects.guard, "queue_attributes", self._probe.keep_policy_known)
                    task_status.started()
                    await self._defects.guard("intake", self.intake.run, wire, self.deliveries)
            finally:
                self._close()  # cancelled while it started: the far side waits for this behind its shield

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.intake.close("the worker is cancelled")
            self._close()

    def _close(self) -> None:
        self.deliveries.close()
        self.holder.shut_down()
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
                try:
                    await self._closing.wait()
                    bound.deadline = trio.current_time() + LAST_RELEASE
                    self.settlement.flush(True)
                    self.deliveries.release_held()
                    # The message tasks are being cancelled and give back what they hold; those that ignore it lose it here.
                    with trio.move_on_after(LAST_RELEASE / 2):
                        await self.ledger.changed.wait_until(lambda: not self.ledger.undecided)
                    self.deliveries.release_undecided()
                    await self._everything_settled()
                    wire.cancel_scope.cancel(reason="everything is settled")
                finally:
                    self.settlement.close()  # `wire` takes no more calls
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
