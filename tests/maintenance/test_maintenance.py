"""What the key's value means, the table of phases, and the manager with handlers of a test's own."""

import itertools
import re
from functools import partial

import pytest
import trio

from svc.maintenance.gate import Gate
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import Manager
from svc.maintenance.phases import MOVES, Event, IllegalMove, Phase, move, next_event
from svc.maintenance.switch_value import Switch, parse_switch

ON = ["true", "1", "yes", "on", "enabled", "maintenance", "TRUE", "  On\n", "Maintenance"]
OFF = ["false", "0", "no", "off", "disabled", "", "   ", "FALSE\n"]
UNUSABLE = [
    b"maybe",
    b"2",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"true"',
    b"{}",
    b'{"enabled": 1}',
    b'{"enabled": "true"}',
    b"{",
]


@pytest.mark.parametrize("value", ON)
def test_words_that_switch_on(value: str) -> None:
    assert parse_switch(value.encode()) == Switch(on=True)


@pytest.mark.parametrize("value", OFF)
def test_words_that_switch_off(value: str) -> None:
    assert parse_switch(value.encode()) == Switch(on=False)


def test_a_missing_key_is_off() -> None:
    assert parse_switch(None) == Switch(on=False)


def test_a_json_object() -> None:
    told = b'{"enabled": true, "reason": "upgrade", "until": "2030-01-01T00:00:00Z", "by": "ops", "other": 1}'
    assert parse_switch(told) == Switch(on=True, reason="upgrade", until="2030-01-01T00:00:00Z", by="ops")
    assert parse_switch(b'{"enabled": false}') == Switch(on=False)
    assert parse_switch(b'{"enabled": true, "quiet": true}') == Switch(on=True, quiet=True)
    assert parse_switch(b'{"enabled": true, "quiet": 1}') == Switch(on=True)
    assert parse_switch(b'{"enabled": true, "reason": 5, "by": ""}') == Switch(on=True)


@pytest.mark.parametrize("value", [*UNUSABLE, b"[" * 100_000, b"x" * 1_000_000])
def test_anything_else_has_no_meaning(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"the (value|JSON object)") as raised:
        parse_switch(value)
    assert len(str(raised.value)) < 300


def test_every_move_of_the_table_and_no_other() -> None:
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) in MOVES:
            assert move(phase, event) is MOVES[phase, event]
        else:
            with pytest.raises(IllegalMove, match=phase.value):
                move(phase, event)


def test_whatever_the_state_calls_for_is_a_legal_move() -> None:
    for phase, wanted, stop, ended in itertools.product(Phase, (None, True, False), (True, False), (True, False)):
        event = next_event(phase, wanted=wanted, stop=stop, drain_ended=ended)
        if event is not None:
            move(phase, event)


def test_nothing_begins_before_the_key_was_read() -> None:
    assert next_event(Phase.STARTING, wanted=None, stop=False, drain_ended=False) is None


def test_a_stop_cannot_be_taken_back() -> None:
    assert next_event(Phase.STOPPING, wanted=False, stop=True, drain_ended=False) is None


class Recorder:
    """A handler that needs `takes` seconds to drain, and writes down what it is told."""

    def __init__(self, name: str, takes: float, *after: str) -> None:
        self.name = name
        self.after = after
        self.takes = takes
        self.told: list[tuple[float, str]] = []

    def _note(self, what: str) -> None:
        self.told.append((trio.current_time(), what))

    def enter(self) -> None:
        self._note("enter")

    async def wait_drained(self, deadline: float) -> str | None:
        with trio.move_on_at(deadline):
            await trio.sleep(self.takes)
            self._note("drained")
            return None
        return "not finished: one-id"

    def leave(self) -> None:
        self._note("leave")

    async def health(self) -> bool:
        return True

    def statistics(self) -> object:
        return None

    def drain(self) -> dict[str, object]:
        return {"takes": self.takes}


async def test_handlers_drain_at_the_same_time_under_one_deadline(autojump_clock, nursery) -> None:
    quick, slow = Recorder("quick", 1), Recorder("slow", 4)
    manager = Manager([quick, slow], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_value(None, 1)
    await trio.sleep(5)
    manager.on_value(b"on", 2)
    await trio.sleep(4.5)
    state = manager.state()
    assert (state.phase, state.revision) == (Phase.MAINTENANCE, 2)
    assert state.drain is not None
    assert (state.drain.began, state.drain.ended, state.drain.outcome) == (5, 9, DrainOutcome.DRAINED)
    assert quick.told == [(0, "leave"), (5, "enter"), (6, "drained")]
    assert slow.told == [(0, "leave"), (5, "enter"), (9, "drained")]
    manager.stop()
    await trio.sleep(10)
    assert manager.state().phase is Phase.STOPPED


async def test_what_is_used_outlives_its_users_and_is_back_before_them(autojump_clock, nursery) -> None:
    pool, sqs, cache = Recorder("pool", 1, "sqs", "cache"), Recorder("sqs", 4), Recorder("cache", 2, "sqs")
    manager = Manager([pool, sqs, cache], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_value(b"on", 1)
    await trio.sleep(8)
    state = manager.state()
    assert state.drain is not None
    assert (state.drain.ended, state.drain.outcome, state.drain.quiet) == (7, DrainOutcome.DRAINED, 4)
    assert [handler.told for handler in (sqs, cache, pool)] == [
        [(0, "enter"), (4, "drained")],
        [(4, "enter"), (6, "drained")],
        [(6, "enter"), (7, "drained")],
    ]
    order: list[str] = []
    for handler in (pool, sqs, cache):
        handler.leave = partial(order.append, handler.name)  # type: ignore[method-assign]
    manager.on_value(b"off", 2)
    await trio.sleep(1)
    assert order == ["pool", "cache", "sqs"]
    manager.on_value(b"on", 3)
    await trio.sleep(5)
    manager.on_value(b"off", 4)  # before the pool was entered: it is left all the same
    await trio.sleep(1)
    assert pool.told[-1] == (7, "drained")
    assert order == ["pool", "cache", "sqs"] * 2
    manager.stop()


@pytest.mark.parametrize(
    ("handlers", "fault"),
    [
        ([("a", "b")], "the handler 'a' is to drain after 'b', and there is no such handler"),
        ([("a", "b"), ("b", "a")], "the handlers a, b wait for each other to drain"),
        ([("a",), ("a",)], "two handlers are called 'a'"),
    ],
)
async def test_handlers_that_cannot_be_put_in_order(handlers: list[tuple[str, ...]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Manager([Recorder(name, 1, *after) for name, *after in handlers], drain_timeout=1)


@pytest.mark.expects_errors
async def test_a_drain_that_runs_out_of_time_is_an_error_that_names_what_is_left(autojump_clock, nursery) -> None:
    manager = Manager([Recorder("quick", 1), Recorder("endless", 1e9)], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_value(b"on", 1)
    await trio.sleep(11)
    state = manager.state()
    assert state.phase is Phase.MAINTENANCE
    assert state.drain is not None
    assert (state.drain.ended, state.drain.outcome) == (10, DrainOutcome.EXPIRED)
    assert state.drain.error == "not everything was finished within 10 s: endless: not finished: one-id"
    manager.stop()


async def test_switching_off_during_a_drain_resumes_at_once(autojump_clock, nursery) -> None:
    handler = Recorder("sqs", 8)
    manager = Manager([handler], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_value(b"on", 1)
    await trio.sleep(3)
    manager.on_value(b"off", 2)
    await trio.sleep(20)
    assert handler.told == [(0, "enter"), (3, "leave")]
    assert manager.state().phase is Phase.RUNNING
    manager.stop()


async def test_only_the_latest_value_counts(autojump_clock, nursery) -> None:
    handler = Recorder("sqs", 1)
    manager = Manager([handler], drain_timeout=10)
    for revision, value in enumerate([b"off", b"on", b"off", b"on", b"off"], 1):
        manager.on_value(value, revision)  # all before the manager looks
    nursery.start_soon(manager.run)
    await trio.sleep(1)
    assert handler.told == [(0, "leave")]
    manager.stop()


async def test_an_unusable_value_changes_nothing_and_is_reported(autojump_clock, nursery) -> None:
    handler = Recorder("sqs", 1)
    manager = Manager([handler], drain_timeout=10)
    nursery.start_soon(manager.run)
    manager.on_value(b"off", 1)
    manager.on_value(b"perhaps", 2)
    await trio.sleep(1)
    state = manager.state()
    assert state.phase is Phase.RUNNING
    assert state.unreadable is not None
    assert "perhaps" in state.unreadable
    manager.on_value(b"on", 3)
    await trio.sleep(2)
    assert manager.state().unreadable is None
    assert manager.state().phase is Phase.MAINTENANCE
    manager.stop()


async def test_a_stop_during_a_drain_keeps_its_deadline(autojump_clock) -> None:
    handler = Recorder("sqs", 6)
    manager = Manager([handler], drain_timeout=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run)
        manager.on_value(b"on", 1)
        await trio.sleep(2)
        manager.stop()
        await trio.sleep(1)
        manager.on_value(b"off", 2)  # too late
    assert trio.current_time() == 6
    assert handler.told == [(0, "enter"), (6, "drained")]


async def test_an_off_in_the_moment_in_which_the_drain_ended_leaves_its_report(autojump_clock) -> None:
    ended: list[DrainReport] = []

    def note(report: DrainReport) -> None:
        ended.append(report)
        manager.on_value(b"off", 3)  # before the manager has looked at the end

    manager = Manager([Gate()], drain_timeout=5, on_drain_ended=note)
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        manager.on_value(b"on", 2)
        await trio.sleep(1)
        assert manager.state().phase is Phase.RUNNING
        assert [report.outcome for report in ended] == [DrainOutcome.DRAINED]
        assert manager.state().drain is ended[0]
        manager.stop()


@pytest.mark.parametrize(("length", "shown"), [(80, "x" * 80), (81, "x" * 77 + "..."), (200, "x" * 77 + "...")])
def test_a_value_that_is_no_switch_is_quoted_in_its_first_characters(length: int, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"the value '{re.escape(shown)}' is neither"):
        parse_switch(b"x" * length)
