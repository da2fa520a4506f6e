"""The real watcher and the real registration against an etcd in memory: its troubles in virtual time, exact to the second."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Self

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from svc.etcd import registration
from svc.etcd.errors import Trouble
from svc.etcd.keys import News
from svc.etcd.registration import Registrar, identity
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.registration import (
    Acknowledgement,
    entry,
    members,
    own_key,
    registrations,
)
from svc.settings import load
from svc.testing.etcd import SimulatedEtcd
from svc.wakeup import WakeUp

KEY = "/m"
SETTINGS = load({"ETCD_ENDPOINTS": "simulated:1", "MAINTENANCE_KEY": KEY, "INSTANCE_TTL": "9"})
REGISTERED, MEMBER = registrations(KEY) + "a", members(KEY) + "a"


class Instance:
    def __init__(self, etcd: SimulatedEtcd, id: str = "a") -> None:
        self.etcd = etcd
        self.values: list[tuple[bytes | None, int]] = []
        self.own: list[bytes | None] = []
        self.looks: list[tuple[float, bool]] = []
        self.settled: list[tuple[float, bool]] = []
        self.said = Acknowledgement("running", None, None, 0)
        self.changed = WakeUp()
        self.base = replace(identity(SETTINGS), id=id)
        self.watcher = KeyWatcher(
            SETTINGS,
            lambda value, revision: self.values.append((value, revision)),
            own_key=own_key(KEY, id),
            on_own_value=lambda value, _: self.own.append(value),
            on_looked=lambda began, answered: self.looks.append((began, answered)),
            connect=etcd.connect,
        )
        self.registrar = Registrar(
            SETTINGS,
            lambda: replace(self.base, acknowledgement=self.said),
            self.changed,
            lambda began, answered: self.settled.append((began, answered)),
            connect=etcd.connect,
        )

    def say(self, phase: str) -> None:
        self.said = replace(self.said, phase=phase)
        self.changed.notify()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Instance"]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.watcher.run)
            nursery.start_soon(self.registrar.run)
            await trio.sleep(0.1)
            yield self
            nursery.cancel_scope.cancel()

    @property
    def phase(self) -> str:
        return entry("a", self.etcd.below(REGISTERED)[REGISTERED], 1).phase


async def test_the_switch_arrives_at_once_and_the_registration_follows(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        assert one.values == [(None, 1)]
        revision = etcd.put(KEY, b"on")
        etcd.put(own_key(KEY, "a"), b"off")
        await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert (one.values[-1], one.own[-1]) == ((b"on", revision), b"off")
        assert one.phase == "running"
        one.say("drained")
        await trio.sleep(1)
        assert one.phase == "drained"
        await trio.sleep(300)
        assert one.values[-1] == (b"on", revision)
        assert len(one.values) == 2
    await one.registrar.close()
    assert etcd.below(registrations(KEY)) == etcd.below(members(KEY)) == {}


async def test_a_lease_that_nobody_keeps_runs_out_and_the_membership_hours_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "MEMBERSHIP", hours := 120.0)
    etcd = SimulatedEtcd()
    async with Instance(etcd).running():
        await trio.sleep(3 * hours)  # it renews that one too
        assert MEMBER in etcd.below(KEY)
        ended = trio.current_time()
    await trio.sleep_until(ended + 9)
    assert REGISTERED not in etcd.below(KEY)
    assert MEMBER in etcd.below(KEY)
    await trio.sleep_until(ended + hours)
    assert etcd.below(KEY) == {}


async def test_the_last_known_state_stands_while_etcd_is_away_and_what_was_switched_takes_effect(
    autojump_clock: MockClock,
) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        etcd.go()
        await trio.sleep(60)
        assert [value for value, _ in one.values] == [None]
        assert (one.watcher.snapshot().connected, one.registrar.snapshot().registered) == (False, False)
        etcd.put(KEY, b"on")
        etcd.come_back()
        began = trio.current_time()
        while one.values[-1][0] != b"on" or not one.registrar.snapshot().registered:
            await trio.sleep(0.1)
        assert trio.current_time() - began < 5
        assert one.phase == "running"


async def test_a_mute_etcd_is_found_out_within_seven_seconds(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        began, etcd.mute = trio.current_time(), True
        while one.watcher.snapshot().connected:
            await trio.sleep(0.1)
        assert trio.current_time() - began <= 7.1
        etcd.put(KEY, b"on")
        etcd.mute = False
        await trio.sleep(5)
        assert one.values[-1][0] == b"on"


async def test_an_etcd_that_was_restored_counts_anew(autojump_clock: MockClock) -> None:
    """Revisions go backwards: what it says now is what counts, and the registration is there again."""
    etcd = SimulatedEtcd()
    backup = etcd.data()
    async with Instance(etcd).running() as one:
        last = [etcd.put(KEY, value) for value in (b"on", b"off", b"on")][-1]
        await trio.sleep(1)
        assert one.values[-1] == (b"on", last)
        etcd.go()
        await trio.sleep(20)
        etcd.come_back(backup)
        await trio.sleep(5)
        assert one.values[-1][0] is None
        assert one.values[-1][1] < last
        assert {REGISTERED, MEMBER} <= etcd.below(KEY).keys()
        etcd.put(KEY, b"on")
        await trio.sleep(0.1)
        assert one.values[-1][0] == b"on"


async def test_a_member_that_answers_from_behind_changes_nothing(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd(lag=20.0)
    async with Instance(etcd).running() as one:
        for number in range(40):
            value = b"on" if number % 2 else b"off"
            etcd.put(KEY, value)
            await trio.sleep(3)
            assert one.values[-1][0] == value
        assert len(one.values) == 41
        assert one.watcher.snapshot().last_error is None


async def test_keys_that_are_deleted_or_overwritten_are_written_again_at_once(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        for harm in (
            lambda: etcd.delete(REGISTERED),
            lambda: etcd.delete(MEMBER),
            lambda: etcd.delete(REGISTERED, MEMBER),
            lambda: etcd.put(REGISTERED, b"what?"),
            lambda: etcd.put(REGISTERED, etcd.below(REGISTERED)[REGISTERED]),  # without its lease
            lambda: etcd.expire(etcd.look()[REGISTERED].lease),
        ):
            harm()
            await trio.sleep(registration.AT_MOST_EVERY + 0.3)  # and a second attempt, where the lease has gone
            held = etcd.look()
            assert one.phase == "running"
            assert held[REGISTERED].lease == one.registrar._lease != 0
            assert held[MEMBER].lease == one.registrar._member_lease != 0
        writes = etcd._revision
        await trio.sleep(300)
        assert etcd._revision == writes


class _OtherWatch:
    """A watch that says this, and then nothing."""

    def __init__(self, *says: News) -> None:
        self.says = list(says)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def receive(self) -> News | Trouble:
        if not self.says:
            await trio.sleep_forever()
        return self.says.pop(0)


@pytest.mark.parametrize(
    ("says", "within"),
    [((News(begins=True),), registration.LOOK_EVERY + 3), ((News(begins=True), News(ended="compacted")), 3.0)],
)
async def test_where_the_watch_is_deaf_or_ends_the_keys_are_read(
    autojump_clock: MockClock, says: tuple[News, ...], within: float
) -> None:
    etcd = SimulatedEtcd()
    one = Instance(etcd)

    @contextlib.asynccontextmanager
    async def connect(*asked: Any) -> AsyncIterator[Any]:
        async with etcd.connect(*asked) as (connection, found):
            connection.watch = lambda *names: _OtherWatch(*says)  # type: ignore[method-assign, assignment, misc, return-value]
            yield connection, found

    one.registrar._connect = connect
    async with one.running():
        await trio.sleep(30)
        before = etcd.calls
        await trio.sleep(30)
        renewals, probes = 30 // 3, 30 // 5
        assert etcd.calls - before <= 3 * renewals + 2 * probes  # two keys with each renewal at most
        for key in (REGISTERED, MEMBER):
            etcd.delete(key)
            began = trio.current_time()
            while key not in etcd.look():
                await trio.sleep(0.1)
            assert within / 10 < trio.current_time() - began <= within + 0.1


async def test_what_an_instance_asks_of_etcd_at_rest(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        await trio.sleep(61)
        before, settled = etcd.calls, len(one.settled)
        await trio.sleep(600)
        renewals, own_looks = 600 // 3, 2 * 600 // 30
        probes, probes_of_its_own_key = 600 // 5, 600 // 15
        assert etcd.calls - before == renewals + own_looks + probes + probes_of_its_own_key
        assert len(one.settled) == settled  # the service is not woken up for what it did not ask
        one.registrar.look_again()
        await trio.sleep(0.1)
        assert len(one.settled) == settled + 1


async def test_a_permission_that_is_missing_for_a_while_costs_neither_place_nor_storm(
    autojump_clock: MockClock,
) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        etcd.denied = {registrations(KEY)}
        await trio.sleep(1)
        calls = etcd.calls
        one.say("draining")
        await trio.sleep(600)
        assert etcd.calls - calls < 600 * 3
        etcd.denied = set()
        assert one.phase == "running"  # the lease was kept: it has its place, though not its news
        await trio.sleep(3.5)
        assert one.phase == "draining"


async def test_two_with_one_id_find_each_other_out(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as first, Instance(etcd).running() as second:
        await trio.sleep(10)
        assert {key.rpartition("/")[2] for key in etcd.below(registrations(KEY))} == {
            "a",
            f"a~{second.base.token[:6]}",
        }
        assert etcd.below(registrations(KEY)).keys() == {
            key.replace("members", "instances") for key in etcd.below(members(KEY))
        }
        assert first.registrar.snapshot().id == "a"


async def test_whose_id_is_taken_while_it_is_registered_has_all_under_another_one_within_one_renewal(
    autojump_clock: MockClock,
) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        await trio.sleep(40)
        etcd.put(REGISTERED, replace(one.base, token="of another").value(), 77)
        await trio.sleep(3.5)
        taken = f"{REGISTERED}~{one.base.token[:6]}"
        held = etcd.look()
        assert held[taken].lease == one.registrar._lease
        assert held[taken.replace("instances", "members")].lease == one.registrar._member_lease
        etcd.delete(taken)
        await trio.sleep(3.5)
        assert taken in etcd.look()


async def test_a_clean_stop_leaves_nothing_even_when_the_lease_had_run_out(autojump_clock: MockClock) -> None:
    etcd = SimulatedEtcd()
    async with Instance(etcd).running() as one:
        etcd.expire(one.registrar._lease)
        assert MEMBER in etcd.below(KEY)
    await one.registrar.close()
    assert etcd.below(KEY) == {}


async def test_a_stop_in_the_middle_of_the_first_write_leaves_nothing(autojump_clock: MockClock) -> None:
    for delay in (0.5, 1.5, 2.5, 3.5, 4.5):
        etcd = SimulatedEtcd(latency=(0.9, 1.0))
        one = Instance(etcd)
        with trio.move_on_after(delay):
            await one.registrar.run()
        etcd.latency = (0.0, 0.0)
        await one.registrar.close()
        assert etcd.below(KEY) == {}, delay
