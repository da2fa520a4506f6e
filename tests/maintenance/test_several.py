"""Several instances that are asked one by one: what they show is read back, and they are waited for as one. In memory."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc.maintenance import fleet_table
from svc.maintenance.fleet import Fleet, Request, Result
from svc.maintenance.registration import Acknowledgement, Entry, Registration
from svc.maintenance.several import PATIENCE, Seen, Shown, requested, shown, together


def instance(id: str, phase: str, revision: int, *, in_flight: int = 0, quiet: bool = False) -> Registration:
    said = Acknowledgement(phase, revision, None, in_flight, ("all",), quiet=quiet)
    return Registration(id, "host", 1, "1.0", "2026-01-01T00:00:00Z", "http://q", "t", said)


def look(
    *instances: Registration, revision: int = 7, value: bytes | None = b"on", fleet: bool = False, **more: object
) -> Shown:
    """As an instance's API tells it, through JSON."""
    entries = tuple(Entry(one.id, one, revision + 1) for one in instances)
    held = Fleet(value, revision, None, {}, entries, revision, **more)  # type: ignore[arg-type]
    return shown(json.loads(json.dumps({"fleet": fleet, **fleet_table.fleet(held)})))


def seen(name: str = "http://a", *, on: bool = True, revision: int = 7, quiet: bool = False) -> Seen:
    return Seen(name, Request(on, revision, None, quiet))


def test_what_is_shown_is_read_back_as_it_was() -> None:
    said = replace(instance("a", "drained", 7), token="")
    held = look(said, value=b'{"enabled": true, "reason": "disk", "by": "ops", "until": "soon"}')
    assert held.entries(9) == (Entry("a", said, 9),)
    assert (held.on, held.details, held.revision) == (True, {"reason": "disk", "by": "ops", "until": "soon"}, 7)
    assert look(value=b"?").on is None
    assert "neither a known word" in str(look(value=b"?").ignored)
    assert look(value=None, revision=0).revision == 0


def test_an_answer_is_for_this_request_and_no_other() -> None:
    one = seen()
    assert one.standing().waiting == ("http://a",)
    for told, result in (
        (instance("a", "running", 6), None),
        (instance("a", "draining", 7, in_flight=2), None),
        (instance("a", "drained", 6), None),
        (instance("a", "drained", 7), Result.DONE),
        (instance("a", "expired", 7), Result.EXPIRED),
    ):
        one.answered(look(told))
        assert one.standing().result is result
    one.answered(look(instance("a", "running", 8), revision=8))
    assert one.standing().result is Result.SUPERSEDED  # switched by somebody else, or started anew


def test_quiet_is_enough_where_it_was_asked_for() -> None:
    told = look(instance("a", "draining", 7, quiet=True))
    for quiet, result in ((True, Result.DONE), (False, None)):
        one = seen(quiet=quiet)
        one.answered(told)
        assert one.standing().result is result


def test_one_that_does_not_answer_is_waited_for_and_has_vanished_after_a_while() -> None:
    one = seen()
    one.answered(look(instance("a", "drained", 7)))
    one.silent(100.0)
    assert (one.standing().result, one.standing().waiting) == (None, ("a",))  # drained, and what then?
    one.answered(look(instance("a", "drained", 7)))
    assert one.standing().result is Result.DONE
    one.silent(200.0)
    one.silent(200.0 + PATIENCE)
    assert (one.standing().result, one.standing().died) == (Result.VANISHED, ("a",))
    one.silent(999.0)
    assert one.standing().died == ("a",)
    one.answered(look(instance("a", "drained", 7)))
    assert (one.standing().result, one.standing().died) == (Result.DONE, ())


def test_one_that_has_stopped_has_said_so() -> None:
    one = seen()
    one.answered(look(instance("a", "stopped", 7)))
    for now in (0.0, PATIENCE):
        one.silent(now)
    assert (one.standing().result, one.standing().stopped, one.standing().died) == (Result.DONE, ("a",), ())


def test_one_that_was_never_seen_goes_by_its_url() -> None:
    one = seen()
    one.silent(0.0)
    assert one.standing().result is None
    one.silent(PATIENCE)
    assert (one.standing().result, one.standing().died) == (Result.VANISHED, ("http://a",))
    one.answered(look(instance("a", "drained", 7)))
    assert (one.standing().result, one.standing().died) == (Result.DONE, ())
    unasked = Seen("http://b", None)
    assert (unasked.standing().result, unasked.standing().died) == (Result.VANISHED, ("http://b",))


def test_one_speaks_for_its_fleet() -> None:
    one = seen("http://a")
    told = (instance("a", "drained", 7), instance("b", "draining", 7))
    one.answered(look(*told, fleet=True))
    assert (one.standing().result, one.standing().waiting) == (None, ("b",))
    one.answered(look(instance("a", "drained", 7), fleet=True, members=("a", "b")))
    assert (one.standing().result, one.standing().died) == (Result.VANISHED, ("b",))
    one.answered(look(instance("a", "drained", 7), fleet=True, members=("a",)))  # somebody has forgotten it
    assert one.standing().result is Result.DONE
    for now in (0.0, PATIENCE):
        one.silent(now)
    assert one.standing().died == ("a",)


def test_the_worst_of_several_counts_when_all_have_answered() -> None:
    a, b = seen("http://a"), seen("http://b", revision=3)
    a.answered(look(instance("a", "expired", 7)))
    assert together([one.standing() for one in (a, b)]).result is None
    b.answered(look(instance("b", "drained", 3), revision=3))
    both = together([one.standing() for one in (a, b)])
    assert (both.result, both.expired, [one.id for one in both.live]) == (Result.EXPIRED, ("a",), ["a", "b"])
    b.answered(look(instance("b", "running", 4), revision=4))
    assert together([one.standing() for one in (a, b)]).result is Result.SUPERSEDED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "fleet",
    "maintenance",
    "reason",
    "by",
    "until",
    "ignored_value",
    "expires_in",
    "revision",
    "vanished",
    "instances",
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json_values)) | json_values)
def test_whatever_answers_is_understood_or_refused(document: object) -> None:
    try:
        told = shown(document)
    except ValueError:
        return
    one = seen()
    one.answered(told)
    assert one.standing().result is not Result.DONE


SAID = ("phase", "in_flight", "drain", "keys", "pid")


@given(st.lists(st.fixed_dictionaries({"id": st.text()}, optional=dict.fromkeys(SAID, json_values)), max_size=3))
def test_whatever_an_instance_says_of_itself(rows: list[dict[str, object]]) -> None:
    told = shown({"instances": rows, "vanished": [], "revision": 7, "maintenance": True})
    assert all(one.id.isprintable() for one in told.entries(9))


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"maintenance": False, "revision": 1}, {"maintenance": True, "revision": "1"},
     {"maintenance": True, "revision": -1}, {"maintenance": True, "revision": True}, {"maintenance": True, "instance": 5}],
)  # fmt: skip
def test_what_is_no_answer_to_an_order(document: object) -> None:
    with pytest.raises(ValueError, match=r"no JSON object|not what"):
        requested(document, on=True, quiet=False)
