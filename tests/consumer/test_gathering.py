"""Which messages make a batch and when it leaves: the decision alone, with times of the test's own."""

import math

import pytest
import trio

from svc.consumer.gathering import Gathering, Portion
from svc.consumer.ledger import Entry
from svc.consumer.queue import Received
from svc.processors import Message


def entry(name: str, *, lease: float = 1000.0) -> Entry:
    return Entry(Received(Message(name, ""), f"receipt {name}"), received_at=0, lease_until=lease)


def portion(*names: str, lease: float = 1000.0) -> Portion:
    return Portion([entry(name, lease=lease) for name in names])


def names(portions) -> str:  # type: ignore[no-untyped-def]
    return "".join(one.message.id for held in portions for one in held.undecided())


def taken(gathering: Gathering, now: float, *, company: bool = True) -> list[tuple[str, str]]:
    return [(names(batch.portions), batch.reason) for batch in gathering.take(now, company=company)[0]]


@pytest.fixture(autouse=True)
async def _in_trio() -> None:
    """An entry knows when it landed."""
    await trio.lowlevel.checkpoint()


async def test_a_full_batch_leaves_at_once_and_the_rest_lingers() -> None:
    gathering = Gathering(size=3, linger=2)
    for number in range(7):
        gathering.put(portion(str(number)), number / 10)
    leaving, gone, again = gathering.take(0.6, company=True)
    assert [(names(batch.portions), batch.reason) for batch in leaving] == [("012", "size"), ("345", "size")]
    assert (gone, again) == ([], 2.6)
    assert taken(gathering, 2.5) == []
    assert taken(gathering, 2.6) == [("6", "time")]
    assert gathering.take(9, company=True) == ([], [], math.inf)


async def test_the_oldest_decides_when_time_is_up() -> None:
    gathering = Gathering(size=10, linger=2)
    gathering.put(portion("a"), 0)
    gathering.put(portion("b"), 1.9)
    assert gathering.take(1.9, company=True)[2] == 2
    assert taken(gathering, 2) == [("ab", "time")]


async def test_a_drain_and_full_places_flush() -> None:
    gathering = Gathering(size=10, linger=100)
    gathering.put(portion("a"), 0)
    assert taken(gathering, 0, company=False) == [("a", "flush")]
    gathering.put(portion("b"), 0)
    gathering.flushing = True
    assert taken(gathering, 0) == [("b", "flush")]
    gathering.put(portion("c"), 1)
    assert taken(gathering, 1) == [("c", "flush")]


async def test_half_of_a_lease_is_the_longest() -> None:
    gathering = Gathering(size=10, linger=100)
    gathering.put(portion("a"), 0)
    gathering.put(portion("b", lease=30), 10)
    assert gathering.take(10, company=True)[2] == 20
    assert taken(gathering, 20) == [("ab", "flush")]


async def test_of_a_portion_the_lease_that_ends_first_counts() -> None:
    gathering = Gathering(size=10, linger=100)
    gathering.put(Portion([entry("a"), entry("b", lease=30), entry("c", lease=50)]), 10)
    assert gathering.take(19.9, company=True) == ([], [], 20)
    assert taken(gathering, 20) == [("abc", "flush")]


async def test_what_is_of_one_group_is_not_torn_apart() -> None:
    gathering = Gathering(size=4, linger=100)
    gathering.put(portion("a", "b"), 0)
    gathering.put(portion("c", "d", "e"), 0)
    gathering.put(portion("f"), 0)
    assert taken(gathering, 0) == [("ab", "flush"), ("cdef", "size")]


async def test_what_is_decided_while_it_waits_leaves_no_more_and_takes_those_behind_it_with_it() -> None:
    gathering = Gathering(size=3, linger=2)
    whole, cut = portion("a"), portion("b", "c", "d")
    gathering.put(whole, 0)
    gathering.put(cut, 0)
    cut.entries[1].is_undecided = False
    gathering.look_again()
    assert taken(gathering, 0) == []  # a and b: not full
    whole.entries[0].is_undecided = False
    gathering.look_again()
    leaving, gone, _ = gathering.take(2, company=True)
    assert gone == [whole]
    assert [names(batch.portions) for batch in leaving] == ["b"]


async def test_all_is_taken_back() -> None:
    gathering = Gathering(size=3, linger=2)
    one = portion("a")
    gathering.put(one, 0)
    assert gathering.take_all() == [one]
    assert gathering.take_all() == []
