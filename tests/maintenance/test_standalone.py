"""The switch of an instance without etcd, in virtual time: in memory, and over a file that is read late or not at all."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from svc import Message
from svc.core import Core
from svc.maintenance.fence import STALL
from svc.maintenance.fleet import Answer, Request, answer
from svc.maintenance.orders import CannotWrite, NoSuchInstance, NotYours, Order, OutOfReach
from svc.maintenance.phases import Phase
from svc.maintenance.registration import Registration
from svc.maintenance.standalone import EVERY, PATIENCE, CannotRead, StandaloneSwitch
from svc.settings import load
from svc.testing import SimulatedQueue

WALL = 1_000_000.0
"""Unix time at which these tests begin."""


@dataclass
class File:
    """A file in memory, that can be read-only, broken, or on a disk that does not answer."""

    path: str = "/etc/svc/maintenance"
    value: bytes | None = None
    trouble: str | None = None
    hangs: bool = False
    read_only: bool = False
    reads: int = 0
    written: list[bytes | None] = field(default_factory=list)

    async def read(self) -> bytes | None:
        self.reads += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.trouble is not None:
            raise CannotRead(self.trouble)
        return self.value

    async def write(self, value: bytes | None) -> None:
        if self.read_only:
            raise CannotWrite(f"{self.path} cannot be written")
        self.value = value
        self.written.append(value)


def wall() -> float:
    return WALL + trio.current_time()


def date(moment: float) -> str:
    return f"date {moment:g}"


async def nothing(message: Message) -> None: ...


@dataclass
class Held:
    core: Core
    switch: StandaloneSwitch
    queue: SimulatedQueue

    @property
    def phase(self) -> Phase:
        return self.core.manager.state().phase

    async def ask(self, *, on: bool, **more: object) -> int:
        return (await self.switch.board(self.core.registration).ask(Order(on, **more))).revision  # type: ignore[arg-type]

    async def answers(self, revision: int, *, on: bool) -> Answer:
        fleet = await self.switch.board(self.core.registration).look()
        return answer(Request(on, revision), fleet.entries[0])


class Machine:
    """Its clock goes on while the process stands still."""

    stood_still = 0.0

    def __call__(self) -> float:
        return trio.current_time() + self.stood_still


@asynccontextmanager
async def running(file: File | None = None, machine: Machine | None = None) -> AsyncIterator[Held]:
    settings = load({"ETCD_ENDPOINTS": "off", "SQS_WAIT_TIME_SECONDS": "0", "SQS_POLL_INTERVAL": "0.25"})
    clock = Machine() if machine is None else machine
    switch, queue = StandaloneSwitch(file, wall=wall, date=date, clock=clock, revision=70), SimulatedQueue()
    identity = Registration("orders-1", "orders", 1, "1.0", "2026-01-01T00:00:00Z", settings.sqs_queue_url, "t")
    core = Core(settings, queue, nothing, switch.watcher, identity=identity, stall=STALL, clock=clock)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.sleep(0.4)
        yield Held(core, switch, queue)
        nursery.cancel_scope.cancel()


async def test_in_memory_it_is_off_at_the_start_and_obeys_at_once(autojump_clock: MockClock) -> None:
    async with running() as held:
        assert (held.phase, held.core.fence.is_open) == (Phase.RUNNING, True)
        held.queue.put("a")
        await trio.sleep(0.3)
        assert held.core.worker.statistics().counts.processed == 1
        on = await held.ask(on=True, reason="disk", by="ops")
        await trio.sleep(0.1)
        assert held.phase is Phase.MAINTENANCE
        assert await held.answers(on, on=True) is Answer.DONE
        held.queue.put("b")
        await trio.sleep(2)
        assert held.core.worker.statistics().counts.received == 1
        with pytest.raises(NotYours, match="on by ops"):
            await held.ask(on=False, by="ann")
        off = await held.ask(on=False, by="ops")
        assert off == on + 1
        await trio.sleep(0.5)
        assert await held.answers(off, on=False) is Answer.DONE
        assert await held.answers(on, on=True) is Answer.NONE
        assert held.core.worker.statistics().counts.processed == 2


@pytest.mark.parametrize("readable", [True, False])
async def test_after_a_standstill_the_file_is_read_before_the_next_receive(
    autojump_clock: MockClock, readable: bool
) -> None:
    file, machine = File(), Machine()
    async with running(file, machine) as held:
        reads = file.reads
        file.trouble = None if readable else "Permission denied"
        machine.stood_still += 60
        assert not held.core.fence.is_open
        held.queue.put("a")
        await trio.sleep(0.3)
        assert held.core.fence.is_open  # the last known state stands where it cannot be read
        assert file.reads == reads + 1
        await trio.sleep(1)
        assert held.core.worker.statistics().counts.processed == 1


async def test_an_order_for_another_instance_is_none_of_ours(autojump_clock: MockClock) -> None:
    async with running() as held:
        with pytest.raises(NoSuchInstance, match="this instance is orders-1"):
            await held.ask(on=True, instance="orders-2")
        await held.ask(on=True, instance="orders-1")
        await trio.sleep(0.1)
        assert held.phase is Phase.MAINTENANCE


@pytest.mark.parametrize("kept", ["memory", "file"])
async def test_it_ends_by_itself_to_the_second(autojump_clock: MockClock, kept: str) -> None:
    file = File() if kept == "file" else None
    async with running(file) as held:
        await held.ask(on=True, seconds=60.25, by="ops")
        asked = trio.current_time()
        fleet = await held.switch.board(held.core.registration).look()
        assert fleet.expires_in == 60.25
        switch = held.core.manager.state().switch
        assert switch is not None
        assert switch.until == date(WALL + asked + 60.25)
        await trio.sleep(60.2)
        assert held.phase is Phase.MAINTENANCE
        await trio.sleep(0.1)
        assert held.phase is Phase.RUNNING
        assert file is None or file.written[1:] == [None]


async def test_it_ends_although_the_machine_slept_meanwhile(autojump_clock: MockClock) -> None:
    machine = Machine()
    async with running(None, machine) as held:
        await held.ask(on=True, seconds=1800)
        await trio.sleep(10)
        machine.stood_still += 3600
        await trio.sleep(2)
        assert held.phase is Phase.RUNNING


async def test_a_later_order_lifts_the_end(autojump_clock: MockClock) -> None:
    async with running() as held:
        await held.ask(on=True, seconds=10)
        await held.ask(on=True)
        await trio.sleep(100)
        assert held.phase is Phase.MAINTENANCE


async def test_the_end_outlives_the_process_in_the_file(autojump_clock: MockClock) -> None:
    file = File()
    async with running(file) as held:
        await held.ask(on=True, seconds=30, reason="disk")
        await trio.sleep(0.1)
    async with running(file) as held:
        assert held.phase is Phase.MAINTENANCE
        await trio.sleep(30)
        assert (held.phase, file.value) == (Phase.RUNNING, None)


async def test_what_the_file_says_is_obeyed_soon(autojump_clock: MockClock) -> None:
    file = File(value=b"on")
    async with running(file) as held:
        assert held.phase is Phase.MAINTENANCE
        for value in (b"off", b'{"enabled": true, "by": "k8s"}', None):
            file.value = value
            await trio.sleep(EVERY)
            assert held.phase is (Phase.MAINTENANCE if value and b"true" in value else Phase.RUNNING)
        reads = file.reads
        await trio.sleep(60)
        assert file.reads == reads + 60 / EVERY


@pytest.mark.parametrize("value", [b"perhaps", b"\xff\x00", b"{", b"[" * 60_000, b'{"enabled": 1}', b"x" * 65_536])
async def test_garbage_changes_nothing_and_is_told(autojump_clock: MockClock, value: bytes) -> None:
    file = File()
    async with running(file) as held:
        for before in (None, b"on"):
            file.value = before
            await trio.sleep(EVERY)
            phase = held.phase
            file.value = value
            await trio.sleep(3)
            assert held.phase is phase
            assert held.core.manager.state().unreadable
            assert held.switch.snapshot().connected
        await held.ask(on=False)  # nobody's: it may be overwritten
        await trio.sleep(EVERY)
        assert (held.phase, file.value, held.core.manager.state().unreadable) == (Phase.RUNNING, None, None)


async def test_garbage_at_the_start_is_waited_out(autojump_clock: MockClock) -> None:
    file = File(value=b"perhaps")
    async with running(file) as held:
        await trio.sleep(60)
        assert held.phase is Phase.STARTING
        file.value = b"off"
        await trio.sleep(EVERY)
        assert held.phase is Phase.RUNNING


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_file_that_cannot_be_read_changes_nothing(
    autojump_clock: MockClock, hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file = File()
    async with running(file) as held:
        for value, phase in ((None, Phase.RUNNING), (b"on", Phase.MAINTENANCE)):
            file.value = value
            await trio.sleep(EVERY)
            file.hangs, file.trouble = hangs, None if hangs else "Permission denied"
            file.value = None if value else b"on"
            await trio.sleep(30)
            snapshot = held.switch.snapshot()
            assert (held.phase, snapshot.connected) == (phase, False)
            assert file.path in str(snapshot.last_error)
            file.value, file.hangs, file.trouble = value, False, None
            await trio.sleep(EVERY + PATIENCE)
            snapshot = held.switch.snapshot()
            assert (snapshot.connected, snapshot.last_error) == (True, None)
    told = [record for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(told) == 2  # once for each time, not for each look


async def test_nothing_is_received_before_the_file_was_read_once(autojump_clock: MockClock) -> None:
    file = File(trouble="Permission denied")
    async with running(file) as held:
        held.queue.put("a")
        await trio.sleep(60)
        assert (held.phase, held.core.fence.is_open) == (Phase.STARTING, False)
        with pytest.raises(OutOfReach, match="Permission denied"):  # neither on nor off
            await held.switch.board(held.core.registration).look()
        file.trouble = None
        await trio.sleep(EVERY + 0.5)
        assert held.core.worker.statistics().counts.processed == 1


async def test_an_order_is_written_and_a_read_only_file_is_a_refusal(autojump_clock: MockClock) -> None:
    file = File()
    async with running(file) as held:
        await held.ask(on=True, reason="disk")
        assert json.loads(file.written[0] or b"") == {"enabled": True, "reason": "disk"}
        file.read_only = True
        with pytest.raises(CannotWrite, match="/etc/svc/maintenance cannot be written"):
            await held.ask(on=False)
        await trio.sleep(5)
        assert held.phase is Phase.MAINTENANCE
        file.value = b'{"enabled": true, "by": "git"}'
        with pytest.raises(NotYours, match="on by git"):  # what stands there now, not what was read a second ago
            await held.ask(on=False)


async def test_an_end_that_cannot_be_written_leaves_it_on(autojump_clock: MockClock) -> None:
    file = File()
    async with running(file) as held:
        await held.ask(on=True, seconds=5)
        file.read_only = True
        await trio.sleep(60)
        assert held.phase is Phase.MAINTENANCE
        file.read_only, file.value = False, None
        await trio.sleep(EVERY)
        assert held.phase is Phase.RUNNING


@pytest.mark.parametrize("ends", [True, "soon", -1, 1e300, math.inf, 10**400])
async def test_an_end_that_is_none(autojump_clock: MockClock, ends: object) -> None:
    file = File(value=json.dumps({"enabled": True, "ends": ends}).encode())
    async with running(file) as held:
        await trio.sleep(10)
        assert held.phase is Phase.MAINTENANCE


async def test_a_file_that_flaps_is_followed_and_ends_as_it_stands(autojump_clock: MockClock) -> None:
    file = File()
    async with running(file) as held:
        for _ in range(50):
            for value in (b"on", None, b"?", b"off", b""):
                file.value = value
                await trio.sleep(0.37)
        file.value = b"on"
        await trio.sleep(EVERY)
        assert held.phase is Phase.MAINTENANCE
