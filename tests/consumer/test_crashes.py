"""Parts that crash, and calls that fail in a way that nobody expected, in virtual time: what is in flight is given back within
`LAST_RELEASE`, the failed part is told once, and one call's failure is no more than that."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from svc import Message, Reject
from svc.consumer.observer import Several, Unobserved
from svc.consumer.worker import LAST_RELEASE
from svc.core import Core
from svc.defects import Defects, PartFailed
from svc.testing import Fault, SimulatedQueue
from svc.testing.service import SimulatedService

CRASH_AT = 5.0


class Defect(Exception):
    """Nobody expects it."""


def broken(from_then_on: Callable[..., Any]) -> Callable[..., Any]:
    """Does what it did, until the crash."""

    def spoilt(*args: Any, **options: Any) -> Any:
        if trio.current_time() >= CRASH_AT:
            raise Defect("found by nobody")
        return from_then_on(*args, **options)

    return spoilt


async def ends_badly(**_: object) -> None:
    await trio.sleep_until(CRASH_AT)
    raise Defect("found by nobody")


def spoil(owner: object, name: str) -> None:
    setattr(owner, name, broken(getattr(owner, name)))


def spoil_run(owner: Any) -> None:
    run = owner.run

    async def run_until_the_crash(**_: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends_badly)
            await run()

    owner.run = run_until_the_crash


SPOILT: dict[str, Callable[[Core], None]] = {
    "intake": lambda core: spoil(core.worker.intake, "_start_receives"),
    "heartbeat": lambda core: spoil(core.worker.heartbeat, "_look"),
    "settlement": lambda core: spoil(core.worker.settlement, "_look"),
    "queue_attributes": lambda core: setattr(core.worker._probe, "keep_policy_known", ends_badly),
    "watcher": lambda core: spoil_run(core.watcher),
    "registrar": lambda core: spoil_run(core.registrar),
    "fence": lambda core: spoil_run(core.fence),
    "manager": lambda core: spoil(core.manager, "_act"),
    "worker": lambda core: spoil(core.worker.tasks, "end_of"),
}
"""Part → how it is made to crash."""


def poke(core: Core) -> None:
    """Every loop looks at the state of things."""
    core.worker.intake.look_again()
    core.worker.heartbeat._wake_up.notify()
    core.worker.settlement.look_again()
    core.manager._wake_up.notify()


def spoilt_core(part: str) -> Callable[..., Core]:
    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        SPOILT[part](core)
        return core

    return make


async def until_it_has_crashed(service: SimulatedService) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(PartFailed), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await trio.sleep_until(CRASH_AT)
            poke(service.core)
            await trio.sleep_forever()


def criticals(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["log_level"] in ("critical", "error")]


async def long(message: Message) -> None:
    await trio.sleep(60)


@pytest.mark.parametrize("part", [part for part in SPOILT if part != "worker"])
async def test_a_crash_of_any_part_gives_back_what_is_in_flight_and_is_told_once(autojump_clock, part: str) -> None:
    queue = SimulatedQueue(request_seconds=(0.1, 0.1), answer_seconds=(0.1, 0.1))
    ids = [queue.put(str(number)) for number in range(25)]
    service = SimulatedService(queue, long, make_core=spoilt_core(part), MAX_CONCURRENCY="25")
    with capture_logs() as lines:
        await until_it_has_crashed(service)
    assert trio.current_time() <= CRASH_AT + LAST_RELEASE
    assert sorted(queue.visible()) == sorted(ids)
    assert sorted(service.released) == sorted(map(str, range(25)))
    (told,) = criticals(lines)
    assert told["log_level"] == "critical"
    assert told["part"] == part
    assert "Defect" in repr(told["exc_info"])
    assert service.core.defects.counts[part] == 1  # type: ignore[index]


async def test_a_sleep_after_the_end_of_a_crashed_settlement_sends_nothing_and_is_no_defect(autojump_clock) -> None:
    """What could not be given back waits for another try still, and nothing takes it any more."""
    queue = SimulatedQueue(faults=[Fault("error", "change_visibility")])
    queue.put("m")
    service = SimulatedService(queue, long, make_core=spoilt_core("settlement"))
    with capture_logs() as lines:
        await until_it_has_crashed(service)
        assert len(service.core.worker.ledger) == 1
        calls = len(queue.history)
        service.core._slept(10)
    assert len(queue.history) == calls
    assert [line["log_level"] for line in criticals(lines)] == ["critical"]


@pytest.mark.parametrize("part", ["worker", "settlement", "heartbeat", "watcher"])
async def test_a_crash_on_a_fifo_queue(autojump_clock, part: str) -> None:
    """Its message tasks are one a group; what stands in line goes back with what is at work."""
    queue = SimulatedQueue(fifo=True)
    ids = [queue.put(str(number), group_id="ab"[number % 2], deduplication_id=str(number)) for number in range(8)]

    async def work(message: Message) -> None:
        await trio.sleep(CRASH_AT if message.body == "0" and part == "worker" else 60)

    service = SimulatedService(queue, work, make_core=spoilt_core(part))
    with capture_logs() as lines:
        await until_it_has_crashed(service)
    assert trio.current_time() <= CRASH_AT + LAST_RELEASE
    done = {ids[0]} if part == "worker" else set()
    assert {*queue.deleted} == done
    assert {*queue.visible()} == {*ids} - done
    assert [line["part"] for line in criticals(lines)] == [part]


@pytest.mark.parametrize("part", ["settlement", "heartbeat", "watcher"])
async def test_what_is_done_when_a_part_crashes_is_deleted_and_not_given_back(autojump_clock, part: str) -> None:
    """Its delete lingers for company, or has just failed and waits for its next try, when the crash comes."""
    queue = SimulatedQueue(faults=[Fault("error", "delete", nth=1)])
    ids = [queue.put(str(number)) for number in range(3)]
    dead = SimulatedQueue("dead")
    seconds = {"0": CRASH_AT - 0.05, "1": CRASH_AT - 1.05, "2": 60}

    async def work(message: Message) -> None:
        await trio.sleep(seconds[message.body])

    service = SimulatedService(queue, work, make_core=spoilt_core(part), SQS_BATCH_LINGER="1s")
    with capture_logs() as lines:
        await until_it_has_crashed(service)
    assert queue.deleted == [ids[1], ids[0]] or queue.deleted == ids[:2]
    assert queue.visible() == [ids[2]]
    assert [line["part"] for line in criticals(lines)] == [part]
    assert not dead.bodies


async def test_a_crash_of_settlement_dead_letters_what_was_rejected(autojump_clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=3, answer_seconds=(0.2, 0.2))
    message_id = queue.put("bad")

    async def work(message: Message) -> None:
        await trio.sleep(CRASH_AT - 0.3)
        raise Reject("no good")

    with capture_logs():
        await until_it_has_crashed(SimulatedService(queue, work, make_core=spoilt_core("settlement")))
    assert dead.bodies == ["bad"]
    assert queue.deleted == [message_id]


async def test_a_processor_that_ignores_its_cancellation_does_not_hold_up_the_release(autojump_clock) -> None:
    queue = SimulatedQueue()
    message_id = queue.put("stubborn")

    async def work(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    service = SimulatedService(queue, work, make_core=spoilt_core("watcher"))
    freed: list[float] = []
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                while message_id not in queue.visible():
                    await trio.sleep(0.1)
                freed.append(trio.current_time())

            await trio.lowlevel.checkpoint()
            nursery.start_soon(until_it_has_crashed, service)
            await trio.sleep(1)
            nursery.start_soon(look)
    assert freed[0] <= CRASH_AT + LAST_RELEASE
    assert [line["part"] for line in criticals(lines)] == ["watcher"]


async def test_a_second_failure_on_the_way_out_does_not_hide_the_first(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("1")

    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        SPOILT["watcher"](core)

        async def close() -> None:
            raise Defect("another one")

        core.registrar.close = close  # type: ignore[union-attr, method-assign]
        return core

    with capture_logs() as lines:
        await until_it_has_crashed(SimulatedService(queue, long, make_core=make))
    first, second = criticals(lines)
    assert (first["log_level"], first["part"]) == ("critical", "watcher")
    assert (second["log_level"], second["part"]) == ("error", "registrar")


def test_parts_that_failed_are_told_once_and_cancellations_go_through() -> None:
    crashes: list[bool] = []
    defects = Defects(on_crash=lambda: crashes.append(True), remedied=(OSError,))

    async def both() -> None:
        async def fail(error: BaseException) -> None:
            raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(defects.guard, "watcher", fail, SystemExit(3))
            nursery.start_soon(defects.guard, "fence", fail, ValueError("x"))

    async def main() -> None:
        with pytest.RaisesGroup(PartFailed, PartFailed):
            await both()

        async def known() -> None:
            raise OSError("cannot listen")

        with pytest.raises(OSError, match="cannot listen"):
            await defects.guard("api", known)
        with trio.move_on_after(0) as scope:
            await defects.guard("api", trio.sleep_forever)
        assert scope.cancelled_caught

    with capture_logs() as lines:
        trio.run(main)
    assert [line["log_level"] for line in lines] == ["critical", "warning"]
    assert crashes == [True]
    assert defects.crashed


# -- one call's failure --


@pytest.mark.parametrize("what", ["defect", "defect-after"])
@pytest.mark.parametrize("kind", ["receive", "delete", "change_visibility", "dead_letter", "attributes"])
async def test_an_unexpected_exception_in_a_call_is_that_calls_failure(autojump_clock, kind: str, what: str) -> None:
    """The first three calls of each kind. Heartbeats are changes of visibility, and so are back-offs and releases."""
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(
        dead_letters=dead,
        max_receive_count=5,
        faults=[Fault(what, kind, nth=nth) for nth in (1, 2, 3)],  # type: ignore[arg-type]
    )
    for number in range(12):
        queue.put(str(number))
    failed: list[str] = []

    async def work(message: Message) -> None:
        match int(message.body):
            case 0:
                raise Reject("no good")
            case 1 if message.body not in failed:
                failed.append(message.body)
                raise ValueError("once")
            case _:
                await trio.sleep(25)

    with capture_logs() as lines:
        async with SimulatedService(queue, work) as service:
            await service.idle()
            counts = service.core.worker.statistics().counts
            told = [line for line in criticals(lines) if "internal error" in line["event"]]
    assert len(told) == 3
    assert all("SimulatedDefect" in repr(line["exc_info"]) for line in told)
    assert {line["part"] for line in told} <= {"receive", "settlement", "heartbeat", "queue_attributes"}
    assert sum(service.core.defects.counts.values()) == 3
    assert len(queue.deleted) == 12
    assert counts.in_flight == 0
    assert not [line for line in lines if line["log_level"] == "critical"]
    assert sorted(dead.bodies)[:1] == ["0"]


async def test_unexpected_exceptions_are_backed_off(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("defect", end=300)])
    queue.put("afterwards")
    with capture_logs():
        async with SimulatedService(queue, SQS_WAIT_TIME_SECONDS="1") as service:
            await trio.sleep(290)
            held = service.core.worker.statistics()
            assert held.queue_error == "internal error (SimulatedDefect); the log has its traceback"
            assert 290 / 5 <= queue.calls["receive"] <= 290 / 2.5 + 8
            assert not await service.core.worker.health()
            await service.idle()
            assert service.processed == ["afterwards"]
            assert await service.core.worker.health()


async def test_an_observer_that_breaks_disturbs_nobody(autojump_clock) -> None:
    class Broken:
        def breaks(self, *_: object, **__: object) -> None:
            raise Defect("in the observer")

        landed = batch_begins = begins = worked = decided = ended = extended = called = received = drain_ended = breaks

    queue = SimulatedQueue()
    queue.put("1")
    defects = Defects()
    with capture_logs():
        async with SimulatedService(
            queue,
            make_core=lambda *args, **options: Core(
                *args, **options, defects=defects, observer=Several(defects, Broken())
            ),
        ) as service:
            await service.idle()
            assert service.processed == ["1"]
    assert defects.counts["observer"] >= 6


@pytest.mark.parametrize("fifo", [False, True])
async def test_a_message_that_cannot_be_routed_fails_alone_and_nobody_passes_it(autojump_clock, fifo: bool) -> None:
    queue = SimulatedQueue(fifo=fifo)
    for number in range(6):
        options = {"group_id": "ab"[number % 2], "deduplication_id": str(number)} if fifo else {}
        queue.put(str(number), **options)  # type: ignore[arg-type]

    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        route = core.worker.deliveries.route

        def breaks(entry: Any, first: Any) -> None:
            if entry.message.body == "2" and entry.message.receive_count == 1:
                raise Defect("at the landing")
            route(entry, first)

        core.worker.deliveries.route = breaks  # type: ignore[method-assign]
        return core

    with capture_logs() as lines:
        async with SimulatedService(queue, make_core=make) as service:
            await service.idle()
            assert sorted(service.processed) == sorted(map(str, range(6)))
            if fifo:
                assert [body for body in service.processed if int(body) % 2 == 0] == ["0", "2", "4"]
            assert service.core.defects.counts["receive"] == 1
    assert [line["event"] for line in criticals(lines)][1:] == ["message failed"]


async def test_a_defect_after_the_processor_fails_its_message_and_nothing_else(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(3):
        queue.put(str(number))
    met: list[Any] = []

    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        verdict = core.worker.breaker.verdict

        def breaks(entry: Any, **how: Any) -> None:
            if entry.message.body == "1" and not met:
                met.append(entry)
                raise Defect("in the breaker")
            verdict(entry, **how)

        core.worker.breaker.verdict = breaks  # type: ignore[method-assign]
        return core

    with capture_logs():
        async with SimulatedService(queue, make_core=make) as service:
            await service.idle()
            assert sorted(service.processed) == ["0", "1", "2"]
            assert service.core.defects.counts["message"] == 1


async def test_a_heartbeat_that_breaks_after_its_answer_is_asked_for_again(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("1")
    met: list[float] = []

    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)

        class Broken(Unobserved):
            def extended(self, **_: object) -> None:
                if not met:
                    met.append(trio.current_time())
                    raise Defect("in the observer")

        core.worker.heartbeat._observer = Broken()
        return core

    with capture_logs():
        async with SimulatedService(queue, long, make_core=make) as service:
            await service.idle()
            assert service.processed == ["1"]
            assert service.lost == []
            assert service.core.defects.counts["heartbeat"] == 1
