"""What is seen of a run: every call of every instance at its queue, every run of the processor, every event at the server.

A `Witness` is a Trio instrument: after each step of any task it reads what is new in the queue's history, keeps a model of who
holds which message (from the history alone, never from the service's ledger), and lets `invariants.py` look at it. It
changes nothing, and takes no part in the schedule.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from svc.consumer.queue import Queue, Received, Refusal
from svc.core import Core
from svc.processors import UNMARKED, Item, Message, Reject
from svc.testing import SimulatedQueue, SimulatedSwitch
from svc.testing.history import (
    Assigned,
    AssignedAgain,
    CallFailed,
    DeadLettered,
    Deleted,
    Event,
    Sent,
    Suspended,
    VisibilityChanged,
)
from svc.testing.service import SimulatedService
from svc.testing.threads import VirtualThreads

from .invariants import Invariants
from .old_receipts import TakenAway
from .schedule import Schedule

STEPS_AT_ONCE = 20_000
"""Steps of tasks without the time going on; far beyond what a schedule needs."""


def cancel_everything() -> None:
    """Cancel every nursery within the main task, behind shields too."""

    def cancel(task: trio.lowlevel.Task) -> None:
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                cancel(child)
            nursery.cancel_scope.cancel(reason="the schedule does not end")

    root = trio.lowlevel.current_root_task()
    assert root is not None
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            cancel(task)


@dataclass(slots=True)
class Hold:
    """Who holds a message at the server."""

    receipt: str
    until: float
    late: bool = False
    """So decided by a call that its client had given up already: no client can know of it."""


@dataclass(slots=True, eq=False)
class Running:
    """One run of the processor."""

    message_id: str
    receipt: str
    instance: "Instance"
    began: float
    until: float | None = None
    """When it ended, was cancelled, or died with its process."""
    ended: bool = False
    finished: bool = False
    """It succeeded or rejected."""
    batch: "tuple[Running, ...]" = ()
    """Those that are called together, this one included, in their order; none, if it was called alone."""
    settles: str | None = None
    """How this delivery has to be settled by what its processor did: delete or change_visibility; None: either is right."""
    known_until: float = math.inf
    """When it ended: until when its lease lasted, as far as its instance knew."""
    failed: bool = False
    """It raised something else (an error, `Retry`), and was not cancelled before."""


@dataclass(slots=True)
class Asked:
    """What one instance asked for one of its receipts."""

    kind: str | None = None
    """delete or change_visibility; None: only dead_letter so far."""
    first_at: float = 0.0
    confirmed: bool = False


@dataclass(slots=True, eq=False)
class Instance:
    """One instance of the service, as seen from outside."""

    number: int
    service: SimulatedService
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    fails: trio.Event = field(default_factory=trio.Event)
    """Set when one of its parts is to fail."""
    core: Core | None = None
    threads: VirtualThreads | None = None
    crashed: bool = False
    cancelled_at: float | None = None
    landed: dict[str, str] = field(default_factory=dict)
    """Receipt → message id, of everything that it was ever handed."""
    landed_at: dict[str, float] = field(default_factory=dict)
    known_until: dict[str, float] = field(default_factory=dict)
    """Receipt → until when its lease lasts, as far as an answer has told: a heartbeat without one may have acted."""
    receive_ended_at: float = -1.0
    figures: tuple[int, int] = (0, 0)
    """How many had landed and were in flight when the figures were looked at last."""
    on_the_wire: int = 0
    """Receives."""
    extending: Counter[str] = field(default_factory=Counter)
    """Receipts of the heartbeats on the wire."""
    extended_at: dict[str, float] = field(default_factory=dict)
    """Receipt → when its last heartbeat ended."""
    asked: dict[str, Asked] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    failed_calls: int = 0
    began: float = 0.0
    finished: dict[str, str] = field(default_factory=dict)
    """Message id → receipt of the run that finished it here."""
    attempts: set[str] = field(default_factory=set)
    """Ids of receives that have ended, with an answer or without."""
    cut_short: set[str] = field(default_factory=set)
    """Ids of receives that were cut short and have not been asked for again."""
    must_run: set[str] = field(default_factory=set)
    """Receipts that may not be given back unprocessed: their messages would be dead-lettered."""
    named_dead_letters: set[str] = field(default_factory=set)
    """Message ids that a drain report has called so."""
    drain_seen: object = None
    """The report of the drain that was looked at last, at its end."""
    drain_began: float | None = None
    outstanding_at_begin: int = 0
    landed_at_begin: int = 0
    in_flight_at_begin: int = 0

    def __str__(self) -> str:
        return f"instance {self.number}"

    def has_in_flight(self, receipt: str) -> bool:
        """Whether its ledger says so."""
        return self.core is not None and receipt in self.core.worker.ledger

    @property
    def watched(self) -> bool:
        """Alive, and started."""
        return self.core is not None and not self.crashed and not self.ended.is_set()


class Witness(trio.abc.Instrument):
    def __init__(self, schedule: Schedule, queue: SimulatedQueue, switch: SimulatedSwitch) -> None:
        self.schedule = schedule
        self.queue = queue
        self.switch = switch
        self.violations: list[str] = []
        self.errors: list[BaseException] = []
        """Unexpected exceptions of the service's own."""
        self.instances: list[Instance] = []
        self.order: dict[str | None, list[str]] = {}
        """Group → message ids, in the order of sending."""
        self.groups: dict[str, str | None] = {}
        self.held: dict[str, Hold] = {}
        """By message id: what was received and neither deleted nor moved since."""
        self.leases: dict[str, float] = {}
        """Receipt → until when its delivery keeps the message, or kept it."""
        self.assigned_at: dict[str, float] = {}
        """Receipt → when the queue handed it out."""
        self.gone: dict[str, float] = {}
        """Deleted or moved to the dead-letter queue, and when."""
        self.copied: set[str] = set()
        """Put into the dead-letter queue by a client."""
        self.duplicated: set[str] = set()
        """Receipts of deliveries that the queue made while another receipt held the message, and of those others."""
        self.runs: dict[str, list[Running]] = {}
        self.finished: set[str] = set()
        """Messages whose processor succeeded or rejected, anywhere."""
        self.succeeded: set[str] = set()
        self.unreadable: set[str] = set()
        """Messages whose bodies are not what the processor is annotated with."""
        self.given_up: set[str] = set()
        """Messages of a FIFO queue that failed after the last receive that the redrive policy grants."""
        self.all_gone = trio.Event()
        self.expected = len(schedule.arrivals)
        if not self.expected:
            self.all_gone.set()
        self.drains = Counter[str]()
        self.runs_counted = 0
        self.slept_at = -math.inf
        """When the machine slept last."""
        self.threads_left = 0
        self.resurrections = 0
        """Deliveries of messages that were deleted before."""
        self.old_receipts = 0
        """Changes of visibility by receipts that had a successor."""
        self.copies = 0
        """Deliveries of messages that another receipt held."""
        self.copies_together = 0
        """Those that came in one answer with the other."""
        self.receipts_twice = 0
        """Deliveries that an instance was handed again by the receipt that it had."""
        self.cut_short = 0
        """Receives."""
        self.batches_counted = 0
        self._failed: set[int] = set()  # numbers of calls that had failed at their client
        self._assigned_by: dict[str, int] = {}  # receipt → number of its receive
        self._read = 0
        self._steps = 0
        self._steps_since = -1.0
        self.check = Invariants(self)

    def violated(self, what: str) -> None:
        if len(self.violations) < 10:
            self.violations.append(f"{trio.current_time():g} s: {what}")

    # -- each step --

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps % STEPS_AT_ONCE == 0:
            if trio.current_time() == self._steps_since:
                self.violated(f"16 {STEPS_AT_ONCE} steps at one instant, the last by {task.name}")
                cancel_everything()
            self._steps_since = trio.current_time()
        history = self.queue.history
        while self._read < len(history):
            event = history[self._read]
            self._read += 1
            self._note(event)
        for instance in self.instances:
            if instance.watched:
                self.check.step(instance)

    def _note(self, event: Event) -> None:
        match event:
            case Assigned():
                hold = self.held.get(event.message_id)
                if hold is not None and hold.until > event.at:
                    self.duplicated |= {event.receipt, hold.receipt}
                    self.copies += 1
                    self.copies_together += self._assigned_by.get(hold.receipt) == event.call
                self._assigned_by[event.receipt] = event.call
                self.held[event.message_id] = Hold(event.receipt, event.until)
                self.leases[event.receipt] = event.until
                self.assigned_at[event.receipt] = event.at
                self.resurrections += event.message_id in self.gone
            case AssignedAgain():
                self.held[event.message_id] = Hold(event.receipt, event.until)
                self.leases[event.receipt] = event.until
            case VisibilityChanged():
                late = event.call in self._failed
                self.held[event.message_id] = Hold(event.receipt, event.until, late)
                self.leases[event.receipt] = event.until
            case Deleted():
                self.check.deleted(event)
                self._leaves(event.message_id)
            case DeadLettered(reason=None):
                if (hold := self.held.get(event.message_id)) is not None and hold.until > event.at:
                    self.duplicated.add(hold.receipt)  # its copy was moved
                self.check.redriven(event)
                self._leaves(event.message_id)
            case DeadLettered():
                self.copied.add(event.message_id)
            case CallFailed():
                self._failed.add(event.call)
            case TakenAway():
                self.old_receipts += 1
                self.check.taken_away(event)
                self.duplicated.add(event.holder)
                self.held[event.message_id] = Hold(event.holder, event.until, late=True)
                self.leases[event.holder] = event.until
            case Suspended():
                self.slept_at = event.at
                self.leases = {receipt: until - event.seconds for receipt, until in self.leases.items()}
                for held in self.held.values():
                    held.until -= event.seconds
                for instance in self.instances:
                    known = instance.known_until
                    instance.known_until = {receipt: until - event.seconds for receipt, until in known.items()}
            case Sent():
                self.order.setdefault(event.group_id, []).append(event.message_id)
                self.groups[event.message_id] = event.group_id
            case _:
                pass

    def _leaves(self, message_id: str) -> None:
        self.held.pop(message_id, None)
        self.gone.setdefault(message_id, trio.current_time())
        if len(self.gone) == self.expected:
            self.all_gone.set()

    # -- the processor --

    def began(self, instance: Instance, message: Message) -> Running:
        # Simulated receipts are made of these two; `landed` is what the instance was given.
        receipt = f"{message.id}#{message.receive_count}"
        run = Running(message.id, receipt, instance, trio.current_time())
        self.runs_counted += 1
        if not instance.crashed:
            self._catch_up()
            self.check.begins(run)
        self.runs.setdefault(message.id, []).append(run)
        return run

    def batch_began(self, instance: Instance, messages: Sequence[Message]) -> list[Running]:
        now = trio.current_time()
        runs = [Running(one.id, f"{one.id}#{one.receive_count}", instance, now) for one in messages]
        self.runs_counted += len(runs)
        self.batches_counted += 1
        if not instance.crashed:
            self._catch_up()
            self.check.batch_begins(runs)
        for run in runs:
            run.batch = tuple(runs)
            if not instance.crashed:
                self.check.begins(run)
            self.runs.setdefault(run.message_id, []).append(run)
        return runs

    def batch_ends(
        self, runs: Sequence[Running], items: Sequence[Item[Message]], *, returned: bool, failed: bool
    ) -> None:
        """The function has returned, raised by itself (`failed`), or was cancelled (neither)."""
        if not (returned or failed) and not runs[0].instance.crashed:
            self.check.batch_cancelled(runs, items)
        stands = dict.fromkeys((self.groups[run.message_id] for run in runs), "delete")
        for run, item in zip(runs, items, strict=True):
            mark = item.mark
            done = mark is None or (mark is UNMARKED and returned)
            rejected = isinstance(mark, Reject)
            if item.lost:
                stands[self.groups[run.message_id]] = None  # what comes next may go back
                run.until = min(run.until or math.inf, self._lost_at(run))
            elif run.until is None:
                self.check.settled_as(run, stands, done=done, rejected=rejected)
            self.ends(
                run,
                finished=done or rejected,
                rejected=rejected,
                failed=not (done or rejected) and (mark is not UNMARKED or failed or returned),
            )

    def _lost_at(self, run: Running) -> float:
        return next(
            (one.at for one in reversed(run.instance.service.endings) if one.message_id == run.message_id), math.inf
        )

    def _catch_up(self) -> None:
        while self._read < len(self.queue.history):
            self._read += 1
            self._note(self.queue.history[self._read - 1])

    def left_behind(self, instance: Instance, message: Message) -> None:
        """Its run goes on in a thread, although it was cancelled."""
        self.threads_left += 1
        for run in self.runs.get(message.id, ()):
            if run.instance is instance:
                self.interrupted(run)

    def interrupted(self, run: Running) -> None:
        """The processor was cancelled, and ignores it for a while."""
        if run.until is None:
            run.until = trio.current_time()

    def ends(self, run: Running, *, finished: bool, rejected: bool, failed: bool) -> None:
        run.failed = failed and run.until is None
        self.interrupted(run)
        run.ended = True
        run.known_until = run.instance.known_until.get(run.receipt, math.inf)
        if run.instance.crashed:
            return
        if finished:
            run.finished = True
            self.finished.add(run.message_id)
            if not rejected:
                run.instance.finished.setdefault(run.message_id, run.receipt)
                self.succeeded.add(run.message_id)
        elif failed and self.schedule.setup.fifo and run.receipt.endswith(f"#{self.schedule.setup.max_receives}"):
            self.given_up.add(run.message_id)
        self._catch_up()
        self.check.ends(run)

    def crashed(self, instance: Instance) -> None:
        instance.crashed = True
        for runs in self.runs.values():
            for run in runs:
                if run.instance is instance and run.until is None:
                    run.until = trio.current_time()


class WatchedQueue:
    """The queue as one instance reaches it, seen."""

    def __init__(self, queue: Queue, witness: Witness, instance: Instance, *, heartbeat: bool = False) -> None:
        """`heartbeat`: as its heartbeat reaches it, whose calls extend and do not settle."""
        self._heartbeat = heartbeat
        self._queue = queue
        self._witness = witness
        self._instance = instance

    @property
    def max_receive_count(self) -> int | None:
        return self._queue.max_receive_count

    @property
    def fifo(self) -> bool | None:
        return self._queue.fifo

    async def _seen(self, kind: str) -> None:
        self._instance.calls[kind] += 1
        if not self._witness.check.call_begins(self._instance, kind):
            await trio.sleep_forever()  # a hot loop ends here

    @property
    def repeats_receives(self) -> bool:
        return self._queue.repeats_receives

    async def receive(
        self, *, limit: int, wait: int, visibility: int, attempt: str | None = None
    ) -> Sequence[Received]:
        instance = self._instance
        await self._seen("receive")
        sent = trio.current_time()
        again = attempt is not None and wait == 0 and attempt in instance.attempts
        instance.cut_short.discard(attempt or "")
        if not again:
            self._witness.check.receive_begins(instance, limit)
        instance.on_the_wire += 1
        try:
            deliveries = await self._queue.receive(limit=limit, wait=wait, visibility=visibility, attempt=attempt)
        except trio.Cancelled:
            if attempt is not None and self._witness.check.may_cut(instance):
                instance.cut_short.add(attempt)
            else:
                self._witness.check.receive_cancelled(instance)
            raise
        except Exception:
            instance.failed_calls += 1
            raise
        finally:
            if attempt is not None:
                instance.attempts.add(attempt)
            instance.on_the_wire -= 1
            instance.receive_ended_at = trio.current_time()
        for delivery in deliveries:
            if delivery.receipt in instance.landed:
                self._witness.receipts_twice += 1
                continue
            self._witness.check.lands(instance, delivery, sent)
            instance.landed[delivery.receipt] = delivery.message.id
            instance.landed_at[delivery.receipt] = trio.current_time()
            instance.known_until[delivery.receipt] = sent + visibility
        return deliveries

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        await self._seen("delete")
        return await self._settling("delete", receipts, self._queue.delete(receipts))

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        await self._seen("change_visibility")
        call = self._queue.change_visibility(timeouts)
        if not self._heartbeat:
            return await self._settling("change_visibility", tuple(timeouts), call)
        self._witness.check.extends(self._instance, tuple(timeouts))
        self._instance.extending.update(timeouts)
        sent = trio.current_time()
        try:
            refused = await call
            known = {receipt: sent + seconds for receipt, seconds in timeouts.items() if receipt not in refused}
            self._instance.known_until.update(known)
            return refused
        except Exception:
            self._instance.failed_calls += 1
            raise
        finally:
            self._instance.extending.subtract(timeouts)
            self._instance.extended_at.update(dict.fromkeys(timeouts, trio.current_time()))

    async def _settling(self, kind: str, receipts: Sequence[str], call: Any) -> Mapping[str, Refusal]:
        instance = self._instance
        self._witness.check.settles(instance, kind, receipts)
        for receipt in receipts:
            asked = instance.asked.setdefault(receipt, Asked(first_at=trio.current_time()))
            asked.kind = kind
        try:
            refused: Mapping[str, Refusal] = await call
        except Exception:
            instance.failed_calls += 1
            raise
        if refused:
            instance.failed_calls += 1
        for receipt in receipts:
            if receipt not in refused:
                instance.asked[receipt].confirmed = True
        return refused

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        await self._seen("dead_letter")
        self._instance.asked.setdefault(delivery.receipt, Asked(first_at=trio.current_time()))
        try:
            return await self._queue.dead_letter(delivery, reason)
        except Exception:
            self._instance.failed_calls += 1
            raise

    async def send(self, body: str, **options: Any) -> str:
        return await self._queue.send(body, **options)

    async def attributes(self) -> Mapping[str, str]:
        await self._seen("attributes")
        try:
            return await self._queue.attributes()
        except Exception:
            self._instance.failed_calls += 1
            raise
