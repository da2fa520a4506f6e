"""The drain report: its figures out of the ledger's, and its sentence, word by word."""

from collections.abc import Mapping

import pytest
import trio

from svc.consumer.drain import Drain, DrainTally
from svc.consumer.ledger import PROCESSED, Action, Entry, Fate, Ledger, Outcome
from svc.consumer.queue import Received
from svc.processors import Message
from svc.processors.threads import Threads


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


def add(ledger: Ledger, *ids: str) -> list[Entry]:
    deliveries = [Received(Message(id_, ""), f"receipt of {id_}") for id_ in ids]
    return [ledger.add(delivery, received_at=0, lease_until=30) for delivery in deliveries]


def test_all_was_finished() -> None:
    assert Drain().error() is None
    # Not for these: they were asked for, or come back by themselves.
    assert Drain(in_flight=3, last_receives_returned=("a",), deferred={"b": 3.0}, failed=1).error() is None


@pytest.mark.parametrize(
    ("drain", "said"),
    [
        (Drain(timed_out=("a",)), "1 message unfinished, cancelled and given back: a"),
        (Drain(timed_out=("a", "b")), "2 messages unfinished, cancelled and given back: a, b"),
        (Drain(stubborn=("a",)), "1 message still running after the cancellation: a"),
        (
            Drain(next_receive_dead_letters=("a",)),
            "1 message given back after the last receive that the redrive policy grants: a",
        ),
        (Drain(unsettled=("a",)), "1 message not confirmed by the queue: a"),
        (Drain(lost_ids=("a",)), "1 message lost: a"),
        (Drain(receives_unlanded=2), "2 receive(s) without an answer; what they bring will be given back"),
        (Drain(unsettled=("a",), lost_ids=("b",)), "1 message not confirmed by the queue: a; 1 message lost: b"),
    ],
)
def test_what_was_not_finished(drain: Drain, said: str) -> None:
    assert drain.error() == said


async def test_the_figures_are_of_what_happened_since_the_begin(autojump_clock, ledger: Ledger) -> None:
    tally = DrainTally(ledger, Threads(10))
    assert (tally.running, tally.so_far()) == (False, Drain())
    (before,) = add(ledger, "before")
    ledger.decide(before, PROCESSED)
    ledger.end(before, Outcome.PROCESSED)
    tally.note_lost(before)  # no drain: nobody is told
    entries = add(ledger, *"abcdefg")
    tally.begin(receives_outstanding=2)
    assert (tally.running, tally.so_far()) == (True, Drain(in_flight=7, receives_outstanding=2))
    entries += add(ledger, "h")
    for entry, outcome in zip(entries, (*Outcome, Outcome.PROCESSED, Outcome.RELEASED), strict=False):
        if outcome is Outcome.LOST:
            tally.note_lost(entry)
        ledger.decide(entry, Fate(Action.DELETE, outcome))
        ledger.end(entry, outcome)
    tally.note(timed_out=entries[:1], stubborn=entries[1:2], next_receive_dead_letters=entries[2:3])
    tally.note(timed_out=entries[1:2], stubborn=entries[2:3], next_receive_dead_letters=entries[3:4])
    tally.note(last_receives_returned=entries[4:5])
    tally.note(last_receives_returned=entries[5:6])
    expected = Drain(
        in_flight=7,
        receives_outstanding=2,
        receives_brought=1,
        receives_unlanded=1,
        completed=2,
        failed=1,
        released=2,
        rejected=1,
        lost=1,
        lost_ids=("e",),
        timed_out=("a", "b"),
        stubborn=("b", "c"),
        next_receive_dead_letters=("c", "d"),
        last_receives_returned=("e", "f"),
        deferred={"c": 30.0, "e": 30.0, "g": 30.0},
        deferred_count=3,
    )
    assert tally.so_far(receives_unlanded=1) == expected
    ended = tally.end(receives_unlanded=3)
    assert (ended.receives_unlanded, ended.unsettled, tally.running) == (3, ("h",), False)
    assert tally.so_far(receives_unlanded=9) is ended
    assert tally.end(receives_unlanded=9) is ended
    tally.begin(receives_outstanding=0)
    assert tally.so_far() == Drain(in_flight=1, deferred=expected.deferred, deferred_count=3)


async def test_a_message_that_is_lost_in_a_drain_is_named_in_it_alone(autojump_clock, ledger: Ledger) -> None:
    tally = DrainTally(ledger, Threads(10))
    (entry,) = add(ledger, "a")
    tally.begin(receives_outstanding=0)
    tally.note_lost(entry)
    assert tally.end(receives_unlanded=0).lost_ids == ("a",)
    tally.note_lost(entry)
    assert tally.so_far().lost_ids == ("a",)


class _LeftBehind(Threads):
    """Two threads go on."""

    @property
    def left_behind(self) -> Mapping[str, str]:
        return {"a": "thread 1", "t": "thread 2"}


async def test_threads_are_stubborn_and_named_once(autojump_clock, ledger: Ledger) -> None:
    tally = DrainTally(ledger, _LeftBehind(10))
    entries = add(ledger, "s", "a")
    tally.begin(receives_outstanding=0)
    tally.note(stubborn=entries)
    drain = tally.end(receives_unlanded=0)
    assert drain.stubborn == ("s", "a", "t")
    assert drain.threads == {"a": "thread 1", "t": "thread 2"}


async def test_a_deferral_is_told_from_now_to_the_millisecond(autojump_clock, ledger: Ledger) -> None:
    tally = DrainTally(ledger, Threads(10))
    (entry,) = add(ledger, "a")
    ledger.end(entry, Outcome.FAILED)
    tally.begin(receives_outstanding=0)
    await trio.sleep(7.12345)
    assert tally.so_far().deferred == {"a": 22.877}
