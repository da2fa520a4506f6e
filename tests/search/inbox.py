"""Exactly once in the search: the same schedules, with a processor whose effects go into the simulated database.

The database has troubles of its own, drawn from the schedule's seed: connections lost before a claim or a commit, answers
to commits that are lost, and journeys that take their time. Three more things must hold:

21. *Exactly once.* No message's effect is committed twice, at whatever instances. A message that is deleted, and was neither
    rejected nor given up, has its effect committed by then.
22. *A commit is sent under a lease*, and only for a run that has returned. When it leaves, its delivery still holds the message
    at the server, and the instance has not given it back. (Exempt are deliveries that the queue itself superseded, as in 4.)
23. *The database outlives its users.* No processor meets a pool that its own service has closed.
"""

import argparse
import random
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import trio

from svc.core import Core
from svc.processors import Message, Process, Reject, Retry, Transaction, processor
from svc.testing import SimulatedInbox
from svc.testing.faults import Fault
from svc.testing.history import Deleted
from svc.testing.inbox import Open, Trouble

from .invariants import EPSILON, Invariants
from .processing import AFTERWARDS
from .random_schedules import random_schedule
from .run import MakeCore, Result, World, muted, run_schedule
from .schedule import Schedule, Work
from .witness import Instance, Running

RETENTION = 100_000.0
"""Seconds: longer than any schedule."""


def inbox_schedule(seed: int) -> Schedule:
    """`random_schedule(seed)`, and in half of them leases that are lost to processors that ignore it."""
    schedule, draw = random_schedule(seed), random.Random(f"leases {seed}")
    # Transactions are held by tasks of Trio: threads in virtual time are no place for them (tests/database has real ones).
    schedule = replace(schedule, setup=replace(schedule.setup, threads=False, typed=False))
    if draw.random() < 0.5:
        return schedule
    start = draw.uniform(0, 5)
    refused = Fault("error", "change_visibility", start=start, end=start + 2 * schedule.setup.visibility)
    arrivals = tuple(
        replace(arrival, runs=tuple(_ignoring(work, draw) for work in arrival.runs or (Work(seconds=5.0),)))
        for arrival in schedule.arrivals
    )
    return replace(schedule, arrivals=arrivals, faults=(*schedule.faults, refused))


def _ignoring(work: Work, draw: random.Random) -> Work:
    return replace(work, stubborn=draw.choice([0.5, 3.0])) if draw.random() < 0.5 else work


class WatchedInbox(SimulatedInbox):
    """The database of all instances. Effects are statements with the message, its receipt and the instance."""

    def __init__(self, world: "InboxWorld") -> None:
        draw, setup = random.Random(f"database {world.schedule.seed}"), world.schedule.setup
        # Where no heartbeat can be in time, claim, effect and commit still fit into the lease that a receive brings.
        most = max(0.0, (setup.visibility - 2 * setup.latency[1] - 0.2) / 8)
        super().__init__(
            seconds=(0.0, min(most, draw.choice([0.0, 0.05, 0.5, 2.0]))),
            faults=self._fails,
            rng=draw,
        )
        self.retention = RETENTION
        self._world = world
        self._draw = draw
        self._share = draw.choice([0.0, 0.1, 0.3])

    def _fails(self, what: Trouble) -> bool:
        if trio.current_time() >= self._world.schedule.calm_at or self._draw.random() >= self._share:
            return False
        self._world.tried[f"database {what}"] += 1
        return True

    def sent(self, transaction: Open) -> None:
        self._world.check_lease(transaction)
        super().sent(transaction)

    def commit(self, transaction: Open) -> None:
        before = len(self.committed)
        super().commit(transaction)
        for one in self.committed[before:]:
            self._world.committed([params for _, params in one.statements])


class InboxInvariants(Invariants):
    def __init__(self, world: "InboxWorld") -> None:
        super().__init__(world.witness)
        self._world = world

    def deleted(self, event: Deleted) -> None:
        super().deleted(event)
        world, message_id = self._world, event.message_id
        if not (world.effects[message_id] or message_id in world.rejected or message_id in world.witness.given_up):
            self._violated(f"21 {message_id} is deleted, but no effect of it is committed")


class InboxWorld(World):
    def __init__(self, schedule: Schedule, make_core: MakeCore, tried: Counter[str]) -> None:
        super().__init__(schedule, make_core, tried)
        self.effects = Counter[str]()
        """By message id: committed."""
        self.rejected: set[str] = set()
        self._returned: set[str] = set()
        self._runs_at: dict[tuple[int, str], Running] = {}
        self.witness.check = InboxInvariants(self)
        self.inbox = WatchedInbox(self)

    @property
    def calm_lasts(self) -> float:
        """Longer: what the database has lost comes back after its lease; and a key that somebody holds is waited for, as long
        as a lease takes, and comes back after as long."""
        rounds = sum(len(arrival.runs) + 2 for arrival in self.schedule.arrivals)
        return super().calm_lasts + rounds * (3 * self.schedule.setup.visibility + 12)

    async def run(self) -> None:
        trio.lowlevel.spawn_system_task(self._forget)
        await super().run()
        self.tried["effects"] += sum(self.effects.values())
        self.tried["duplicates"] += sum(
            one.service.duplicates for one in self.witness.instances if one.core is not None
        )

    async def _forget(self) -> None:
        while True:
            await trio.sleep(0.5)
            self.inbox.forget(self.inbox.retention)

    # -- what the database tells --

    def committed(self, effects: list[tuple[str, str, int]]) -> None:
        for _, receipt, _ in effects:
            if receipt not in self._returned:
                self.witness.violated(f"22 the effect of the run on {receipt} is committed, but it has not returned")
        for message_id in {message_id for message_id, _, _ in effects}:
            self.effects[message_id] += 1
            # A commit whose answer is lost has finished the message too.
            self.witness.finished.add(message_id)
            self.witness.succeeded.add(message_id)
            if self.effects[message_id] > 1:
                self.witness.violated(f"21 the effect of {message_id} is committed twice")

    def check_lease(self, transaction: Open) -> None:
        for _, (message_id, receipt, number) in transaction.statements:
            witness, now = self.witness, trio.current_time()
            if receipt in witness.duplicated:
                continue
            if witness.leases.get(receipt, 0.0) < now - EPSILON:
                witness.violated(f"22 a commit for {message_id} is sent, but the lease of {receipt} is over")
            if receipt in self._instance(number).asked:
                witness.violated(f"22 a commit for {message_id} is sent, but {receipt} was given back")

    # -- the instances --

    def _inbox(self) -> SimulatedInbox:
        return self.inbox

    def _processor(self, number: int) -> Any:
        @processor(exactly_once=True)
        async def work(message: Message, transaction: Transaction) -> None:
            await self._work(number, message, transaction)

        return work

    def _build(self, number: int, settings: Any, queue: Any, process: Process, *args: Any, **options: Any) -> Core:
        async def seen(message: Message) -> None:
            error: BaseException | None = None
            try:
                await process(message)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._ended(number, message, error)

        seen.__wrapped__ = process  # type: ignore[attr-defined]
        return super()._build(number, settings, queue, seen, *args, **options)

    async def _work(self, number: int, message: Message, transaction: Transaction) -> None:
        instance = self._instance(number)
        runs = self.schedule.arrivals[int(message.body)].runs
        nth = self._runs[message.id]
        self._runs[message.id] += 1
        work = runs[nth] if nth < len(runs) else AFTERWARDS
        run = self.witness.began(instance, message)
        self._runs_at[number, run.receipt] = run
        try:
            await self._effect(work, run, transaction)
            self._returned.add(run.receipt)
        finally:
            self.witness.interrupted(run)  # what follows, the answer to the commit, needs no lease

    async def _effect(self, work: Work, run: Running, transaction: Transaction) -> None:
        await transaction.execute("effect", (run.message_id, run.receipt, run.instance.number))
        try:
            await trio.sleep(work.seconds)
        except trio.Cancelled:
            if not work.stubborn:
                raise
            self.witness.interrupted(run)
            with trio.CancelScope(shield=True):
                await trio.sleep(work.stubborn)
        match work.does:
            case "fail":
                raise ValueError("the processor failed")
            case "retry":
                raise Retry(after=work.again)
            case "reject":
                raise Reject("no good")
            case "exit":
                raise SystemExit(3)
            case "leave":
                nursery = await trio.open_nursery().__aenter__()
                nursery.start_soon(trio.sleep_forever)

    def _ended(self, number: int, message: Message, error: BaseException | None) -> None:
        """A run has ended, with its transaction; or there was none: a duplicate, a key that is busy, a database out of reach."""
        instance, receipt = self._instance(number), f"{message.id}#{message.receive_count}"
        rejected, cancelled = isinstance(error, Reject), isinstance(error, trio.Cancelled)
        failed = error is not None and not rejected and not cancelled
        run = self._runs_at.pop((number, receipt), None)
        if failed and not instance.crashed and "the pool is closed" in str(error):
            self.witness.violated(f"23 {instance}: {receipt} met a closed pool")
        if run is None and error is not None and self._holds(instance, receipt):
            run = self.witness.began(instance, message)
        if run is not None:
            if rejected and not instance.crashed:
                self.rejected.add(message.id)
            self.witness.ends(run, finished=error is None or rejected, rejected=rejected, failed=failed)

    def _holds(self, instance: Instance, receipt: str) -> bool:
        return receipt in instance.landed and self.witness.leases.get(receipt, 0.0) >= trio.current_time() - EPSILON


def run_with_inbox(schedule: Schedule, make_core: MakeCore = Core) -> Result:
    return run_schedule(schedule, make_core, InboxWorld)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.search.inbox", description="Search with a database.")
    parser.add_argument("--schedules", type=int, default=1000, help="how many schedules (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow it (default 0)")
    options = parser.parse_args()
    tried, failed = Counter[str](), 0
    with muted():
        for seed in range(options.seed, options.seed + options.schedules):
            result = run_with_inbox(inbox_schedule(seed))
            tried.update(result.tried)
            if result.violations:
                failed += 1
                print(f"seed {seed}: {result.violations[0]}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(tried.items())))
    print(f"{failed} failed" if failed else "no counter-example")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
