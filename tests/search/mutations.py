"""Seeded mistakes: the program as it would be if one thing were done wrong. The search has to catch each.

A mutation builds a `Core` and spoils it: by a subclass in place of a part's class, or by a method replaced on the built part.
Nothing in `svc/` knows of this.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from svc.consumer.breaker_state import State
from svc.consumer.ledger import PROCESSED, RELEASED, Entry, Fate, Outcome
from svc.consumer.queue import Received
from svc.core import Core
from svc.etcd.registration import Registrar
from svc.maintenance.phases import Phase
from svc.maintenance.registration import Registration
from svc.maintenance.switch_value import Switch
from svc.processors import Message, Reject, Retry
from svc.testing.registrar import SimulatedRegistrar
from svc.wakeup import WakeUp

from .mutations_batches import (
    a_drain_lets_linger,
    a_group_is_gathered_out_of_order,
    a_lost_item_is_begun_again_beside_its_batch,
    batches_without_a_size,
    cancelled_is_taken_for_returned,
    items_are_dropped_at_the_deadline,
    items_share_one_outcome,
    marks_are_forgotten,
    one_lost_lease_cancels_all,
    the_rest_of_the_group_passes,
)
from .mutations_copies import a_receipt_is_taken_twice, copies_do_not_wait
from .mutations_defects import (
    a_failed_call_is_a_crash,
    defects_are_not_backed_off,
    no_release_without_settlement,
    settlement_dies_with_the_work,
    unconfirmed_extends_the_lease,
    unconfirmed_is_confirmed,
)
from .mutations_time import (
    begun_beside_its_call,
    begun_beside_its_thread,
    leases_do_not_count_sleep,
    releases_without_answer_are_repeated,
    threads_are_forgotten,
    what_a_thread_finished_is_forgotten,
)
from .random_schedules import random_schedule
from .run import muted, run_schedule

Spoil = Callable[[Core], None]


def mutated(spoil: Spoil) -> Callable[..., Core]:
    """For `run_schedule(schedule, make_core=…)`."""

    def build(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        spoil(core)
        return core

    return build


class _Abandoning:
    """The queue, whose receives can be given up."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._calls: list[trio.CancelScope] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def give_up(self) -> None:
        for call in self._calls:
            call.cancel()

    async def receive(self, **request: int) -> Sequence[Received]:
        with trio.CancelScope() as call:
            self._calls.append(call)
            try:
                return await self._queue.receive(**request)
            finally:
                self._calls.remove(call)
        return ()


def abort_the_poll(core: Core) -> None:
    """Maintenance cancels the receive on the wire, not only the loop."""
    intake = core.worker.intake
    queue, close = _Abandoning(intake._queue), intake.close

    def close_all(reason: str) -> None:
        close(reason)
        queue.give_up()

    intake._queue, intake.close = queue, close_all  # type: ignore[assignment, method-assign]


def release_nothing(core: Core) -> None:
    """What a drain gives back is dropped; the queue is not told."""
    settlement = core.worker.settlement
    settle = settlement.settle

    def drop(entry: Entry, fate: Fate, now: float | None = None) -> None:
        if fate is RELEASED:
            core.worker.ledger.decide(entry, fate)
            core.worker.ledger.end(entry, fate.outcome)
        else:
            settle(entry, fate)

    settlement.settle = drop  # type: ignore[method-assign]


def release_after_the_deadline(core: Core) -> None:
    """The drain keeps no time in reserve: work is cancelled and released when the deadline has passed."""
    worker = core.worker
    wait_drained = worker.wait_drained

    async def late(deadline: float) -> str | None:
        return await wait_drained(deadline + worker._config.reserve + 0.1)

    worker.wait_drained = late  # type: ignore[method-assign]


def settle_within_the_work(core: Core) -> None:
    """The delete is sent by the message's task, in its cancel scope: a drain that cancels the work cancels the delete."""
    worker = core.worker
    if worker.tasks._batches is not None:
        return
    process = worker.tasks._process

    async def process_and_delete(message: Message) -> None:
        await process(message)
        entry = worker.ledger.at_work_on(message.id)
        if entry is not None and entry.is_undecided:
            entry.lease.next_try = math.inf  # no heartbeat any more
            refused = await worker._queue.delete([entry.delivery.receipt])
            if not refused and entry.is_undecided:
                worker.ledger.end(entry, Outcome.PROCESSED)

    worker.tasks._process = process_and_delete


def lease_from_task_start(core: Core) -> None:
    """The lease is counted from when the answer is there, not from the sending of the receive."""
    deliveries = core.worker.deliveries
    land = deliveries.land
    deliveries.land = lambda received, sent: land(received, trio.current_time())  # type: ignore[method-assign]


def heartbeat_skips_waiting(core: Core) -> None:
    """Only messages in the processor's hands are kept: those that wait for their turn, or are held by a drain, are not."""
    heartbeat = core.worker.heartbeat
    timeouts, ledger = heartbeat._timeouts, core.worker.ledger

    def of_those_in_hands(batch: Sequence[Entry]) -> dict[str, int]:
        for entry in batch:
            entry.lease.next_try = -math.inf
        return timeouts([entry for entry in batch if entry.scope is not None])

    class Forbearing:
        def __getattr__(self, name: str) -> Any:
            return getattr(ledger, name)

        def __iter__(self) -> Iterator[Entry]:
            return iter(ledger)

        def lose(self, entry: Entry, why: str) -> None:
            if entry.scope is not None:
                ledger.lose(entry, why)

    heartbeat._timeouts, heartbeat._ledger = of_those_in_hands, Forbearing()  # type: ignore[method-assign, assignment]


def edge_triggered_switch(core: Core) -> None:
    """A change of the key acts when it arrives: an `off` during a drain comes too early, and is not looked at again."""
    manager = core.manager
    act = manager._act

    def act_on_edges() -> bool:
        if manager._phase is Phase.DRAINING and manager._all.switch == Switch(on=False):
            manager._all.switch = Switch(on=True)
        return act()

    manager._act = act_on_edges  # type: ignore[method-assign]


class _Lossy(WakeUp):
    """Looks first and takes the event after: what notifies in between is lost."""

    async def wait_until(self, satisfied: Callable[[], bool]) -> None:
        while not satisfied():
            await trio.lowlevel.checkpoint()
            self._event = trio.Event()
            await self._event.wait()

    async def wait(self, look: Callable[[], float | None]) -> None:
        until = look()
        await trio.lowlevel.checkpoint()
        self._event = trio.Event()
        with trio.CancelScope(deadline=until if until is not None else float("inf")):
            await self._event.wait()


def lost_wake_up(core: Core) -> None:
    """The wake-up's event is replaced after the look."""
    core.worker.intake._wake_up = _Lossy()
    core.worker.settlement._wake_up = _Lossy()


def settle_twice(core: Core) -> None:
    """Each batch is sent once more."""
    settlement = core.worker.settlement
    call = settlement._call

    async def twice(action: Any, batch: Sequence[Entry]) -> Mapping[str, Any]:
        await call(action, batch)
        return await call(action, batch)

    settlement._call = twice  # type: ignore[method-assign]


def successor_after_failure(core: Core) -> None:
    """A FIFO group goes on with the next message when one has failed."""
    tasks = core.worker.tasks
    if tasks._batches is not None:  # `the_rest_of_the_group_passes` is theirs
        return

    async def work_on_group(group: str) -> None:
        line = tasks._groups[group]
        try:
            while line:
                await tasks._work_on(line.first)
                await tasks.end_of(line.first)
                line.next_may_follow()
        finally:
            del tasks._groups[group]
            for entry in line:
                if entry.is_undecided:
                    tasks._settlement.settle(entry, RELEASED)

    tasks._work_on_group = work_on_group  # type: ignore[method-assign]


def places_after_the_receive(core: Core) -> None:
    """A receive always asks for a full batch, and takes its places when it has landed."""
    intake, receive = core.worker.intake, core.worker.intake._receive

    async def greedy(limit: int) -> None:
        intake._places_asked_for -= limit
        try:
            await receive(intake._config.batch)
        finally:
            intake._places_asked_for += intake._config.batch

    intake._receive = greedy  # type: ignore[method-assign]


def report_omits_the_poll(core: Core) -> None:
    """The report knows only of what was in flight when the drain began."""
    tally = core.worker.tally
    so_far = tally.so_far

    tally.so_far = lambda **now: replace(so_far(**now), receives_brought=0)  # type: ignore[method-assign]


def retry_forgets_the_deferral(core: Core) -> None:
    """The report does not name what has failed and stays invisible until its lease ends."""
    core.worker.ledger._postpone = lambda entry: None  # type: ignore[method-assign]


def delete_what_failed(core: Core) -> None:
    """A failed message is deleted, as if there were nothing to try again."""
    tasks = core.worker.tasks
    settle = core.worker.fates._settle_raised

    def forget(entry: Entry, error: BaseException) -> None:
        if isinstance(error, (Retry, Reject)):
            settle(entry, error)
        else:
            tasks._settlement.settle(entry, PROCESSED)

    core.worker.fates._settle_raised = forget  # type: ignore[method-assign]


def no_back_off(core: Core) -> None:
    """A receive that failed, or brought nothing, is followed by the next at once."""
    intake = core.worker.intake
    landed, failed = intake._landed, intake._failed

    def at_once(*args: Any) -> None:
        landed(*args)
        intake._pause_until = float("-inf")

    def failed_at_once(*args: Any) -> None:
        failed(*args)
        intake._pause_until = float("-inf")

    intake._landed, intake._failed = at_once, failed_at_once  # type: ignore[method-assign]


def breaker_holds_up_the_drain(core: Core) -> None:
    """A drain waits until the circuit breaker has closed."""
    worker = core.worker
    wait_drained = worker.wait_drained

    async def when_closed(deadline: float) -> str | None:
        while (held := worker.breaker.snapshot()) is not None and held.state is not State.CLOSED:
            await trio.sleep(1)
        return await wait_drained(deadline)

    worker.wait_drained = when_closed  # type: ignore[method-assign]


def breaker_without_effect(core: Core) -> None:
    """Receives begin however it stands."""
    core.worker.breaker.grants = lambda: (math.inf, None)  # type: ignore[method-assign]


def breaker_never_asks_again(core: Core) -> None:
    """The pause has no end, because nobody looks at the time."""
    breaker = core.worker.breaker
    grants = breaker.grants
    breaker.grants = lambda: (grants()[0], None)  # type: ignore[method-assign]


def back_off_unknown_to_the_queue(core: Core) -> None:
    """A failed message is written off, and its delay is never sent: the report tells a time that is not true."""
    settlement = core.worker.settlement
    settle = settlement.settle

    def forget(entry: Entry, fate: Fate, now: float | None = None) -> None:
        if fate.outcome is Outcome.FAILED:
            core.worker.ledger.decide(entry, fate)
            core.worker.ledger.hide(entry, trio.current_time())
            core.worker.ledger.end(entry, fate.outcome)
        else:
            settle(entry, fate)

    settlement.settle = forget  # type: ignore[method-assign]


class _Stamping:
    """The switch, where each registration gets the revision that the key has when it arrives."""

    def __init__(self, switch: Any) -> None:
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._switch, name)

    def _register(self, told: Registration) -> None:
        said = replace(told.acknowledgement, revision=self._switch.mod_revision())
        self._switch._register(replace(told, acknowledgement=said))


def acknowledge_what_was_not_acted_on(core: Core) -> None:
    """An acknowledgement is bound to the request that stands when it arrives, not to the one that the phase answers to."""
    if isinstance(core.registrar, SimulatedRegistrar):
        core.registrar._switch = _Stamping(core.registrar._switch)  # type: ignore[assignment]


def acknowledge_before_landing(core: Core) -> None:
    """Drained is said as soon as nothing is in flight; the receive on the wire is forgotten."""
    describe = core.registrar._describe  # type: ignore[union-attr]

    def early() -> Registration:
        now = describe()
        if now.acknowledgement.phase == "draining" and not core.worker.ledger:
            return replace(now, acknowledgement=replace(now.acknowledgement, phase="drained"))
        return now

    core.registrar._describe = early  # type: ignore[union-attr]


def cut_and_forget(core: Core) -> None:
    """The receive that a drain cuts short is not asked for again."""
    intake = core.worker.intake

    async def received(attempt: Any, asked: int, wait: int, sent: float) -> tuple[Sequence[Received], float]:
        queue, visibility = intake._queue, intake._config.visibility
        with trio.CancelScope() as cut:
            intake._cuts.add(cut)
            return await queue.receive(limit=asked, wait=wait, visibility=visibility, attempt=attempt.id), sent
        return (), sent

    intake._received = received  # type: ignore[method-assign]


def quiet_with_work_in_hands(core: Core) -> None:
    """Quiet is said as soon as the drain has begun."""
    worker = core.worker

    async def at_once() -> None:
        await trio.lowlevel.checkpoint()

    worker.wait_quiet = at_once  # type: ignore[method-assign]


def quiet_but_for_last_receives(core: Core) -> None:
    """A message that lands in its last receive is worked on, though quiet was said."""
    core.worker.deliveries.become_quiet = lambda: None  # type: ignore[method-assign]


def membership_ends_with_the_lease(core: Core) -> None:
    """Whoever's registration lapses is not known to belong to the fleet any more."""
    registrar = core.registrar
    if isinstance(registrar, Registrar):

        async def nothing(connection: object) -> None:
            pass

        registrar._belong = nothing  # type: ignore[method-assign]
        registrar._keep_true = nothing  # type: ignore[method-assign]


def receive_before_registration(core: Core) -> None:
    """The first receive does not wait until the fleet can see the instance."""
    core.worker.intake._may_begin = lambda: True


def leave_poison_to_the_queue(core: Core) -> None:
    """A message of a FIFO queue that fails after its last receive is given back, as those of standard queues are."""
    core.worker.fates._moves_to_dead_letters = lambda entry: False  # type: ignore[method-assign]


def group_ends_with_its_poison(core: Core) -> None:
    """When the head of a FIFO group was moved to the dead-letter queue, what comes after it is given back."""
    tasks = core.worker.tasks
    end_of = tasks.end_of

    async def give_back_the_others(entry: Entry) -> None:
        await end_of(entry)
        if entry.ended is Outcome.FAILED:
            for follower in tuple(tasks._groups.get(entry.message.group_id or "", ())):
                if follower.is_undecided:
                    tasks._settlement.settle(follower, RELEASED)

    tasks.end_of = give_back_the_others  # type: ignore[method-assign]


MUTATIONS: Mapping[str, Spoil] = {
    spoil.__name__: spoil
    for spoil in (
        abort_the_poll,
        release_nothing,
        release_after_the_deadline,
        settle_within_the_work,
        lease_from_task_start,
        heartbeat_skips_waiting,
        edge_triggered_switch,
        lost_wake_up,
        settle_twice,
        successor_after_failure,
        places_after_the_receive,
        report_omits_the_poll,
        retry_forgets_the_deferral,
        delete_what_failed,
        no_back_off,
        breaker_holds_up_the_drain,
        breaker_without_effect,
        breaker_never_asks_again,
        back_off_unknown_to_the_queue,
        acknowledge_what_was_not_acted_on,
        acknowledge_before_landing,
        receive_before_registration,
        cut_and_forget,
        quiet_with_work_in_hands,
        quiet_but_for_last_receives,
        membership_ends_with_the_lease,
        leave_poison_to_the_queue,
        group_ends_with_its_poison,
        settlement_dies_with_the_work,
        no_release_without_settlement,
        unconfirmed_is_confirmed,
        unconfirmed_extends_the_lease,
        a_failed_call_is_a_crash,
        defects_are_not_backed_off,
        leases_do_not_count_sleep,
        begun_beside_its_call,
        begun_beside_its_thread,
        threads_are_forgotten,
        what_a_thread_finished_is_forgotten,
        releases_without_answer_are_repeated,
        marks_are_forgotten,
        items_share_one_outcome,
        the_rest_of_the_group_passes,
        one_lost_lease_cancels_all,
        a_lost_item_is_begun_again_beside_its_batch,
        a_drain_lets_linger,
        batches_without_a_size,
        a_group_is_gathered_out_of_order,
        items_are_dropped_at_the_deadline,
        cancelled_is_taken_for_returned,
        copies_do_not_wait,
        a_receipt_is_taken_twice,
    )
}


VOID = (AttributeError, TypeError, NameError)
"""The mistakes of a mutation that does not fit the program any more: being caught by them proves nothing."""


class VoidMutation(Exception):
    """A mutation has failed by itself."""


def caught(spoil: Spoil, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
    """The seeds of the schedules that catch it, and what each says first."""
    for seed in seeds:
        result = run_schedule(random_schedule(seed), mutated(spoil))
        for error in result.errors:
            if isinstance(error, VOID):
                raise VoidMutation(f"{spoil.__name__}, seed {seed}: {error!r}") from error
        if result.violations:
            yield seed, result.violations[0]


def report(schedules: int, first: int) -> int:
    missed = []
    print(f"{schedules} schedules each, seeds from {first}")
    for name, spoil in MUTATIONS.items():
        began = time.monotonic()
        with muted():
            found = list(caught(spoil, range(first, first + schedules)))
        if not found:
            missed.append(name)
            print(f"{name:28} NOT CAUGHT ({time.monotonic() - began:.0f} s)", flush=True)
            continue
        seed, what = found[0]
        print(f"{name:28} caught in {len(found):4}, first by seed {seed}: {what.splitlines()[0][:110]}", flush=True)
    print(f"{len(MUTATIONS) - len(missed)} of {len(MUTATIONS)} mutations are caught")
    return 1 if missed else 0
