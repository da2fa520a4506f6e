"""Whom the next of a FIFO group may follow."""

import itertools

import pytest
import trio

from svc import Message
from svc.consumer.group_line import Line
from svc.consumer.ledger import PROCESSED, Entry, Ledger, Outcome
from svc.consumer.queue import Received

receipts = itertools.count()
pytestmark = pytest.mark.expects_errors


class Group:
    """A ledger, and a line of what has landed in it."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.line: Line | None = None

    def land(self, *names: str) -> list[Entry]:
        """One receive brings these."""
        receive, landed = object(), []
        for name in names:
            delivery = Received(Message(name, ""), f"receipt {next(receipts)}")
            entry = self.ledger.add(delivery, received_at=0, lease_until=trio.current_time() + 30, receive=receive)
            landed.append(entry)
            if self.line is None:
                self.line = Line(entry)
            else:
                self.line.append(entry)
        return landed

    def first_ends(self, outcome: Outcome) -> bool:
        assert self.line is not None
        if self.line.first.ended is None:
            if outcome is Outcome.PROCESSED:
                self.ledger.decide(self.line.first, PROCESSED)
            self.ledger.end(self.line.first, outcome)
        return self.line.next_may_follow()


@pytest.fixture
async def group() -> Group:
    return Group()


async def test_the_next_follows_what_is_finished(autojump_clock, group: Group) -> None:
    group.land("a", "b")
    assert group.first_ends(Outcome.PROCESSED)
    assert group.first_ends(Outcome.PROCESSED)
    assert not group.line


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.RELEASED, Outcome.LOST])
async def test_nobody_follows_what_is_not(autojump_clock, group: Group, outcome: Outcome) -> None:
    _, b = group.land("a", "b")
    assert not group.first_ends(outcome)
    assert list(group.line or ()) == [b]


@pytest.mark.parametrize("between", list(Outcome))
async def test_nobody_does_behind_one_that_is_passed_over_either(
    autojump_clock, group: Group, between: Outcome
) -> None:
    _, b, c = group.land("a", "b", "c")
    group.ledger.end(b, between)
    assert group.first_ends(Outcome.FAILED)  # b has ended: it is only passed over
    assert not group.first_ends(between)
    assert list(group.line or ()) == [c]


async def test_what_comes_back_may_follow_itself_and_the_others_follow_it(autojump_clock, group: Group) -> None:
    group.land("a")
    group.land("a", "b")
    assert group.first_ends(Outcome.LOST)
    assert group.first_ends(Outcome.PROCESSED)
    assert group.first_ends(Outcome.PROCESSED)


async def test_what_comes_back_and_fails_again_keeps_the_others_back_again(autojump_clock, group: Group) -> None:
    group.land("a")
    group.land("a", "b")
    assert group.first_ends(Outcome.LOST)
    assert not group.first_ends(Outcome.FAILED)


async def test_a_later_receive_shows_that_all_before_it_have_left(autojump_clock, group: Group) -> None:
    _, b = group.land("a", "b")
    group.land("c", "d")
    group.ledger.end(b, Outcome.LOST)
    assert group.first_ends(Outcome.LOST)
    assert group.first_ends(Outcome.LOST)
    assert group.first_ends(Outcome.PROCESSED)
    assert group.first_ends(Outcome.PROCESSED)


async def test_what_a_copy_has_finished_keeps_nobody_back(autojump_clock, group: Group) -> None:
    _, copy, _ = group.land("a", "a", "b")
    group.ledger.decide(copy, PROCESSED)
    group.ledger.end(copy, Outcome.PROCESSED)
    assert group.first_ends(Outcome.LOST)
    assert group.first_ends(Outcome.PROCESSED)
