"""What must hold in every schedule, and the precise form of it.

A queue that delivers at least once, and calls whose answer may be lost, leave some freedom. Each promise is stated here in the
strongest form that nothing but the service itself can break:

1.  *No message vanishes.* A message is deleted only after a run of its processor, at whatever instance, succeeded or rejected
    it, or, on a FIFO queue, failed on it after the last receive, or if its body is not what the processor takes; if it did not
    succeed and there is a dead-letter queue, a copy is there first. (Its own delivery need not be the one that was finished: a
    remembered redelivery and a copy of a delivery in flight are deleted without a run.)
2.  *Nothing is stranded by a drain.* When a drain has ended, expired or not, everything that ever landed at this instance and
    that it still holds invisible is named in the report: deferred, unsettled or lost. Exempt is what a call did after its client
    had given it up (5 s): nobody can know of it. What never landed (an answer lost on the way) was not handed to the instance.
3.  *The reserve is kept.* What a drain gives back, or calls unsettled, has had a settlement call by the deadline, and at once
    what landed later, unless a heartbeat for it was on the wire at the deadline (which could overtake a release).
4.  *Work happens under a lease.* From its begin to its end (or to its cancellation, if it ignores that) a run's delivery holds
    its message at the server. Exempt are deliveries that the queue itself superseded (duplicates of standard queues).
5.  *Never twice at the same time.* Two runs of a message do not overlap, at whatever instances, with the exemption of 4 between
    instances. Within one instance there is none: copies wait for the first.
6.  *Finished is finished.* An instance does not run a message again that it finished and could not delete. (If its delete was
    confirmed but came too late for the lease, it cannot know. In a FIFO batch, what stands behind one that is not done is not
    finished.)
7.  *FIFO.* When a run begins, every earlier message of its group is deleted or dead-lettered.
8.  *The figures add up.* At every step, received is what landed, and is the sum of the outcomes and of what is in flight.
9.  *In flight ≤ MAX_CONCURRENCY*, at every step; so are running processors, those that ignored a cancellation and lost items of
    a batch aside.
10. *No receive begins* but in the phase running; one that has ended without an answer may be asked for again by its id.
11. *The poll is not aborted*: a receive on the wire is cancelled only when the bound of a stop (`LAST_RELEASE`) is used up; or
    when a maintenance begins and it can be asked for again by its id, which it is.
12. *A drain ends* within its deadline and `worker.LATE`; a cancelled instance within `LAST_RELEASE`, if its processors let it.
13. *The report is true*: it names the receives on the wire at the begin and what landed; its figures add up.
14. *A receipt is settled once*: no settlement after one was confirmed, never by two kinds of call, no heartbeat after one was
    sent, and no visibility change while a heartbeat could overtake it.
15. *Nothing hangs.* In the calm at the end all messages are finished within the time that their runs and leases take, and all
    instances stop. Nothing crashes.
16. *Calls are bounded* by the time, the deliveries and the failed calls; there is no hot loop.
17. *A drain does not dead-letter.* A delivery that is the last one that the redrive policy grants is run, or named in the report
    of a drain whose time ran out; so if it lands before the end of a drain, in time for its lease, at an instance that has read
    the policy and has no other copy of it. On a FIFO queue one that fails then is moved by us, for behind it the group would be
    received in vain; and what comes after it in its group is run too, unless it was received together with one that could not be
    finished (its lease was lost, or the queue did not take its copy or its delete): there the order comes first.
18. *The circuit breaker holds back receives and nothing else.* Open, no receive begins; probing, no more messages than a few are
    asked for. (That a drain ends and the calm finishes everything says the rest.)
19. *No false "drained".* When the wait for the fleet says that all have drained at a revision of the key, no instance that lives
    has anything in flight, at work or on the wire; and while the key stands so, none begins a receive or a run. When it says
    that all are quiet, nothing is at work, and none begins either. Exempt are instances that were killed, or told twice to stop,
    and those that etcd has never let register.
20. *What ends gives back.* When an instance was told twice to stop, or a part of it has failed, it ends within `LAST_RELEASE` (if
    its processors let it), and by then there was a settlement call for everything that landed there and stays invisible, unless
    a heartbeat on the wire could have overtaken it, or it had failed or was lost before. No part fails but where the schedule
    says so, and no call by a defect.
24. *A batch's outcomes are its items'.* A batch holds no more than was asked for, no message twice, and of a group none before
    its predecessor. What was done is deleted by its delivery, and what was not never is; on a FIFO queue nothing is that stands
    in its batch behind one of its group that goes back. A batch is cancelled only by a drain, a stop, or when all its leases are
    lost, and one that is lost is told so. A message is not begun again at its instance while a batch works on it. A drain begins
    at once with what has gathered.
22. *What goes on is alone and known.* No run of a message begins in an instance while an earlier one goes on there, as one does
    that ignores its cancellation. Where work cannot be stopped (a plain `def`), each drain names those that go on, and is not
    called drained.
23. *Nobody is robbed.* No call by an old receipt that was made when the message had a new holder shortens the lease of that one
    (where the queue lets it). Exempt are duplicates, and errors that are answered after the deed.
25. *However often it is handed out.* Of the copies of a message, in one answer or in several, one runs at a time in an instance
    (5), no two stand in a batch (24), and none runs when another was finished (6). A receipt that comes again while it is in
    flight there is no second delivery: it is received (8), run and settled (14) once.

When the machine has slept, every lease is as much shorter. What a lease allows is judged by that, but for what ends in the very
instant of the waking.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from svc.consumer.breaker_state import PROBES, State
from svc.consumer.drain import Drain
from svc.consumer.ledger import Counts
from svc.consumer.queue import Received
from svc.consumer.worker import LAST_RELEASE, LATE
from svc.etcd.registration import Registrar
from svc.maintenance.fleet import Request
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.phases import Phase
from svc.testing.history import DeadLettered, Deleted

from .old_receipts import TakenAway
from .troubles import LAST_WORD

if TYPE_CHECKING:
    from svc.processors import Item, Message

    from .witness import Instance, Running, Witness

EPSILON = 1e-6
"""Seconds; floating point."""

CALLS_AT_ONCE = 500
"""Calls without the time going on; far beyond what a schedule has messages."""


class Invariants:
    def __init__(self, witness: "Witness") -> None:
        self._witness = witness
        self._violated = witness.violated
        self._calls_at = (0.0, 0)
        self._fulfilled: dict[Request, list[Instance]] = {}  # and who was refused a place in the fleet at that time
        self._redriven: set[str] = set()
        self._setup = witness.schedule.setup

    # -- at each step --

    def step(self, instance: "Instance") -> None:
        core = instance.core
        assert core is not None
        ledger = core.worker.ledger
        figures = len(instance.landed), len(ledger)
        if figures != instance.figures:
            instance.figures = figures
            self._figures_add_up(instance, ledger.counts())
        report = core.manager._report
        if report is None or report is instance.drain_seen:
            return
        if report.ended is not None:
            instance.drain_seen = report
            self._witness.drains[report.outcome.value] += 1
            if report.outcome is DrainOutcome.REVOKED and instance.on_the_wire > 1:
                self._witness.drains["revoked with several receives out"] += 1
            drain = core.worker.tally.so_far()
            instance.named_dead_letters |= {*drain.next_receive_dead_letters, *drain.last_receives_returned}
            if report.outcome is not DrainOutcome.REVOKED:
                self._drain_ended(instance)
        elif instance.drain_began != report.began:
            instance.drain_began = report.began
            instance.outstanding_at_begin = instance.on_the_wire
            instance.landed_at_begin = len(instance.landed)
            instance.in_flight_at_begin = len(ledger)
        elif instance.cancelled_at is None and trio.current_time() > report.deadline + LATE + EPSILON:
            self._violated(f"12 {instance}: the drain goes on after its deadline {report.deadline:g}")

    def _figures_add_up(self, instance: "Instance", counts: Counts) -> None:
        landed, in_flight = instance.figures
        total = counts.processed + counts.failed + counts.released + counts.rejected + counts.lost
        if not counts.received == landed == total + in_flight == total + counts.in_flight:
            self._violated(f"8 {instance}: {landed} landed, but {counts}")
        if in_flight > self._setup.concurrency:
            self._violated(f"9 {instance}: {in_flight} in flight, but {self._setup.concurrency} allowed")

    def _drain_ended(self, instance: "Instance") -> None:
        assert instance.core is not None
        report = instance.core.manager._report
        assert report is not None
        assert report.ended is not None
        now, drain = trio.current_time(), instance.core.worker.tally.so_far()
        if report.ended > report.deadline + LATE + EPSILON:
            self._violated(f"12 {instance}: the drain ended at {report.ended:g}, its deadline was {report.deadline:g}")
        if instance.cut_short:
            self._violated(f"11 {instance}: a receive that was cut short was not asked for again")
        named = {*drain.deferred, *drain.unsettled, *drain.lost_ids}
        for message_id, hold in self._witness.held.items():
            # (A receive that lands in the report's instant may or may not be in it.)
            landed_at = instance.landed_at.get(hold.receipt, math.inf)
            if (
                (landed_at <= now if not drain.receives_unlanded else landed_at < now)
                and hold.until > now + EPSILON
                and not hold.late
                and message_id not in named
            ):
                self._violated(
                    f"2 {instance}: after the drain {hold.receipt} stays invisible until {hold.until:g}, and is not named"
                    f" in {drain}"
                )
        if report.outcome is DrainOutcome.DRAINED and (drain.error() is not None or drain.unsettled):
            self._violated(f"13 {instance}: drained, but {drain}")
        if report.outcome is DrainOutcome.EXPIRED and drain.error() is None:
            self._violated(f"13 {instance}: expired for no reason: {drain}")
        if self._setup.threads:
            self._names_threads(instance, drain)
        if instance.cancelled_at is None:  # (what ends gives back by 20, and its drain may have begun after that)
            self._unsettled_was_tried(instance, drain, report.deadline)
        self._report_is_true(instance, drain)

    def _names_threads(self, instance: "Instance", drain: Drain) -> None:
        for message_id, runs in self._witness.runs.items():
            for run in runs:
                goes_on = run.instance is instance and not run.ended and run.until is not None
                # (One that is left behind in the report's instant may be among those who do not end.)
                named = {*drain.threads, *(drain.stubborn if run.until == trio.current_time() else ())}
                if goes_on and (message_id not in named or drain.error() is None):
                    self._violated(
                        f"22 {instance}: a thread is at work on {message_id} after the drain, unnamed in {drain}"
                    )

    def _unsettled_was_tried(self, instance: "Instance", drain: Drain, deadline: float) -> None:
        reserve = min(2.0, self._setup.drain_timeout / 10)
        assert instance.core is not None
        in_flight = [entry.delivery.receipt for entry in instance.core.worker.ledger]
        for receipt in {
            *in_flight,
            *(receipt for receipt, asked in instance.asked.items() if asked.first_at > deadline),
        }:
            asked = instance.asked.get(receipt)
            landed_at = instance.landed_at[receipt]
            held_up = instance.extending[receipt] or instance.extended_at.get(receipt, 0.0) > deadline - EPSILON
            by = max(deadline, landed_at) if landed_at > deadline - reserve - EPSILON else deadline
            if asked is None and landed_at == trio.current_time():
                continue
            if (asked is None or asked.first_at > by + EPSILON) and not held_up:
                self._violated(f"3 {instance}: the drain gave {receipt} up without having tried to settle it in time")

    def _report_is_true(self, instance: "Instance", drain: Drain) -> None:
        brought = len(instance.landed) - instance.landed_at_begin
        told = drain.receives_outstanding, drain.receives_brought, drain.in_flight, drain.receives_unlanded
        true = instance.outstanding_at_begin, brought, instance.in_flight_at_begin, instance.on_the_wire
        # The report is of an instant: a receive that ends in the same one may or may not be in it.
        if told != true and instance.receive_ended_at < trio.current_time():
            self._violated(f"13 {instance}: outstanding, brought, in flight, unlanded are {true}, but {drain}")
        ended = drain.completed + drain.failed + drain.released + drain.rejected + drain.lost
        if ended + len(drain.unsettled) != drain.in_flight + drain.receives_brought:
            self._violated(f"13 {instance}: the report does not add up: {drain}")

    # -- events at the server --

    def deleted(self, event: Deleted) -> None:
        witness, message_id = self._witness, event.message_id
        done = message_id in witness.finished or message_id in witness.unreadable
        if not done and message_id not in witness.given_up:
            self._violated(f"1 {message_id} is deleted, but no processor succeeded on it, rejected it or gave it up")
        elif (
            self._setup.max_receives is not None
            and message_id not in witness.copied
            and message_id not in witness.succeeded
        ):
            self._violated(f"1 {message_id} did not succeed and is deleted, but the dead-letter queue has no copy")

    def taken_away(self, event: TakenAway) -> None:
        witness = self._witness
        hold = witness.held.get(event.message_id)
        if hold is None or hold.until <= event.at + EPSILON or event.until >= hold.until - EPSILON:
            return
        late = event.began <= witness.assigned_at.get(event.holder, math.inf) + EPSILON
        if not late and not witness.duplicated & {event.holder, event.receipt}:
            self._violated(
                f"23 {event.receipt}, an old receipt, takes {event.message_id} from its holder, {event.holder}"
            )

    def redriven(self, event: DeadLettered) -> None:
        """SQS has moved a message to the dead-letter queue by itself."""
        self._redriven.add(event.message_id)
        last = f"{event.message_id}#{self._setup.max_receives}"
        for instance in self._witness.instances:
            if last not in instance.must_run or instance.cancelled_at is not None or instance.crashed:
                continue
            if event.message_id in instance.named_dead_letters:
                continue
            if instance.core is not None:
                drain = instance.core.worker.tally.so_far()
                if event.message_id in (*drain.next_receive_dead_letters, *drain.last_receives_returned):
                    continue
            asked = instance.asked.get(last)
            run = next((run for run in self._witness.runs.get(event.message_id, ()) if run.receipt == last), None)
            if run is None:
                given_back = asked is not None and asked.kind == "change_visibility"
                given_back = given_back and not self._shares_a_fate(instance, event.message_id, last)
                if given_back and asked is not None and self._was_first(instance, event.message_id, asked.first_at):
                    self._violated(f"17 {instance}: {last} was given back unprocessed, and so it is dead-lettered")
            elif self._setup.fifo and run.failed and asked is None and self._in_time(run):
                self._violated(f"17 {instance}: {last} failed for the last time, and was left to SQS to dead-letter")

    def _shares_a_fate(self, instance: "Instance", message_id: str, receipt: str) -> bool:
        """Whether an earlier delivery of the message was at work there when this one landed: its verdict is that of both."""
        landed_at = instance.landed_at[receipt]
        return any(
            run.instance is instance and run.until is not None and landed_at <= run.until
            for run in self._witness.runs.get(message_id, ())
        )

    def _was_first(self, instance: "Instance", message_id: str, at: float) -> bool:
        """Whether nothing of its group came before it at that time, as far as the instance can know: what it has lost, or left to
        its lease, may come back, even if the queue has moved it to the dead-letter queue; unless it had left before this one was
        received."""
        if not self._setup.fifo:
            return True
        order = self._witness.order[self._witness.groups[message_id]]
        earlier = order[: order.index(message_id)]
        last = {one.message_id: one.outcome for one in instance.service.endings}
        received_at = self._witness.assigned_at[f"{message_id}#{self._setup.max_receives}"]
        gone = self._witness.gone
        unknown = {
            one for one in earlier if last.get(one) == "lost" or (last.get(one) == "failed" and one in self._redriven)
        }
        return all(
            gone.get(one, math.inf) < received_at if one in unknown else gone.get(one, math.inf) <= at
            for one in earlier
        )

    def _in_time(self, run: "Running") -> bool:
        """Whether it ended under its lease, as far as the instance could know, and its turn came under it too."""
        if self._is_behind(run) and self._is_lost(run):
            return False
        return run.until is not None and run.until < min(run.known_until, self._witness.leases[run.receipt]) - EPSILON

    # -- the processor --

    def begins(self, run: "Running") -> None:
        witness, instance, now = self._witness, run.instance, trio.current_time()
        if instance.cancelled_at is None:
            self._nothing_begins(instance, "run")
        if run.receipt not in instance.landed:
            self._violated(f"4 {instance}: a run on {run.receipt}, which it was never handed")
        if run.receipt not in witness.duplicated and witness.leases.get(run.receipt, 0.0) < now - EPSILON:
            self._violated(f"4 {instance}: a run begins on {run.receipt}, whose lease is over")
        if any(one.receipt == run.receipt for one in witness.runs.get(run.message_id, ())):
            self._violated(f"25 {instance}: a second run begins on {run.receipt}")
        finished = instance.finished.get(run.message_id)
        if finished is not None and not self._may_run_again(instance, finished):
            self._violated(f"6 {instance}: {run.message_id} runs again, although {finished} was finished here")
        group = witness.groups[run.message_id]
        if self._setup.fifo:
            together = {one.message_id for one in run.batch[: run.batch.index(run)]} if run.batch else set()
            for earlier in witness.order[group]:
                if earlier == run.message_id:
                    break
                if earlier not in witness.gone and earlier not in together:
                    self._violated(f"7 {instance}: a run on {run.receipt} begins, but {earlier} comes before it")
        here = [other for other in witness.runs.get(run.message_id, ()) if other.instance is instance]
        if any(not other.ended for other in here):
            self._violated(f"22 {instance}: {run.receipt} begins, but an earlier run of its message goes on here")
        running = sum(
            other.instance is instance and other.until is None and not (other.batch and self._is_lost(other))
            for runs in witness.runs.values()
            for other in runs
        )
        if running + 1 > self._setup.concurrency:
            self._violated(f"9 {instance}: {running + 1} processors run, but {self._setup.concurrency} are allowed")

    def _may_run_again(self, instance: "Instance", finished: str) -> bool:
        asked, was = instance.asked.get(finished), self._run_of(finished)
        if asked is not None and (asked.confirmed or asked.kind == "delete"):
            return asked.confirmed
        # Done in a batch, but behind one of its group that was not: it was to go back.
        return self._setup.fifo and was is not None and was.settles != "delete" and self._is_behind(was)

    def _is_behind(self, run: "Running") -> bool:
        """Whether another one of its group stands before it in its batch."""
        groups = self._witness.groups
        before = run.batch[: run.batch.index(run)] if run.batch else ()
        return any(groups[one.message_id] == groups[run.message_id] for one in before)

    def _is_lost(self, run: "Running") -> bool:
        """Whether the lease of its delivery was lost since it began."""
        endings = run.instance.service.endings
        return any(
            one.message_id == run.message_id and one.outcome == "lost" and one.at >= run.began for one in endings
        )

    def batch_begins(self, runs: "Sequence[Running]") -> None:
        witness, now = self._witness, trio.current_time()
        ids = [run.message_id for run in runs]
        if not 1 <= len(ids) <= self._setup.batching or len(set(ids)) < len(ids):
            self._violated(f"24 a batch of {ids}, but {self._setup.batching} are allowed, and none twice")
        for run in runs:
            instance = run.instance
            others = [one for one in witness.runs.get(run.message_id, ()) if one.instance is instance]
            if any(not one.ended for one in others):
                self._violated(f"24 {instance}: {run.receipt} begins, but an earlier batch is at work on it")
            assert instance.core is not None
            report, landed_at = instance.core.manager._report, instance.landed_at.get(run.receipt, math.inf)
            if (
                report is not None
                and report.ended is None
                and landed_at < report.began - EPSILON
                and now > report.began + EPSILON
                and not (self._setup.fifo or others or run.receipt in witness.duplicated)
            ):
                self._violated(f"24 {instance}: a drain began at {report.began:g}, and {run.receipt} lingered on")

    def batch_cancelled(self, runs: "Sequence[Running]", items: "Sequence[Item[Message]]") -> None:
        instance = runs[0].instance
        assert instance.core is not None
        report = instance.core.manager._report
        drains = report is not None and (report.ended is None or report.ended == trio.current_time())
        if not (drains or instance.cancelled_at is not None or all(item.lost for item in items)):
            told = [run.receipt for run, item in zip(runs, items, strict=True) if not item.lost]
            self._violated(f"24 {instance}: a batch is cancelled, although the leases of {told} are not lost")

    def settled_as(self, run: "Running", stands: dict[str | None, str | None], *, done: bool, rejected: bool) -> None:
        """How an item is settled that had this end. `stands`: group → how what comes next of it in this batch may be settled, if
        it is done: delete; change_visibility behind one that goes back; None where it is not known yet."""
        group = self._witness.groups[run.message_id] if self._setup.fifo else None
        allowed = stands.get(group) if self._setup.fifo else "delete"
        last = self._setup.fifo and run.receipt.endswith(f"#{self._setup.max_receives}")
        if allowed == "change_visibility":
            run.settles = allowed
        elif allowed is None or rejected or (last and not done):
            allowed = run.settles = None  # it goes when a dead letter before it, or its own, has arrived
        else:
            run.settles = allowed = "delete" if done else "change_visibility"
        stands[group] = allowed

    def ends(self, run: "Running") -> None:
        witness = self._witness
        assert run.until is not None
        lease = witness.leases.get(run.receipt, 0.0)
        if (
            run.receipt not in witness.duplicated
            and run.until == trio.current_time()
            and run.until > witness.slept_at + EPSILON
            and lease < run.until - EPSILON
        ):
            self._violated(
                f"4 {run.instance}: the run on {run.receipt} went on after its lease, which ended at {lease:g}"
            )
        for other in witness.runs[run.message_id]:
            if other is run:
                continue
            until = trio.current_time() if other.until is None else other.until
            if min(until, run.until) <= max(other.began, run.began) + EPSILON:
                continue
            superseded = {run.receipt, other.receipt} & witness.duplicated and other.instance is not run.instance
            # A batch goes on with the rest of it.
            lost = any(one.batch and self._is_lost(one) for one in (run, other))
            if not superseded and not lost:
                self._violated(
                    f"5 {run.message_id} ran twice at the same time: {run.receipt} at {run.instance} from {run.began:g} to"
                    f" {run.until:g}, {other.receipt} at {other.instance} from {other.began:g}"
                )

    # -- the calls --

    def lands(self, instance: "Instance", delivery: Received, sent: float) -> None:
        """Called before the service has it."""
        core, limit = instance.core, instance.service.queue.max_receive_count
        if core is None or instance.crashed or instance.cancelled_at is not None:
            return
        report, now = core.manager._report, trio.current_time()
        # (In the last instant its report may be made before the receive is known to have landed.)
        drain_runs = report is not None and report.ended is None and now < report.deadline + LATE - EPSILON
        in_time = now < sent + self._setup.visibility - EPSILON and sent > self._witness.slept_at
        takes = core.manager._phase is Phase.RUNNING or drain_runs
        alone = core.worker.ledger.at_work_on(delivery.message.id) is None
        if limit == delivery.message.receive_count and takes and alone and in_time:
            instance.must_run.add(delivery.receipt)

    def call_begins(self, instance: "Instance", kind: str) -> bool:
        """False in a hot loop: then the call must never return."""
        at, calls = self._calls_at
        now = trio.current_time()
        self._calls_at = (now, calls + 1 if now == at else 1)
        if self._calls_at[1] > CALLS_AT_ONCE:
            self._violated(f"16 {instance}: over {CALLS_AT_ONCE} calls at one instant, the last a {kind}")
            return False
        return True

    def receive_begins(self, instance: "Instance", limit: int) -> None:
        if instance.core is None or instance.crashed:
            return
        phase = instance.core.manager._phase
        if phase is not Phase.RUNNING:
            self._violated(f"10 {instance}: a receive begins in phase {phase.value}")
        breaker = instance.core.worker.breaker.snapshot()
        if breaker is not None and (breaker.state is State.OPEN or (breaker.state is State.PROBING and limit > PROBES)):
            self._violated(f"18 {instance}: a receive of {limit} begins, the circuit breaker is {breaker.state.value}")
        self._nothing_begins(instance, "receive")

    def _nothing_begins(self, instance: "Instance", what: str) -> None:
        for request, refused in self._fulfilled.items():
            stands = self._witness.switch.mod_revision(request.instance) == request.revision
            if stands and instance not in refused and self._concerns(request, instance):
                self._violated(f"19 {instance}: a {what} begins, but {request} was said to be fulfilled, and stands")

    def _concerns(self, request: Request, instance: "Instance") -> bool:
        return request.instance in (None, instance.service.settings.instance_id)

    def _is_refused(self, instance: "Instance") -> bool:
        """Whether it lives without the permission to register, and was never a member of the fleet: nobody can know of it. (A
        member of its name may be another instance, which was given the same.)"""
        etcd, core = self._witness.schedule.etcd, instance.core
        if etcd is None or core is None or not isinstance(core.registrar, Registrar):
            return False
        denied = any(
            trouble.what in ("denied", "all denied") and trouble.at + trouble.lasts >= instance.began
            for trouble in etcd.troubles
        )
        own = core.registrar.snapshot()
        taken = not own.registered and any(
            (other := one.core.registrar.snapshot()).id == own.id and other.registered
            for one in self._witness.instances
            if one is not instance and one.core is not None
        )
        return denied and (taken or own.id not in self._witness.switch.members())

    def forget_requests(self) -> None:
        """The store was restored: its revisions will be those of other requests."""
        self._fulfilled.clear()

    def has_drained(self, request: Request) -> None:
        """So it was said; or, if that was enough, that nothing is at work and nothing will be begun."""
        refused = self._fulfilled[request] = [one for one in self._witness.instances if self._is_refused(one)]
        for instance in self._witness.instances:
            if (
                instance in refused
                or not instance.watched
                or instance.cancelled_at is not None
                or not self._concerns(request, instance)
            ):
                continue
            assert instance.core is not None
            held, calls = len(instance.core.worker.ledger), instance.on_the_wire
            runs = sum(
                run.instance is instance and not run.ended for runs in self._witness.runs.values() for run in runs
            )
            if runs or (not request.quiet and (held or calls)):
                self._violated(
                    f"19 {instance}: {held} in flight, {runs} at work and {calls} receives on the wire, but {request} is said"
                    " to be fulfilled"
                )

    def may_cut(self, instance: "Instance") -> bool:
        """Whether a receive may be cut short that can be asked for again: when a maintenance begins."""
        report = instance.core.manager._report if instance.core is not None else None
        began = report is not None and report.cause == "maintenance" and report.began == trio.current_time()
        if began:
            self._witness.cut_short += 1
        return began

    def receive_cancelled(self, instance: "Instance") -> None:
        if instance.crashed or instance.core is None:
            return
        report = instance.core.manager._report
        since = instance.cancelled_at
        if since is None and report is not None and report.ended is not None and report.cause is not None:
            since = report.ended if instance.core.manager._phase is Phase.STOPPED else None
        if since is None or trio.current_time() < since + LAST_RELEASE - EPSILON:
            self._violated(f"11 {instance}: a receive on the wire is cancelled")

    def extends(self, instance: "Instance", receipts: tuple[str, ...]) -> None:
        if instance.crashed:
            return
        for receipt in receipts:
            if receipt in instance.asked:
                self._violated(f"14 {instance}: a heartbeat for {receipt}, which was settled")

    def settles(self, instance: "Instance", kind: str, receipts: object) -> None:
        if instance.crashed:
            return
        for receipt in receipts:  # type: ignore[attr-defined]
            asked = instance.asked.get(receipt)
            if receipt not in instance.landed:
                self._violated(f"14 {instance}: a {kind} for {receipt}, which it was never handed")
            if asked is not None and asked.confirmed:
                self._violated(f"14 {instance}: a {kind} for {receipt}, whose {asked.kind} was confirmed")
            if asked is not None and asked.kind not in (None, kind):
                self._violated(f"14 {instance}: a {kind} for {receipt} after a {asked.kind}")
            run = self._run_of(receipt)
            if run is not None and run.batch and kind != (run.settles or kind):
                self._violated(f"24 {instance}: a {kind} for {receipt}, which is to be settled by {run.settles}")
            if run is not None and run.batch and kind == "delete" and not run.ended:
                self._violated(f"24 {instance}: a delete for {receipt}, which a batch is at work on")
            if kind == "change_visibility" and instance.extending[receipt]:
                self._violated(f"14 {instance}: a {kind} for {receipt} that a heartbeat on the wire may overtake")

    def _run_of(self, receipt: str) -> "Running | None":
        runs = self._witness.runs.get(receipt.rpartition("#")[0], ())
        return next((run for run in runs if run.receipt == receipt), None)

    # -- the end --

    def ended(self, instance: "Instance") -> None:
        """It has ended, in whatever way."""
        witness, now = self._witness, trio.current_time()
        if instance.crashed or instance.cancelled_at is None or instance.core is None:
            return
        witness._catch_up()
        stubborn = max((run.stubborn for arrival in witness.schedule.arrivals for run in arrival.runs), default=0.0)
        last_word = 0.0 if witness.schedule.etcd is None else LAST_WORD
        if now > instance.cancelled_at + LAST_RELEASE + stubborn + last_word + EPSILON:
            self._violated(f"20 {instance}: it ended at {now:g}, and was to end at {instance.cancelled_at:g}")
        gone = {one.message_id for one in instance.service.endings if one.outcome in ("failed", "lost")}
        for message_id, hold in witness.held.items():
            receipt = hold.receipt
            if receipt not in instance.landed or hold.until <= now + EPSILON or hold.late or message_id in gone:
                continue
            held_up = instance.extending[receipt] or instance.extended_at.get(receipt, 0.0) > instance.cancelled_at
            if receipt not in instance.asked and not held_up:
                self._violated(
                    f"20 {instance}: it ended without giving back {receipt}, which stays until {hold.until:g}"
                )

    def at_end(self, *, in_time: bool) -> None:
        witness = self._witness
        if not in_time:
            missing = [id_ for ids in witness.order.values() for id_ in ids if id_ not in witness.gone]
            self._violated(f"15 in the calm these messages were not finished in time: {', '.join(missing)}")
        for instance in witness.instances:
            if not instance.crashed:
                self._calls_are_bounded(instance)

    def _calls_are_bounded(self, instance: "Instance") -> None:
        lasted = trio.current_time() - instance.began
        setup, landed = self._setup, len(instance.landed)
        receives = 2 * setup.receivers + 2.5 * lasted / setup.poll_interval + 2 * landed
        if instance.calls["receive"] > receives:
            self._violated(f"16 {instance}: {instance.calls['receive']} receives in {lasted:g} s for {landed} messages")
        others = sum(instance.calls.values()) - instance.calls["receive"]
        # A heartbeat for each message in flight twice per lease at most; a settlement or two for each; all failures repeated.
        beats = min(landed, setup.concurrency) * 3 * lasted / setup.visibility
        bound = 5 + lasted / 100 + 3 * landed + beats + 2 * instance.failed_calls
        if others > bound:
            self._violated(
                f"16 {instance}: {dict(instance.calls)} in {lasted:g} s for {landed} messages, bound {bound:g}"
            )
