"""The fleet's rules, without I/O: when an acknowledgement is an answer, how a wait ends, who may switch what; and the fleet in
memory and virtual time."""

import json
from dataclasses import replace

import pytest
import trio

from svc.maintenance.fleet import Answer, Fleet, Request, Result, Standing, Wait, answer
from svc.maintenance.fleet_table import changes, fleet, notes, outcome, table
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import Acted, MaintenanceState, Manager
from svc.maintenance.orders import NotYours, Order, read_order
from svc.maintenance.phases import Phase
from svc.maintenance.registration import (
    Acknowledgement,
    Entry,
    Registration,
    acknowledgement,
    entry,
    own_key,
    registration,
)
from svc.testing import SimulatedFleet, SimulatedQueue, SimulatedSwitch

ON, OFF = Request(True, 10), Request(False, 10)


def one(id: str = "a", phase: str = "drained", revision: int | None = 10, *, at: int = 11, **said: object) -> Entry:
    told = Acknowledgement(phase, revision, None, 0)
    held = Registration(id, "host", 1, "1.0", "2026-01-01T00:00:00Z", "http://q/q", f"token of {id}")
    return Entry(id, replace(held, acknowledgement=replace(told, **said)), at)  # type: ignore[arg-type]


def waiting(request: Request, *entries: Entry) -> Wait:
    wait = Wait(request)
    wait.key(request.revision)
    wait.all({held.id: held for held in entries})
    return wait


def test_a_registration_survives_its_way_through_etcd() -> None:
    held = one(drain={"outcome": "drained", "seconds": 1.5}, keys=("all",)).held
    assert held is not None
    assert registration(held.value()) == held
    assert len(held.value()) < 1000


@pytest.mark.parametrize(
    "value", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"acknowledgement": {"phase": "drained"}}']
)
def test_what_is_no_registration_is_never_an_answer(value: bytes) -> None:
    seen = entry("a", value, 99)
    assert seen.held is None
    assert answer(ON, seen) is Answer.NONE
    assert table([seen])[1].split() == ["a", "unreadable"]


def test_a_phase_of_a_later_version_is_never_an_answer() -> None:
    held = one().held
    assert held is not None
    document = json.loads(held.value())
    document["acknowledgement"]["phase"] = "nearly drained"
    assert entry("a", json.dumps(document).encode(), 99).held is None


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("starting", Answer.NONE),
        ("running", Answer.NONE),
        ("draining", Answer.NONE),
        ("drained", Answer.DONE),
        ("expired", Answer.EXPIRED),
        ("stopped", Answer.DONE),
    ],
)
def test_only_a_drained_instance_has_done_what_was_asked(phase: str, expected: Answer) -> None:
    assert answer(ON, one(phase=phase)) is expected
    for revision in (None, 9, 11):
        assert answer(ON, one(phase=phase, revision=revision)) is Answer.NONE


def test_a_request_for_quiet_is_answered_by_who_lands() -> None:
    quiet = replace(ON, quiet=True)
    assert answer(quiet, one(phase="draining", quiet=True)) is Answer.DONE
    assert answer(ON, one(phase="draining", quiet=True)) is Answer.NONE
    assert answer(quiet, one(phase="draining")) is Answer.NONE
    assert answer(quiet, one(phase="draining", revision=9, quiet=True)) is Answer.NONE
    assert answer(quiet, one(phase="draining", quiet=True, at=10)) is Answer.NONE
    # Whatever else it says: what its loop does is not known, or not everything was finished.
    assert answer(quiet, one(phase="blocked", quiet=True)) is Answer.NONE
    assert answer(quiet, one(phase="expired", quiet=True)) is Answer.EXPIRED
    assert answer(quiet, one(phase="drained")) is Answer.DONE


def test_who_does_not_know_the_field_is_not_quiet() -> None:
    held = one(phase="draining", quiet=True, receives=2).held
    assert held is not None
    document = json.loads(held.value())
    assert entry("a", json.dumps(document).encode(), 11) == Entry("a", held, 11)
    del document["acknowledgement"]["quiet"], document["acknowledgement"]["receives"]
    older = entry("a", json.dumps(document).encode(), 11).held
    assert older is not None
    assert (older.acknowledgement.quiet, older.acknowledgement.receives) == (False, 0)
    document["acknowledgement"]["quiet"] = "yes"
    assert entry("a", json.dumps(document).encode(), 11).held is None


def test_who_lands_is_shown_so() -> None:
    entries = one("a", "draining", quiet=True, receives=1), one("b", "draining", quiet=True, receives=2), one("c")
    lines = table(entries)
    assert [line.split()[1] for line in lines[1:]] == ["landing", "landing", "drained"]
    assert lines[1].endswith("1 receive on the wire")
    shown = fleet(Fleet(b"true", 10, None, {}, entries, 12))
    assert (shown["quiet"], shown["drained"]) == (True, False)
    request = replace(ON, quiet=True)
    standing = waiting(request, *entries).standing()
    assert standing.result is Result.DONE
    assert changes(None, standing)[1][0] == "b: landing, 2 receives on the wire"
    assert outcome(standing, request, elapsed=1) == ["3 instances are quiet after 1.0 s"]


def test_an_answer_that_was_written_before_the_request_is_none() -> None:
    """A store that was restored counts its revisions anew: the same number may have been another request."""
    assert answer(ON, one(at=10)) is Answer.NONE
    assert answer(ON, one(at=9)) is Answer.NONE


def test_off_is_answered_by_running_or_by_being_held_by_the_other_key() -> None:
    assert answer(OFF, one(phase="running")) is Answer.DONE
    for revision in (9, 11):
        assert answer(OFF, one(phase="running", revision=revision)) is Answer.NONE
    assert answer(OFF, one(phase="drained")) is Answer.NONE
    assert answer(OFF, one(phase="drained", keys=("instance",))) is Answer.HELD


def test_a_request_to_one_instance_is_answered_by_its_own_revision() -> None:
    on, off = Request(True, 10, "a"), Request(False, 10, "a")
    assert answer(on, one(revision=10)) is Answer.NONE
    assert answer(on, one(revision=3, own_revision=10)) is Answer.DONE
    assert answer(on, one(revision=3, own_revision=12)) is Answer.NONE
    # An absent key has the revision at which it was seen to be absent.
    assert answer(off, one(phase="running", revision=3, own_revision=12)) is Answer.DONE
    assert answer(off, one(phase="running", revision=3, own_revision=9)) is Answer.NONE
    assert answer(off, one(phase="drained", own_revision=12, keys=("all",))) is Answer.HELD
    assert answer(off, one(phase="drained", own_revision=12, keys=("instance",))) is Answer.NONE


def test_a_wait_ends_when_the_last_has_answered() -> None:
    wait = waiting(ON, one("a"), one("b", "draining", in_flight=3))
    assert (wait.standing().result, wait.standing().waiting) == (None, ("b",))
    wait.put(one("c", "starting", None))  # started meanwhile
    wait.put(one("b"))
    assert wait.standing().waiting == ("c",)
    wait.put(one("c", at=20))
    assert wait.standing().result is Result.DONE


def test_who_vanishes_is_named_and_no_longer_waited_for() -> None:
    wait = waiting(ON, one("a"), one("b", "running", 9), one("c", "draining"))
    wait.gone("b")
    wait.put(one("c", "stopped"))
    wait.gone("c")
    standing = wait.standing()
    assert (standing.result, standing.died, standing.stopped) == (Result.VANISHED, ("b",), ("c",))
    assert outcome(standing, ON, elapsed=4.0) == [
        "1 instance is drained after 4.0 s, and 1 not heard of (--allow-vanished)",
        "stopped meanwhile, drained: c",
        "vanished, drained or not: b. Look after them; then `svc maintenance forget ID`",
    ]
    wait.put(one("b", "running", 9, at=30))  # it had only been frozen
    assert (wait.standing().result, wait.standing().waiting, wait.standing().died) == (None, ("b",), ())


def test_a_drain_out_of_time_ends_the_wait_with_a_result_of_its_own() -> None:
    wait = waiting(ON, one("a", "expired"), one("b", "draining"))
    assert wait.standing().result is None
    wait.put(one("b"))
    assert (wait.standing().result, wait.standing().expired) == (Result.EXPIRED, ("a",))
    wait = waiting(ON, one("a", "expired"), one("b"))
    wait.gone("a")  # its last word
    assert wait.standing().result is Result.EXPIRED


def test_threads_that_go_on_after_a_drain_are_shown() -> None:
    wait = waiting(ON, one(phase="expired", drain={"outcome": "expired", "threads": 2}), one("b"))
    standing = wait.standing()
    assert notes(standing) == {"a": "out of time, 2 threads go on"}
    assert [text for text, _ in changes(None, standing)] == ["a: expired, 2 threads go on", "b: drained"]


def test_a_key_that_changes_ends_the_wait() -> None:
    wait = waiting(ON, one("a", "draining"))
    wait.key(14)
    assert wait.standing().result is Result.SUPERSEDED
    wait = waiting(ON, one("a", "draining"))
    wait.key(0)  # bound to a lease that has run out
    assert wait.standing().result is Result.SUPERSEDED
    wait = Wait(Request(False, 10, "a"))
    wait.key(0)  # deleted: that is what was asked
    wait.all({"a": one(phase="running", own_revision=10)})
    assert wait.standing().result is Result.DONE


def test_a_wait_for_one_instance_looks_at_no_other() -> None:
    wait = Wait(Request(True, 10, "a"))
    wait.key(10)
    wait.all({"a": one("a", revision=3, own_revision=10), "b": one("b", "running", 3)})
    assert [held.id for held in wait.standing().live] == ["a"]
    wait.gone("b")  # it is told of all
    wait.no_member("b")
    assert wait.standing().result is Result.DONE


def test_nobody_there_is_said() -> None:
    standing = waiting(ON).standing()
    assert standing.result is Result.NONE
    assert outcome(standing, ON, elapsed=0.0) == [
        "no instance is registered under this key: there was nobody to wait for (--allow-none)"
    ]
    wait = waiting(ON, one("a", "draining"))
    wait.put(one("a", "stopped"))
    wait.gone("a")
    assert wait.standing().result is Result.DONE  # there was one, and it has drained


def test_a_member_that_was_gone_before_the_wait_is_named() -> None:
    wait = Wait(ON)
    wait.key(10)
    wait.all({"a": one("a")}, ["a", "b", "c"])
    assert (wait.standing().result, wait.standing().died) == (Result.VANISHED, ("b", "c"))
    wait.put(one("b", "running", 9))  # its lease had lapsed while it computed
    assert (wait.standing().result, wait.standing().waiting) == (None, ("b",))
    wait.put(one("b"))
    wait.no_member("c")  # an operator knows
    assert (wait.standing().result, wait.standing().died) == (Result.DONE, ())


def test_a_clean_stop_is_told_from_vanishing_in_whatever_order_its_keys_go() -> None:
    for order in ("member first", "registration first"):
        wait = Wait(ON)
        wait.key(10)
        wait.all({"a": one("a", "draining"), "b": one("b")}, ["a", "b"])
        wait.put(one("a", "stopped"))
        steps = [lambda wait=wait: wait.no_member("a"), lambda wait=wait: wait.gone("a")]
        for step in steps if order == "member first" else reversed(steps):
            step()
            assert wait.standing().result is Result.DONE, order
        assert (wait.standing().died, wait.standing().stopped) == ((), ("a",))


def test_a_stop_that_nobody_saw_is_no_vanishing() -> None:
    """Between two reads: its membership is gone too."""
    wait = Wait(ON)
    wait.key(10)
    wait.all({"a": one("a", "draining"), "b": one("b")}, ["a", "b"])
    wait.all({"b": one("b")}, ["b"])
    assert (wait.standing().result, wait.standing().died) == (Result.DONE, ())


def test_the_fleet_is_not_drained_without_its_members() -> None:
    def seen(*members: str, entries: tuple[Entry, ...] = (one("a"),)) -> dict[str, object]:
        return fleet(Fleet(b"on", 10, None, {}, entries, 20, members))

    assert (seen("a")["drained"], seen("a")["vanished"]) == (True, [])
    assert (seen("a", "b")["drained"], seen("a", "b")["vanished"]) == (False, ["b"])
    assert seen(entries=())["drained"] is False
    assert table([one("a")], vanished=["b"])[-1].split()[:2] == ["b", "vanished"]


def test_each_change_is_told_once() -> None:
    wait = waiting(ON, one("a", "draining", in_flight=3), one("b", "running", 9))
    before: Standing | None = None
    told: list[str] = []

    def tell() -> None:
        nonlocal before
        now = wait.standing()
        told.extend(text for text, _ in changes(before, now))
        before = now

    tell()
    tell()
    wait.put(one("a"))
    wait.gone("b")
    tell()
    wait.put(one("c", "starting", None))
    tell()
    assert told == [
        "a: draining, 3 in flight",
        "b: running",
        "a: drained",
        "b: has vanished without a word (killed, frozen, or cut off)",
        "c: new, starting",
    ]


def test_a_long_table_shows_those_that_are_waited_for() -> None:
    entries = [one(f"i{number:03}") for number in range(100)]
    lines = table(entries, notes={"i077": "not yet"}, limit=5)
    assert len(lines) == 1 + 5 + 1
    assert lines[1].startswith("i077")
    assert lines[-1] == "… and 95 more"


def test_the_fleet_as_json() -> None:
    held = Fleet(b'{"enabled": true, "by": "ann"}', 10, 29.0, {"b": b"true"}, (one("a"), one("b", "running", 9)), 12)
    shown = fleet(held)
    assert (shown["maintenance"], shown["by"], shown["drained"], shown["only"]) == (True, "ann", False, ["b"])
    assert [(row["id"], row["current"]) for row in shown["instances"]] == [("a", True), ("b", False)]  # type: ignore[attr-defined]
    assert fleet(replace(held, entries=(one("a"),)))["drained"] is True
    assert fleet(replace(held, value=b"perhaps"))["maintenance"] is None
    json.dumps(shown)


# -- what an instance says --


def state(phase: Phase, outcome: DrainOutcome | None = None) -> MaintenanceState:
    report = None
    if outcome is not None:
        report = DrainReport("maintenance", 0, 10, outcome, ended=None if outcome is DrainOutcome.RUNNING else 4)
    return MaintenanceState(phase, None, None, None, report, acted=Acted(10, 3))


@pytest.mark.parametrize(
    ("phase", "drain", "said"),
    [
        (Phase.STARTING, None, "starting"),
        (Phase.RUNNING, None, "running"),
        (Phase.RUNNING, DrainOutcome.EXPIRED, "running"),
        (Phase.DRAINING, DrainOutcome.RUNNING, "draining"),
        # The drain has ended, but the manager has not looked yet: one moment for phase and revision.
        (Phase.DRAINING, DrainOutcome.DRAINED, "draining"),
        (Phase.MAINTENANCE, DrainOutcome.DRAINED, "drained"),
        (Phase.MAINTENANCE, DrainOutcome.EXPIRED, "expired"),
        (Phase.STOPPING, DrainOutcome.RUNNING, "draining"),
        (Phase.STOPPED, DrainOutcome.DRAINED, "stopped"),
        (Phase.STOPPED, DrainOutcome.EXPIRED, "expired"),
    ],
)
def test_what_is_said_in_each_phase(phase: Phase, drain: DrainOutcome | None, said: str) -> None:
    told = acknowledgement(state(phase, drain), in_flight=2)
    assert (told.phase, told.revision, told.own_revision, told.in_flight) == (said, 10, 3, 2)
    assert (told.drain is not None) == (drain is not None and drain is not DrainOutcome.RUNNING)


async def test_an_acknowledgement_names_only_what_was_acted_on(autojump_clock, nursery) -> None:
    manager = Manager([], drain_timeout=10)
    manager.on_value(b"off", 4)
    assert manager.state().acted == Acted(None, None)  # told, not acted on
    nursery.start_soon(manager.run)
    await trio.testing.wait_all_tasks_blocked()
    assert manager.state().acted == Acted(4, None)
    manager.on_value(b"on", 5)
    manager.on_value(b"off", 6)
    manager.on_value(b"on", 7)
    assert (manager.state().phase, manager.state().acted.revision) == (Phase.RUNNING, 4)
    await trio.testing.wait_all_tasks_blocked()
    assert (manager.state().phase, manager.state().acted.revision) == (Phase.MAINTENANCE, 7)
    manager.on_value(b"perhaps", 8)  # means nothing: nothing was acted on
    await trio.testing.wait_all_tasks_blocked()
    assert manager.state().acted.revision == 7
    manager.stop()


async def test_either_key_switches_on_and_both_have_to_be_off(autojump_clock, nursery) -> None:
    manager = Manager([], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_own_value(b"on", 3)
    await trio.testing.wait_all_tasks_blocked()
    assert manager.state().phase is Phase.STARTING  # the key for all has not been read
    manager.on_value(None, 5)
    await trio.testing.wait_all_tasks_blocked()
    held = manager.state()
    assert (held.phase, held.keys_in_force, held.acted) == (Phase.MAINTENANCE, ("instance",), Acted(5, 3))
    manager.on_value(b'{"enabled": true, "by": "ann"}', 6)
    manager.on_own_value(None, 7)
    await trio.testing.wait_all_tasks_blocked()
    held = manager.state()
    assert (held.phase, held.keys_in_force, held.acted) == (Phase.MAINTENANCE, ("all",), Acted(6, 7))
    assert held.in_force is not None
    assert held.in_force.by == "ann"
    manager.on_value(b"off", 8)
    await trio.testing.wait_all_tasks_blocked()
    assert (manager.state().phase, manager.state().keys_in_force) == (Phase.RUNNING, ())
    manager.stop()


# -- orders --


def test_what_is_written() -> None:
    assert Order(True).value(None) == b"true"
    assert Order(False).value(None) == b"false"
    assert Order(False, instance="a").value(None) is None
    assert Order(True, instance="a").key("/m") == own_key("/m", "a") == "/m/only/a"
    assert json.loads(Order(True, quiet=True).value(None) or b"") == {"enabled": True, "quiet": True}
    told = Order(True, "disks", "ann", 60).value("2026-01-01T00:00:00Z")
    assert json.loads(told or b"") == {"enabled": True, "reason": "disks", "by": "ann", "until": "2026-01-01T00:00:00Z"}


def test_whose_maintenance_it_is() -> None:
    anns = b'{"enabled": true, "by": "ann", "reason": "disks"}'
    for free in (None, b"true", b"false", b"perhaps", b'{"enabled": false, "by": "ann"}'):
        Order(False).check(free)
        Order(True, by="bob").check(free)
    Order(True, by="ann").check(anns)
    Order(False, by="ann").check(anns)
    Order(False, force=True).check(anns)
    for order in (Order(False), Order(False, by="bob"), Order(True, by="bob"), Order(True)):
        with pytest.raises(NotYours, match=r"on by ann \(disks\)"):
            order.check(anns)


def test_an_order_out_of_json() -> None:
    assert read_order({"reason": "x", "by": "ann", "for": "30m"}, on=True) == Order(True, "x", "ann", 1800.0)
    assert read_order({"for": 5}, on=True).seconds == 5.0
    assert read_order({"quiet": True}, on=True) == Order(True, quiet=True)
    assert read_order({"instance": "a", "force": True}, on=False) == Order(False, instance="a", force=True)
    bad: list[tuple[dict[str, object], str]] = [
        ({"reasons": 1}, "unknown field 'reasons'"),
        ({"for": "soon"}, '"for" must be'),
        ({"for": 0}, '"for" must be'),
        ({"for": True}, '"for" must be'),
        ({"for": float("nan")}, '"for" must be'),
        ({"by": ""}, '"by" must be'),
        ({"by": 5}, '"by" must be'),
        ({"reason": "x" * 501}, '"reason" must be'),
        ({"instance": "a/b"}, '"instance" must be'),
        ({"force": "yes"}, '"force" must be'),
        ({"quiet": 1}, '"quiet" must be'),
    ]
    for document, said in bad:
        with pytest.raises(ValueError, match=said):
            read_order(document, on=True)
    with pytest.raises(ValueError, match="unknown field 'reason'"):
        read_order({"reason": "x"}, on=False)
    with pytest.raises(ValueError, match="unknown field 'quiet'"):
        read_order({"quiet": True}, on=False)


# -- the fleet in memory --


async def test_instances_register_acknowledge_and_go(autojump_clock) -> None:
    async def work(message: object) -> None:
        await trio.sleep(3)

    queue, switch = SimulatedQueue(), SimulatedSwitch()
    queue.put("x")
    async with SimulatedFleet(queue, switch) as start:
        first = await start(work, INSTANCE_ID="a", SQS_WAIT_TIME_SECONDS="2")
        await start(work, INSTANCE_ID="b", SQS_WAIT_TIME_SECONDS="2")
        await trio.sleep(2)
        assert [(id, held.phase) for id, held in sorted(switch.entries().items())] == [
            ("a", "running"),
            ("b", "running"),
        ]
        wait = Wait(await switch.ask(Order(True)))
        late = await start(work, INSTANCE_ID="c")  # comes up in maintenance

        def answered() -> bool:
            wait.key(switch.mod_revision())
            wait.all(switch.entries(), switch.members())
            return wait.standing().result is not None

        await switch.changed.wait_until(answered)
        assert wait.standing().result is Result.DONE
        assert len(wait.standing().live) == 3
        assert trio.current_time() == 3  # the message's work
        assert late.core.worker.statistics().received_once is False
        first.crash()
        await trio.sleep(9)
        assert sorted(switch.entries()) == ["a", "b", "c"]
        await trio.sleep(2)
        assert sorted(switch.entries()) == ["b", "c"]  # its lease was of 10 s
    assert switch.entries() == {}


async def test_a_fleet_is_quiet_long_before_its_polls_have_landed(autojump_clock) -> None:
    async def work(message: object) -> None:
        await trio.sleep(1.5)

    dead = SimulatedQueue("dead")
    queue, switch = SimulatedQueue(dead_letters=dead, max_receive_count=1), SimulatedSwitch()
    async with SimulatedFleet(queue, switch) as start:
        services = [await start(work, INSTANCE_ID=id) for id in "abc"]
        await trio.sleep(4)
        queue.put("x")
        await trio.sleep(1)
        wait = Wait(await switch.ask(Order(True, quiet=True)))

        def answered() -> bool:
            wait.key(switch.mod_revision())
            wait.all(switch.entries(), switch.members())
            return wait.standing().result is not None

        await switch.changed.wait_until(answered)
        assert wait.standing().result is Result.DONE
        assert (
            5.5 <= trio.current_time() <= 6.1
        )  # the message's work; the registration half a second after the one before
        assert [service.phase for service in services] == [Phase.DRAINING] * 3
        ran = sum(len(service.runs) for service in services)
        queue.put("y")
        for service in services:
            await service.drained()
        assert sum(len(service.runs) for service in services) == ran
        assert dead.bodies == ["y"]  # by the poll of another, which was still on the wire


async def test_one_instance_is_switched_by_itself(autojump_clock) -> None:
    async def work(message: object) -> None: ...

    switch = SimulatedSwitch()
    async with SimulatedFleet(SimulatedQueue(), switch) as start:
        first = await start(work, INSTANCE_ID="a", SQS_WAIT_TIME_SECONDS="1")
        second = await start(work, INSTANCE_ID="b", SQS_WAIT_TIME_SECONDS="1")
        await trio.sleep(2)
        request = await switch.ask(Order(True, instance="a"))
        await trio.sleep(3)
        assert (first.phase, second.phase) == (Phase.MAINTENANCE, Phase.RUNNING)
        wait = Wait(request)
        wait.key(switch.mod_revision("a"))
        wait.all(switch.entries())
        assert wait.standing().result is Result.DONE
        await switch.ask(Order(False, instance="a"))
        await trio.sleep(1)
        assert first.phase is Phase.RUNNING
