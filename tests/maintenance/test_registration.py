"""What an instance says of itself, as it is written and as it is read: exact, without I/O."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import Acted, MaintenanceState
from svc.maintenance.phases import Phase
from svc.maintenance.registration import (
    LONGEST_TEXT,
    PHASES,
    Acknowledgement,
    Entry,
    Registration,
    acknowledgement,
    base,
    described,
    drain_in_short,
    entry,
    members,
    own_key,
    registration,
    registrations,
    suffixed,
)
from svc.maintenance.switch_value import Switch

SAID = Acknowledgement("drained", 5, 6, 7, ("all", "instance"), {"outcome": "drained"}, True, 3)
HELD = Registration("a", "host", 1, "1.0", "2026-01-01T00:00:00Z", "http://q/q", "token of a", SAID)

REPORT = DrainReport("maintenance", 10.0, 40.0, DrainOutcome.EXPIRED, ended=12.34567)


def state(phase: Phase, drain: DrainReport | None = None) -> MaintenanceState:
    return MaintenanceState(phase, Switch(True), 9, None, drain, acted=Acted(8, 4))


def test_the_names_of_the_keys() -> None:
    assert own_key("/m", "a") == "/m/only/a"
    assert registrations("/m") == "/m/instances/"
    assert members("/m") == "/m/members/"
    assert suffixed("a", "0123456789") == "a~012345"
    assert [base(id) for id in ("a~012345", "a", "a~b~c")] == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("phase", "ended_as", "said"),
    [
        (Phase.STARTING, None, "starting"),
        (Phase.RUNNING, DrainOutcome.EXPIRED, "running"),
        (Phase.DRAINING, None, "draining"),
        (Phase.STOPPING, DrainOutcome.DRAINED, "draining"),
        (Phase.MAINTENANCE, DrainOutcome.DRAINED, "drained"),
        (Phase.MAINTENANCE, DrainOutcome.EXPIRED, "expired"),
        (Phase.STOPPED, DrainOutcome.DRAINED, "stopped"),
        (Phase.STOPPED, DrainOutcome.EXPIRED, "expired"),
        (Phase.STOPPED, None, "stopped"),
    ],
)
def test_the_phase_that_is_told(phase: Phase, ended_as: DrainOutcome | None, said: str) -> None:
    held = state(phase, None if ended_as is None else replace(REPORT, outcome=ended_as))
    told = acknowledgement(held, in_flight=2, receives=3)
    assert told.phase == said in PHASES
    assert (told.revision, told.own_revision, told.in_flight, told.keys) == (8, 4, 2, ("all",))
    assert told.receives == (3 if said == "draining" else 0)
    assert told.drain == (
        None if ended_as is None else {"cause": "maintenance", "outcome": ended_as.value, "seconds": 2.346}
    )
    assert described(HELD, held, in_flight=2, receives=3) == replace(HELD, acknowledgement=told)
    assert (
        acknowledgement(held, in_flight=2).receives == described(HELD, held, in_flight=2).acknowledgement.receives == 0
    )


def test_a_drain_that_runs_is_not_told_yet_and_quiet_is() -> None:
    running = replace(REPORT, outcome=DrainOutcome.RUNNING, ended=None)
    assert acknowledgement(state(Phase.DRAINING, running), in_flight=0).drain is None
    assert not acknowledgement(state(Phase.DRAINING, running), in_flight=0).quiet
    assert acknowledgement(state(Phase.DRAINING, replace(running, quiet=11.0)), in_flight=0).quiet
    assert drain_in_short(running) == {"cause": "maintenance", "outcome": "running"}


def test_a_drain_in_short_is_figures_and_no_list_of_ids() -> None:
    numbers = {"in_flight": 1, "completed": 2, "failed": 3, "released": 4, "rejected": 5, "lost": 6}
    lists = {"timed_out": ("a",), "unsettled": ("a", "b"), "last_receives_returned": ("a", "b", "c")}
    others = {"deferred": {"a": 1}, "processed": 3, "stubborn": ("a",)}
    sqs = {**numbers, **lists, "threads": {"m": "a thread", "n": "another"}, **others}
    report = replace(REPORT, error="x" * 400, handlers={"sqs": sqs, "http": {"in_flight": 99}})
    assert drain_in_short(report) == {
        "cause": "maintenance",
        "outcome": "expired",
        "seconds": 2.346,
        **numbers,
        "timed_out": 1,
        "unsettled": 2,
        "last_receives_returned": 3,
        "threads": 2,
        "error": "x" * 300,
    }
    odd = dict.fromkeys((*numbers, *lists, "threads"), "text")  # a handler of the user's may be called `sqs` in a test
    assert drain_in_short(replace(REPORT, handlers={"sqs": odd})).keys() == {"cause", "outcome", "seconds"}


def test_it_is_written_in_few_bytes_and_read_back_as_it_was() -> None:
    assert registration(HELD.value()) == HELD
    assert b" " not in replace(HELD, token="t").value()
    unread = replace(HELD, acknowledgement=Acknowledgement("starting", None, None, 0))
    assert (
        registration(unread.value())
        == unread
        == Registration(*(getattr(unread, name) for name in unread.__slots__[:7]))
    )
    assert entry("a", HELD.value(), 9) == Entry("a", HELD, 9)
    assert entry("a", b"no json", 9) == Entry("a", None, 9)
    assert (Entry("a", HELD, 9).phase, Entry("a", HELD, 9).token, Entry("a", HELD, 9).in_flight) == (
        "drained",
        "token of a",
        7,
    )
    unreadable = Entry("a", None, 9)
    assert (unreadable.phase, unreadable.token, unreadable.in_flight) == ("unreadable", None, None)


def written(told: Mapping[str, object] | None = None, **held: object) -> bytes:
    document = json.loads(HELD.value()) | held
    document["acknowledgement"] |= told or {}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"acknowledgement": []}',
        written({"phase": "nearly"}),
        written({"keys": "all"}),
        written({"keys": ["all", 1]}),
        written({"drain": "drained"}),
        written({"keys": ["all", 1], "drain": "drained"}),
        written({"quiet": 1}),
        written({"revision": 2**63}),
        written({"revision": -1}),
        written({"own_revision": True}),
        written({"in_flight": None}),
        written({"receives": 1.5}),
        written(host=1),
        written(pid="1"),
    ],
)
def test_what_is_of_another_form_is_none(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a registration$"):
        registration(value)


def test_what_earlier_versions_do_not_say() -> None:
    document = json.loads(HELD.value())
    del document["acknowledgement"]["quiet"], document["acknowledgement"]["receives"]
    read = registration(json.dumps(document).encode()).acknowledgement
    assert (read.quiet, read.receives) == (False, 0)


def test_what_is_kept_of_somebody_elses_is_bounded() -> None:
    drain = {
        "text": "x" * 600, "none": None, "true": True, "whole": 2**70, "part": 0.5, "list": [1], "nan": math.nan,
        "endless": -math.inf, "x" * 600: 1, **{f"more {number}": number for number in range(20)},
    }  # fmt: skip
    told = {"keys": ["k" * 600, *map(str, range(20))], "drain": drain, "revision": 2**63 - 1, "in_flight": 0}
    read = registration(written(told, host="h" * 600))
    said = read.acknowledgement
    assert LONGEST_TEXT == 500
    assert (read.host, said.keys) == ("h" * 500, ("k" * 500, *map(str, range(9))))
    assert (said.revision, said.in_flight) == (2**63 - 1, 0)
    assert said.drain == {
        "text": "x" * 500, "none": None, "true": True, "whole": 2**70, "part": 0.5, "x" * 500: 1,
        **{f"more {number}": number for number in range(11)},
    }  # fmt: skip
