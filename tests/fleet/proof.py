"""Rounds of maintenance over a fleet of real processes, judged from outside.

A round: five instances work on one queue under load, one etcd cluster of three. `svc maintenance on --wait` is started, and while
it waits an instance is killed, one is frozen past its lease and thawed, one is started anew, and the leader of etcd is killed.
When the command ends with 0, nobody's word counts: the relay before SQS must know of no receive on the wire and of no message
that a living instance holds, and the processors' own record of no run that has not ended. Nothing may be received until
`off --wait`; after it everybody receives again.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from svc.devstack.stack import Moto
from tests.etcd_cluster import EtcdCluster, Member
from tests.live import Calls, Instance, Stand, recorded, stand

INSTANCES = 5
TTL = 5
"""Seconds of an instance's lease: INSTANCE_TTL."""
VISIBILITY = 25
"""Seconds after which what a killed instance held is visible again; a frozen one keeps its own over the freeze."""
AT_ONCE = 1.0
"""Seconds after its thaw in which what an instance was just sending goes out."""
FREEZE = TTL + 3.0
"""Seconds. etcd keeps a lease for its TTL, and a new leader extends every lease once by that."""


@dataclass
class Command:
    """A `svc maintenance …` that has ended."""

    code: int
    output: str
    began: float
    """Wall time."""
    ended: float
    """Wall time."""


@dataclass
class RoundResult:
    """What one round measured."""

    number: int
    code: int
    seconds: float
    """From the start of `on --wait` to its end."""
    off_seconds: float
    received: int
    killed: str
    frozen: str
    named_dead: bool
    """The command named the killed instance."""
    late: list[str]
    """A receive of the frozen instance that was being sent when it froze, and went out at its thaw. The command had named it as
    vanished: nobody can know what such an instance is about to do."""
    faults: list[str] = field(default_factory=list)
    """What should not have been. Empty: the round holds."""


class Fleet:
    """Instances, each behind a relay of its own, on one queue and one etcd cluster."""

    def __init__(self, place: Stand, moto: Moto, cluster: EtcdCluster, relays: ExitStack) -> None:
        self.place = place
        self.cluster = cluster
        self.live: dict[str, tuple[Instance, Calls]] = {}
        self.dead: dict[str, tuple[Instance, Calls]] = {}
        self._moto = moto
        self._relays = relays
        self._names = itertools.count(1)
        self.sent: list[str] = []

    async def start(self) -> str:
        """One more instance; returns its id when it serves."""
        name = f"i{next(self._names)}"
        calls = self._relays.enter_context(recorded(self._moto.url))
        instance = await self.place.start(INSTANCE_ID=name, AWS_ENDPOINT=calls.url)
        self.live[name] = (instance, calls)
        return name

    def kill(self, name: str) -> None:
        self.live[name][0].signal(signal.SIGKILL)
        self.dead[name] = self.live.pop(name)

    async def load(self, rng: random.Random, rate: float) -> None:
        """Send messages until cancelled."""
        for number in itertools.count():
            body = json.dumps({"number": number, "seconds": round(rng.uniform(0.05, 1.5), 2)})
            await self.place.queue.send(body)
            self.sent.append(body)
            await trio.sleep(rng.expovariate(rate))

    def unfinished_runs(self) -> dict[int, set[str]]:
        """Process id → ids of the messages that its processors have begun and not ended, by their own record."""
        running: dict[int, set[str]] = {}
        for event in self.place.events():
            at_work = running.setdefault(event["pid"], set())
            if event["event"] == "began":
                at_work.add(event["id"])
            else:
                at_work.discard(event["id"])
        return running

    def still_at_work(self) -> list[str]:
        """What contradicts "every living instance has drained", one sentence each."""
        faults = []
        unfinished = self.unfinished_runs()
        for name, (instance, calls) in self.live.items():
            if calls.under_way("ReceiveMessage"):
                faults.append(f"{name} has a receive on the wire")
            if calls.held:
                faults.append(f"{name} holds {len(calls.held)} message(s)")
            if at_work := unfinished.get(instance.pid):
                faults.append(f"a processor of {name} is at work on {len(at_work)} message(s)")
        return faults

    def receives_between(self, begin: float, end: float, *, thawed: tuple[str, float]) -> list[str]:
        """Receives that began when there should have been none. `thawed`: an instance that was frozen, and the wall time until
        which one receive of it is none of these: it was being sent when it froze."""
        faults = []
        for name, (_, calls) in (self.live | self.dead).items():
            times = [at for at in calls.of("ReceiveMessage") if begin < at < end]
            if name == thawed[0] and times and times[0] < thawed[1]:
                del times[0]
            if times:
                faults.append(
                    f"{name} began {len(times)} receives after the fleet had drained, {times[0] - begin:.3f} s after"
                )
        return faults

    async def command(self, *words: str) -> Command:
        """`svc maintenance <words>` in a process of its own."""
        began = time.time()
        done = await trio.run_process(
            [sys.executable, "-m", "svc", "maintenance", *words],
            env={**os.environ, **self.place.environ},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        output = done.stdout.decode() + done.stderr.decode()
        return Command(done.returncode, output, began, time.time())


@asynccontextmanager
async def fleet(folder: Path, *, instances: int = INSTANCES) -> AsyncIterator[Fleet]:
    """A fleet at work, on a stack of its own. Leaves no process behind."""
    with ExitStack() as stack:
        moto = stack.enter_context(Moto())
        cluster = stack.enter_context(EtcdCluster(3))
        async with stand(
            moto,
            cluster.endpoints,
            "fleet",
            "/maintenance/fleet",
            folder / "record",
            INSTANCE_TTL=str(TTL),
            SQS_VISIBILITY_TIMEOUT_SECONDS=str(VISIBILITY),
            DRAIN_TIMEOUT="20s",
            MAX_CONCURRENCY="10",
        ) as place:
            held = Fleet(place, moto, cluster, stack)
            async with trio.open_nursery() as nursery:
                for _ in range(instances):
                    nursery.start_soon(held.start)
            yield held


async def one_round(fleet: Fleet, number: int, rng: random.Random) -> RoundResult:
    """Maintenance on while everything that can happen happens, and off again."""
    killed, frozen = rng.sample(sorted(fleet.live), 2)
    commands: list[Command] = []
    leader: Member = fleet.cluster.leader()
    thawed, thawed_at = trio.Event(), 0.0

    async def wait_for_drained() -> None:
        commands.append(
            # Who is killed or frozen has vanished, which would be exit code 5.
            await fleet.command(
                "on", "--wait", "--allow-vanished", "--timeout", "60s", "--json", "--reason", f"round {number}"
            )
        )

    async def freeze() -> None:
        await trio.sleep(rng.uniform(0, 1.2))
        process = fleet.live[frozen][0]
        process.signal(signal.SIGSTOP)
        await trio.sleep(FREEZE)
        process.signal(signal.SIGCONT)
        nonlocal thawed_at
        thawed_at = time.time()
        thawed.set()

    async def kill() -> None:
        await trio.sleep(rng.uniform(0, 1.5))
        fleet.kill(killed)

    async def kill_leader() -> None:
        await trio.sleep(rng.uniform(0, 1.5))
        await trio.to_thread.run_sync(leader.kill)

    async with trio.open_nursery() as nursery:
        for happening in (wait_for_drained, freeze, kill, kill_leader, fleet.start):
            nursery.start_soon(happening)
        with trio.fail_after(70):
            while not commands:
                await trio.sleep(0.01)
        (on,) = commands
        # Everything is looked at in this moment; a frozen instance is dead to etcd, and is judged after its thaw.
        # What was frozen may have thawed a moment ago, and not be registered again.
        faults = [fault for fault in fleet.still_at_work() if frozen not in fault.split()]

    with trio.move_on_after(25):
        while fleet.still_at_work():
            await trio.sleep(0.05)
    faults += [f"later: {fault}" for fault in fleet.still_at_work()]
    if on.code != 0:
        faults.append(f"`on --wait` ended with {on.code}: {on.output[-500:]}")
    await trio.to_thread.run_sync(leader.restart)
    late = fleet.receives_between(on.ended, time.time(), thawed=(frozen, 0))
    faults += fleet.receives_between(on.ended, time.time(), thawed=(frozen, thawed_at + AT_ONCE))
    forgotten = await fleet.command("forget", killed)  # as an operator does, who has looked after it
    if forgotten.code != 0:
        faults.append(f"`forget {killed}` ended with {forgotten.code}: {forgotten.output[-500:]}")
    off = await fleet.command("off", "--wait", "--timeout", "60s")
    if off.code != 0:
        faults.append(f"`off --wait` ended with {off.code}: {off.output[-500:]}")
    for name, (instance, calls) in fleet.live.items():
        with trio.move_on_after(20) as waited:
            while not any(at > off.began for at in calls.of("ReceiveMessage")):
                await trio.sleep(0.02)
        if waited.cancelled_caught:
            faults.append(f"{name} (pid {instance.pid}) receives nothing after `off`")
    return RoundResult(
        number,
        on.code,
        on.ended - on.began,
        off.ended - off.began,
        received=sum(len(calls.of("ReceiveMessage")) for _, calls in fleet.live.values()),
        killed=killed,
        frozen=frozen,
        named_dead=killed in on.output,
        late=[one for one in late if one not in faults],
        faults=faults,
    )


@dataclass
class Tally:
    """What became of every message, at the very end."""

    sent: int
    lost: int
    """Sent, and never processed to the end."""
    stranded: int
    """In flight at the queue although nobody works any more."""
    duplicates: int
    """Runs to the end beyond the first."""
    explained: int
    """Of those: of messages that an instance had begun which was killed."""
    concurrent: int
    """Messages that were in two runs at the same time, neither of them of a killed instance."""


async def settle(fleet: Fleet) -> Tally:
    """Let the fleet work off what is left, and count."""
    with trio.move_on_after(90):
        while await fleet.place.depth() != (0, 0):
            await trio.sleep(0.2)
    visible, in_flight = await fleet.place.depth()
    killed = {instance.pid for instance, _ in fleet.dead.values()}
    done = Counter(fleet.place.succeeded())
    begun_by_killed = {event["body"] for event in fleet.place.events() if event["pid"] in killed}
    again = {body: times - 1 for body, times in done.items() if times > 1}
    return Tally(
        sent=len(fleet.sent),
        lost=len(set(fleet.sent) - set(done)) - visible,
        stranded=in_flight,
        duplicates=sum(again.values()),
        explained=sum(times for body, times in again.items() if body in begun_by_killed),
        concurrent=_concurrent(fleet.place.events(), killed),
    )


def _concurrent(events: list[dict[str, Any]], killed: set[int]) -> int:
    running: dict[str, set[int]] = {}
    found = 0
    for event in events:
        if event["pid"] in killed:
            continue
        runs = running.setdefault(event["id"], set())
        if event["event"] == "began":
            found += bool(runs)
            runs.add(event["pid"])
        else:
            runs.discard(event["pid"])
    return found


async def rolling_restart(fleet: Fleet) -> list[str]:
    """Stop each instance as an orchestrator does, and start a new one in its place; what should not have been."""
    faults = []
    for name in sorted(fleet.live):
        instance, calls = fleet.live[name]
        instance.signal(signal.SIGTERM)
        code = await instance.exit_code()
        if code != 0:
            faults.append(f"{name} ended with {code}")
        if calls.held:
            faults.append(f"{name} has ended and holds {len(calls.held)} message(s)")
        fleet.dead[name] = fleet.live.pop(name)
        await fleet.start()
    return faults


async def rolling(folder: Path, seed: int) -> tuple[list[str], Tally]:
    """A rolling restart of a fleet under load."""
    async with fleet(folder) as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.load, random.Random(seed), 12.0)
            await held.place.until(lambda: len(held.place.succeeded()) >= 10)
            faults = await rolling_restart(held)
            nursery.cancel_scope.cancel(reason="all are new")
        held.dead.clear()  # none of them was killed: nothing explains a second run
        tally = await settle(held)
    return faults, tally


async def rounds(
    folder: Path, count: int, seed: int, *, tell: Any = lambda result: None
) -> tuple[list[RoundResult], Tally]:
    """So many rounds on one fleet under load."""
    rng = random.Random(seed)
    results = []
    async with fleet(folder) as held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.load, random.Random(seed + 1), 12.0)
            await held.place.until(lambda: len(held.place.succeeded()) >= 10)
            for number in range(1, count + 1):
                results.append(await one_round(held, number, rng))
                tell(results[-1])
            nursery.cancel_scope.cancel(reason="enough rounds")
        tally = await settle(held)
    return results, tally
