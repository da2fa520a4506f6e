"""Runs one schedule, in virtual time and always in the same way: the whole service between a simulated queue and switch."""

import contextlib
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
import trio
import trio.testing

from svc.consumer.fates import BESIDE_ITSELF
from svc.consumer.worker import LAST_RELEASE, LATE
from svc.core import Core
from svc.defects import PartFailed
from svc.maintenance.fleet import Request, Wait
from svc.maintenance.fleet import Result as FleetResult
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.switch_value import parse_switch
from svc.testing import SimulatedInbox, SimulatedQueue, SimulatedSwitch
from svc.testing.faults import Call, Fault, fault_for
from svc.testing.service import SimulatedService
from svc.testing.threads import VirtualThreads

from .copies import RepeatingQueue, let_copies_come_together
from .defects import NotedDefects, may_fail
from .invariants import EPSILON
from .old_receipts import let_old_receipts_act
from .processing import FAILS, RAISES, Processing
from .schedule import Ask, Flip, Life, Schedule
from .troubles import LAST_WORD, PUT_RIGHT, EtcdTrouble, Troubles
from .witness import Instance, WatchedQueue, Witness, cancel_everything

MakeCore = Callable[..., Core]
"""`Core`, or something that builds one with the same arguments and then spoils it."""

BACKED_OFF = {"off": 0.0, "1s-4s": 4.0, "5s-15m": 900.0, "20s": 20.0}
"""The most that a back-off takes, in seconds."""

PAUSE = 4.0
"""The longest pause of the circuit breaker, in seconds."""


@dataclass(slots=True)
class Result:
    """What came of a schedule."""

    violations: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    """schedules, messages, runs, calls, faults, drains, crashes, flips, …"""
    errors: list[BaseException] = field(default_factory=list)
    """What nobody caused on purpose: it stands among the violations, too."""
    queue: SimulatedQueue | None = None
    witness: Witness | None = None


def run_schedule(schedule: Schedule, make_core: MakeCore = Core, make_world: "type[World] | None" = None) -> Result:
    """Run it to its end. Nothing is raised for what the service does wrong: it stands in `Result.violations`. `make_world`: one
    with more in it than a queue and a switch."""
    result = Result()
    result.tried["schedules"] = 1
    with deterministic_scheduling(schedule.seed):
        try:
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(_main, schedule, make_core, result, make_world or World, clock=clock)
        except Exception as error:
            result.errors.append(error)
            result.violations.append("15 crashed:\n" + traceback.format_exc())
    return result


@contextlib.contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """Within, Trio's scheduler shuffles the tasks that can run by a Random of this seed.

    The only place that touches Trio's internals, and in the way in which pytest-trio and Hypothesis do
    (`trio._core._run._hypothesis_plugin_setup`, pytest_trio/plugin.py): with `_ALLOW_DETERMINISTIC_SCHEDULING` each batch of
    tasks is sorted by their age and then shuffled by `_r`, where else it would be reversed every other time.
    """
    run = trio._core._run  # type: ignore[attr-defined]
    before, state = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before
        run._r.setstate(state)


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within, nobody logs: it costs more than all the rest."""
    before, level = structlog.get_config(), logging.root.manager.disable
    structlog.configure(
        processors=[_drop],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        structlog.configure(**before)
        logging.disable(level)


async def _main(schedule: Schedule, make_core: MakeCore, result: Result, make_world: "type[World]") -> None:
    world = make_world(schedule, make_core, result.tried)
    result.queue, result.witness = world.queue, world.witness
    result.violations, result.errors = world.witness.violations, world.witness.errors
    trio.lowlevel.add_instrument(world.witness)
    trio.lowlevel.spawn_system_task(_end_in_time, world)
    await world.run()
    trio.lowlevel.remove_instrument(world.witness)


async def _end_in_time(world: "World") -> None:
    """What waits for ever behind a shield would make the clock jump for ever."""
    await trio.sleep_until(world.schedule.calm_at + world.calm_lasts + world.stop_lasts + 100)
    world.witness.violated("15 the run does not end")
    cancel_everything()


class World:
    """A queue, a switch, the instances that come and go, and the witness."""

    def __init__(self, schedule: Schedule, make_core: MakeCore, tried: Counter[str]) -> None:
        setup = schedule.setup
        self.schedule = schedule
        self.tried = tried
        self._rng = random.Random(schedule.seed)
        dead = None
        if setup.max_receives is not None:
            dead = SimulatedQueue("dead", fifo=setup.fifo, content_deduplication=setup.fifo)
        self.queue = SimulatedQueue(
            "q",
            fifo=setup.fifo,
            dead_letters=dead,
            max_receive_count=setup.max_receives,
            request_seconds=setup.latency,
            answer_seconds=setup.latency,
            duplicates=setup.duplicates,
            disorder=setup.disorder,
            missed=setup.missed,
            resurrections=setup.resurrections,
            faults=self._fault,
            rng=self._rng,
        )
        if setup.together:
            let_copies_come_together(self.queue, setup.together, random.Random(f"together {schedule.seed}"))
        if setup.old_receipts:
            let_old_receipts_act(self.queue)
        self.switch = SimulatedSwitch(
            "off",
            notices=schedule.notices,
            outages=schedule.outages,
            reread=setup.reread,
            # Only etcd's watches keep the order; for the rest of what is promised it is not needed.
            ordered=bool(schedule.asks),
            write_seconds=schedule.write_seconds,
            rng=random.Random(f"switch {schedule.seed}"),
        )
        self.troubles: Troubles | None = None
        if schedule.etcd is not None:
            self.troubles = Troubles(
                schedule.etcd,
                schedule.seed,
                alive=self._alive,
                on_restored=lambda: self.witness.check.forget_requests(),
            )
            self.switch = self.troubles.switch
        self.witness = Witness(schedule, self.queue, self.switch)
        self._make_core = make_core
        self._slept = 0.0
        self._processing = Processing(schedule, self.witness, self._instance)
        self._runs = self._processing.runs
        self._nursery: trio.Nursery | None = None
        self._settings = {
            "SQS_MAX_NUMBER_OF_MESSAGES": str(setup.batch),
            "SQS_WAIT_TIME_SECONDS": str(setup.wait),
            "SQS_VISIBILITY_TIMEOUT_SECONDS": str(setup.visibility),
            "SQS_POLL_INTERVAL": str(setup.poll_interval),
            "DRAIN_TIMEOUT": str(setup.drain_timeout),
            "RETRY_BACKOFF": setup.retry_backoff,
            "SQS_BATCH_LINGER": str(setup.linger),
            "SQS_MAX_RECEIVERS": str(setup.receivers),
            "BREAKER_FAILURES": setup.breaker,
            "BREAKER_WINDOW": "20s",
            "BREAKER_PAUSE": "1s-4s",
            "MAX_CONCURRENCY": str(setup.concurrency),
            # What a processor rejects is finished, with a dead-letter queue or without (invariant 1).
            "REJECT_WITHOUT_DLQ": "delete",
        }
        if schedule.etcd is not None:
            self._settings["INSTANCE_TTL"] = str(schedule.etcd.ttl)

    def _fault(self, call: Call) -> Fault | None:
        fault = fault_for(self.schedule.faults, call)
        if fault is not None:
            self.tried["faults"] += 1
            self.tried["landings held"] += fault.what == "delay-after"
        return fault

    async def run(self) -> None:
        schedule, witness = self.schedule, self.witness
        actions: list[tuple[float, Callable[[], None]]] = []
        actions += [(arrival.at, partial(self._arrive, number)) for number, arrival in enumerate(schedule.arrivals)]
        actions += [(flip.at, partial(self._flip, flip)) for flip in schedule.flips]
        actions += [(ask.at, partial(self._ask, ask)) for ask in schedule.asks]
        actions += [(nap.at, partial(self._sleep, nap.seconds)) for nap in schedule.naps]
        if schedule.etcd is not None:
            actions += [(trouble.at, partial(self._trouble, trouble)) for trouble in schedule.etcd.troubles]
        for number, life in enumerate(schedule.lives):
            actions.append((life.start, partial(self._start, number)))
            if life.end is not None:
                actions.append((life.end, partial(self._end, number, life)))
        async with trio.open_nursery() as self._nursery:
            for at, action in sorted(actions, key=lambda pair: pair[0]):
                if at > trio.current_time():
                    await trio.sleep_until(at)
                action()
            await trio.sleep_until(schedule.calm_at)
            if self.troubles is not None:
                self.troubles.put_right()
            if self._may_be_on():
                self.switch.set("off")
            switched = (*schedule.flips, *schedule.asks)
            for instance in sorted({self._id(one.instance) for one in switched if one.instance is not None}):
                if self.switch.mod_revision(instance):
                    self.switch.set(None, instance=instance)
            if all(life.end is not None for life in schedule.lives):
                self._start(len(schedule.lives))
            with trio.move_on_after(self.calm_lasts) as calm:
                await witness.all_gone.wait()
            for instance in witness.instances:
                self._stop(instance)
            with trio.move_on_after(self.stop_lasts) as stopping:
                for instance in witness.instances:
                    await instance.ended.wait()
            if stopping.cancelled_caught:
                witness.violated("15 an instance does not stop")
            witness.check.at_end(in_time=not calm.cancelled_caught)
            self._nursery.cancel_scope.cancel()
        self.tried.update(
            messages=len(schedule.arrivals),
            runs=witness.runs_counted,
            calls=sum(self.queue.calls.values()),
            flips=len(schedule.flips),
            asks=len(schedule.asks),
            cut_short=witness.cut_short,
            threads=witness.threads_left,
            resurrections=witness.resurrections,
            suspensions=len(schedule.naps),
            batches=witness.batches_counted,
            **self._kinds(),
            lapses=0 if self.troubles is None else self.troubles.etcd.lapsed,
            crashes=sum(life.how == "crash" for life in schedule.lives if life.end is not None),
            drains=sum(witness.drains[outcome.value] for outcome in DrainOutcome),
            **{
                "old receipts": witness.old_receipts,
                "copies": witness.copies,
                "copies in one answer": witness.copies_together,
                "receipts twice": witness.receipts_twice,
            },
            **{f"drains {outcome}": count for outcome, count in witness.drains.items()},
        )

    def _kinds(self) -> dict[str, int]:
        """What kind of schedule it is."""
        setup = self.schedule.setup
        return {
            "schedules of batches": setup.batching > 0,
            "schedules on asyncio": setup.asyncio,
            "schedules of typed payloads": setup.typed,
        }

    def _may_be_on(self) -> bool:
        """Whether the key holds anything but a plain off. An off that stands is not repeated: the service must know it."""
        try:
            return parse_switch(self.switch.value).on
        except ValueError:
            return True

    @property
    def calm_lasts(self) -> float:
        """Seconds in which everything that is left can be finished: all runs one after the other, and for each round of the
        slowest message (or group) a lease that has to run out, a poll, and the journeys of its calls."""
        setup = self.schedule.setup
        arrivals = self.schedule.arrivals
        # In a batch one that raises takes the others with it.
        raising = sum(run.does in RAISES for arrival in arrivals for run in arrival.runs) if setup.batching else 0
        rounds = [len(arrival.runs) + 2 + raising for arrival in arrivals]
        work = sum(run.seconds + run.stubborn + 1 for arrival in self.schedule.arrivals for run in arrival.runs)
        retries = sum(run.again for arrival in self.schedule.arrivals for run in arrival.runs)
        # A receive that a drain wasted counts for the back-off all the same: hence the cap, not the steps.
        failures = sum(run.does in FAILS for arrival in self.schedule.arrivals for run in arrival.runs)
        failures += raising * len(arrivals)
        retries += failures * BACKED_OFF[setup.retry_backoff]
        if setup.threads:
            # What came back beside its own thread was put off, as often as it was received.
            retries += sum(rounds) * (BESIDE_ITSELF[1] + setup.visibility)
        if setup.breaker != "off":
            # After each failure a pause, and then no more than a few messages at once: the work is done as good as one by one.
            retries += sum(rounds) * (PAUSE + min(setup.wait, 20))
        most = sum(rounds) if setup.fifo else max(rounds, default=0)
        each = setup.visibility + min(setup.wait, 20) + 8 * setup.latency[1] + 2 + setup.lingering
        found = setup.reread if self.troubles is None else PUT_RIGHT
        return 10 + found + work + retries + len(rounds) + most * each

    @property
    def stop_lasts(self) -> float:
        """Seconds that a stop takes at most: a drain, the last release, and processors that ignore their cancellation."""
        stubborn = sum(run.stubborn for arrival in self.schedule.arrivals for run in arrival.runs)
        last_word = 0.0 if self.troubles is None else LAST_WORD
        return self.schedule.setup.drain_timeout + LATE + LAST_RELEASE + stubborn + last_word + EPSILON

    # -- what happens --

    def _arrive(self, number: int) -> None:
        arrival = self.schedule.arrivals[number]
        readable = arrival.readable or not self.schedule.setup.typed
        body = str(number) if readable else f"not {number}"
        if self.schedule.setup.fifo:
            message_id = self.queue.put(body, group_id=arrival.group, deduplication_id=str(number))
        else:
            message_id = self.queue.put(body)
        if not readable:
            self.witness.unreadable.add(message_id)

    def _flip(self, flip: Flip) -> None:
        self.switch.set(flip.value, instance=None if flip.instance is None else self._id(flip.instance))

    def _sleep(self, seconds: float) -> None:
        self._slept += seconds
        self.queue.suspended(seconds)

    def _clock(self) -> float:
        """That goes on while the machine sleeps."""
        return trio.current_time() + self._slept

    def _ask(self, ask: Ask) -> None:
        assert self._nursery is not None
        value = '{"enabled": true, "quiet": true}' if ask.quiet else "on"
        instance = None if ask.instance is None else self._id(ask.instance)
        revision = self.switch.set(value, instance=instance)
        self._nursery.start_soon(self._wait_for_the_fleet, Request(True, revision, instance, ask.quiet))

    def _trouble(self, trouble: EtcdTrouble) -> None:
        assert self._nursery is not None
        assert self.troubles is not None
        self.tried[f"etcd {trouble.what}"] += 1
        self._nursery.start_soon(self.troubles.bring, trouble, self._id(trouble.instance))

    def _alive(self) -> set[str]:
        return {self._id(instance.number) for instance in self.witness.instances if instance.watched}

    def _id(self, number: int) -> str:
        """Of an instance, in the fleet."""
        etcd = self.schedule.etcd
        return f"instance-{0 if number == 1 and etcd is not None and etcd.twin else number}"

    async def _wait_for_the_fleet(self, request: Request) -> None:
        """As `svc maintenance on --wait`, until the end of the schedule."""
        wait, switch = Wait(request), self.switch

        def answered() -> bool:
            wait.key(switch.mod_revision(request.instance))
            wait.all(switch.entries(), switch.members())
            return wait.standing().result is not None

        # Judged in the moment in which it comes true, or a lease runs out.
        while not answered():
            with trio.move_on_at(switch.next_end()):
                await switch.changed.wait_until(answered)
        result = wait.standing().result
        assert result is not None
        self.tried[f"asks {result.value}"] += 1
        self.tried["asks quiet"] += request.quiet
        nobody = result is FleetResult.NONE and self.troubles is None and request.instance is None
        if result is FleetResult.DONE or nobody:  # nobody there: then nobody may be at work either
            self.witness.check.has_drained(request)

    def _start(self, number: int) -> None:
        make = partial(self._build, number)
        service = SimulatedService(
            self.queue,
            self._processor(number),
            switch=self.switch,
            inbox=self._inbox(),
            rng=random.Random(self.schedule.seed + number),
            make_core=make,
            label=f"number {number}",
            INSTANCE_ID=self._id(number),
            **self._settings,
        )
        instance = Instance(number, service, began=trio.current_time())
        self.witness.instances.append(instance)
        assert self._nursery is not None
        self._nursery.start_soon(self._live, instance)

    async def _live(self, instance: Instance) -> None:
        try:
            with instance.scope:
                await instance.service.run()
        except* PartFailed:
            pass  # the schedule's doing, or noted in `NotedDefects`
        finally:
            self.witness.check.ended(instance)
            instance.ended.set()
            if instance.threads is not None:
                instance.threads.die()

    def _build(self, number: int, settings: Any, queue: Any, process: Any, *args: Any, **options: Any) -> Core:
        instance = self._instance(number)
        options["defects"] = NotedDefects(self.witness, instance)
        options["clock"] = self._clock
        if self.schedule.setup.threads:
            process = instance.threads = VirtualThreads(
                process, settings.max_concurrency, partial(self.witness.left_behind, instance)
            )
        if repeats := self.schedule.setup.repeats:
            rng = random.Random(f"repeats {self.schedule.seed} {number}")
            queue = RepeatingQueue(queue, repeats, rng, in_flight=instance.has_in_flight)
        watched = WatchedQueue(queue, self.witness, instance)
        instance.core = self._make_core(settings, watched, process, *args, **options)
        if number < len(self.schedule.lives) and (part := self.schedule.lives[number].part):
            may_fail(instance.core, part, instance.fails)
        instance.core.worker.heartbeat._queue = WatchedQueue(queue, self.witness, instance, heartbeat=True)
        return instance.core

    def _instance(self, number: int) -> Instance:
        return next(instance for instance in self.witness.instances if instance.number == number)

    def _end(self, number: int, life: Life) -> None:
        instance = self._instance(number)
        if life.how == "stop":
            self._stop(instance)
            return
        if life.how == "crash":
            self.witness.crashed(instance)
            instance.service.crash()
            return
        if instance.ended.is_set():
            return
        instance.cancelled_at = trio.current_time()
        if life.how == "fail":
            self.tried["parts failed"] += 1
            instance.fails.set()
        else:
            instance.scope.cancel(reason="second signal")

    def _stop(self, instance: Instance) -> None:
        if instance.core is None:
            instance.scope.cancel(reason="stopped before it was built")
        else:
            instance.core.manager.stop()

    def _processor(self, number: int) -> Callable[..., object]:
        return self._processing.of(number)

    def _inbox(self) -> SimulatedInbox | None:
        return None
