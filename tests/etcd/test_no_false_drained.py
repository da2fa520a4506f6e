"""No wait says `done` while an instance works: whole instances with the real watcher and the real registration, on an etcd in
memory that goes, is mute, for all or for one, forgets, lags behind, comes back with older data and takes permissions away.

Generated, in virtual time. More of it: `python -m tests.etcd.test_no_false_drained 2000`."""

import random
import sys
from collections import Counter

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from svc import Message
from svc.maintenance.fleet import Request, Result, Wait
from svc.maintenance.phases import Phase
from svc.maintenance.registration import registrations
from svc.settings import load
from svc.testing import SimulatedFleet, SimulatedQueue
from svc.testing.etcd import SimulatedEtcd
from svc.testing.etcd_switch import EtcdSwitch

KEY = load({}).maintenance_key
TROUBLES = ("cut off", "cut off", "away", "mute", "lapse", "deleted", "denied", "restored", "crash", "newcomer")


class Trial:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.etcd = SimulatedEtcd(latency=(0.0, self.rng.choice([0.0, 0.2, 1.0])), lag=self.rng.choice([0, 0, 5]))
        self.switch = EtcdSwitch(self.etcd, rng=self.rng)
        self.queue = SimulatedQueue()
        self.tried: Counter[str] = Counter()
        self.began: list[float] = []

    async def work(self, message: Message) -> None:
        self.began.append(trio.current_time())
        await trio.sleep(random.Random(message.id).uniform(0.1, 8))

    async def run(self) -> Counter[str]:
        for number in range(200):
            self.queue.put(str(number))
        async with SimulatedFleet(self.queue, self.switch) as self.start, trio.open_nursery() as nursery:
            for number in range(3):
                await self.one_more(f"i{number}")
            await trio.sleep(5)
            self.backup = self.etcd.data()
            nursery.start_soon(self.trouble)
            for _ in range(4):
                await trio.sleep(self.rng.uniform(0, 15))
                await self.ask()
                self.switch.set("off")
            nursery.cancel_scope.cancel()
            self.put_right()
        return self.tried

    async def one_more(self, name: str) -> None:
        ttl = self.rng.choice(["5s", "10s"])
        settings = {"INSTANCE_ID": name, "INSTANCE_TTL": ttl, "MAX_CONCURRENCY": 2, "DRAIN_TIMEOUT": "20s"}
        await self.start(self.work, SQS_WAIT_TIME_SECONDS=2, **settings)

    def put_right(self) -> None:
        self.etcd.mute, self.etcd.denied, self.etcd.cut_off = False, set(), set()
        self.etcd.come_back()

    async def trouble(self) -> None:
        while True:
            await trio.sleep(self.rng.expovariate(1 / 6))
            what, lasts = self.rng.choice(TROUBLES), self.rng.uniform(0.5, 20)
            self.tried[what] += 1
            match what:
                case "cut off":
                    name = self.rng.choice(self.start.services).settings.instance_id
                    self.etcd.cut_off = {name}
                    await trio.sleep(lasts * 3)
                    self.etcd.cut_off = set()
                case "away":
                    self.etcd.go()
                    await trio.sleep(lasts)
                    self.etcd.come_back()
                case "mute":
                    self.etcd.mute = True
                    await trio.sleep(lasts)
                    self.etcd.mute = False
                case "lapse":
                    held = {key: one for key, one in self.etcd.look().items() if key.startswith(registrations(KEY))}
                    if held:
                        self.etcd.expire(self.rng.choice(sorted(held.values(), key=lambda one: one.lease)).lease)
                case "deleted":
                    self.etcd.delete(*self.etcd.below(registrations(KEY)))
                case "denied":
                    self.etcd.denied = {registrations(KEY)}
                    await trio.sleep(lasts)
                    self.etcd.denied = set()
                case "restored":
                    self.etcd.go()
                    await trio.sleep(lasts)
                    self.etcd.come_back(self.backup)
                case "crash" if self.rng.random() < 0.3:
                    self.rng.choice(self.start.services).crash()
                case "newcomer" if len(self.start.services) < 6:
                    with trio.move_on_after(lasts):
                        await self.one_more(f"i{len(self.start.services)}")

    async def ask(self) -> None:
        """As `svc maintenance on --wait`."""
        request = Request(True, self.switch.set("on"))
        wait = Wait(request)

        def answered() -> bool:
            wait.key(self.switch.mod_revision())
            wait.all(self.switch.entries(), self.switch.members())
            return wait.standing().result is not None

        with trio.move_on_after(90):
            while not answered():
                with trio.move_on_at(min(self.switch.next_end(), trio.current_time() + 30)):
                    await self.switch.changed.wait_until(answered)
        result = wait.standing().result
        self.tried[f"asks {result.value if result else 'timeout'}"] += 1
        if result is not Result.DONE:
            return
        for service in self.start.services:
            if service.ended:
                continue
            assert not service.running, f"{service} works"
            # One that has just come up reads the switch before it takes anything.
            assert service.phase in (Phase.MAINTENANCE, Phase.STARTING), f"{service} is in {service.phase}"
        began = len(self.began)
        await trio.sleep(self.rng.uniform(0, 5))
        if self.switch.mod_revision() == request.revision:
            assert len(self.began) == began, "it has begun again"


@pytest.mark.expects_errors  # drains that run out of time
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
async def test_done_is_true(seed: int, autojump_clock: MockClock) -> None:
    tried = await Trial(seed).run()
    assert sum(count for what, count in tried.items() if what.startswith("asks")) == 4


def main(count: int) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    tried: Counter[str] = Counter()
    for seed in range(count):
        try:
            tried += trio.run(Trial(seed).run, clock=MockClock(autojump_threshold=0))
        except BaseException:
            print(f"seed {seed}")
            raise
    print(dict(sorted(tried.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]))
