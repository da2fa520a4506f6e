"""The ledger by itself: what it counts, remembers and tells at each step of a delivery."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from svc.consumer.ledger import (
    PROCESSED,
    RECENT_ERRORS,
    RELEASED,
    REMEMBERED_MESSAGES,
    Action,
    Counts,
    Entry,
    ErrorRecord,
    Fate,
    Ledger,
    Listener,
    Outcome,
)
from svc.consumer.queue import Received
from svc.processors import Message

DEAD_LETTER = Fate(Action.DEAD_LETTER, Outcome.REJECTED, reason="bad")
REJECTED = Fate(Action.DELETE, Outcome.REJECTED)
FAILED = Fate(Action.CHANGE_VISIBILITY, Outcome.FAILED, after=5)

receipts = count()


class Told(Listener):
    """A listener that writes down what it hears, and what the ledger showed at that moment."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.heard: list[tuple[str, str, int]] = []
        ledger.listen(self)

    def landed(self, entry: Entry) -> None:
        self.heard.append(("landed", entry.message.id, len(self._ledger)))

    def decided(self, entry: Entry) -> None:
        assert entry.fate is not None
        self.heard.append(("decided", entry.message.id, len(self._ledger)))

    def ended(self, entry: Entry) -> None:
        assert entry.ended is not None
        self.heard.append(("ended", entry.message.id, len(self._ledger)))


@pytest.fixture
async def ledger() -> Ledger:
    await trio.sleep(100)
    return Ledger()


def land(ledger: Ledger, name: str = "m", body: str = "", **given: object) -> Entry:
    given = {"received_at": 90.0, "lease_until": 120.0, **given}
    return ledger.add(Received(Message(name, body), f"receipt {next(receipts)}"), **given)  # type: ignore[arg-type]


async def test_what_a_delivery_brings_with_it(autojump_clock, ledger: Ledger) -> None:
    assert (len(ledger), list(ledger), ledger.undecided, ledger.bytes, ledger.last_received_at) == (0, [], 0, 0, None)
    assert ledger.bytes_landed == 0
    receive = object()
    told = Told(ledger)
    entry = land(ledger, "a", "four", receive=receive)
    assert (entry.received_at, entry.landed_at, entry.lease.until, entry.receive) == (90, 100, 120, receive)
    assert entry.hidden_until == 130  # the lease, as if it ran from the answer on
    assert (entry.fate, entry.ended, entry.began_at, entry.scope, entry.done, entry.attempts) == (None,) * 5 + (0,)
    assert (entry.is_undecided, entry.worked_until) == (True, None)
    lease = entry.lease
    assert (lease.extending, lease.group, lease.next_try, lease.attempts, lease.error) == (
        False, None, -float("inf"), 0, "",
    )  # fmt: skip
    another = land(ledger, "b", "a longer one", received_at=95.0)
    assert list(ledger) == [entry, another]
    assert entry.delivery.receipt in ledger
    assert "another" not in ledger
    assert (ledger.undecided, ledger.last_received_at) == (2, 95)
    assert ledger.bytes == ledger.bytes_landed == entry.delivery.size + another.delivery.size > 16
    assert land(ledger, "c", landed_at=99.0).landed_at == 99
    assert told.heard == [("landed", "a", 1), ("landed", "b", 2), ("landed", "c", 3)]


async def test_one_receipt_stands_there_once(autojump_clock, ledger: Ledger) -> None:
    entry = land(ledger)
    with pytest.raises(ValueError, match=r"^message m: this receipt handle stands in the ledger already$"):
        ledger.add(entry.delivery, received_at=100, lease_until=130)
    assert (list(ledger), ledger.undecided, ledger.bytes) == ([entry], 1, entry.delivery.size)


@pytest.mark.parametrize(
    ("fate", "outcome"),
    [(PROCESSED, "processed"), (FAILED, "failed"), (RELEASED, "released"), (REJECTED, "rejected"), (PROCESSED, "lost")],
)
async def test_received_is_the_sum_at_every_step(autojump_clock, ledger: Ledger, fate: Fate, outcome: str) -> None:
    before = ledger.counts()
    assert before == Counts(0, 0, 0, 0, 0, 0, 0)
    told = Told(ledger)
    entry, other = land(ledger, "a"), land(ledger, "b")
    assert entry.is_undecided
    ledger.decide(entry, fate)
    assert (entry.is_undecided, ledger.undecided, ledger.counts().in_flight) == (False, 1, 2)
    ledger.end(entry, Outcome(outcome))
    assert (entry.is_undecided, ledger.undecided, list(ledger)) == (False, 1, [other])
    assert ledger.counts() - before == Counts(**{
        **dict.fromkeys(("processed", "failed", "released", "rejected", "lost"), 0),
        "received": 2, "in_flight": 1, outcome: 1,
    })  # fmt: skip
    ledger.end(other, Outcome(outcome))  # undecided
    after = ledger.counts()
    assert (after.received, after.in_flight, getattr(after, outcome)) == (2, 0, 2)
    assert after - Counts(1, 0, 0, 0, 0, 0, 1) == Counts(
        1, after.processed, after.failed, after.released, after.rejected, after.lost, -1
    )
    assert (ledger.undecided, ledger.bytes, len(ledger)) == (0, 0, 0)
    assert told.heard[2:] == [("decided", "a", 2), ("ended", "a", 1), ("ended", "b", 0)]


async def test_a_fate_is_decided_once_and_a_dead_letter_once_more(autojump_clock, ledger: Ledger) -> None:
    entry = land(ledger)
    ledger.decide(entry, DEAD_LETTER)
    ledger.decide(entry, REJECTED)
    assert (entry.fate, ledger.undecided) == (REJECTED, 0)
    with pytest.raises(ValueError, match=r"^message m: decided twice \(Fate"):
        ledger.decide(entry, RELEASED)
    ledger.end(entry, Outcome.REJECTED)
    with pytest.raises(ValueError, match=r"^message m: ended twice \(Outcome.REJECTED, now Outcome.LOST\)$"):
        ledger.end(entry, Outcome.LOST)
    copied = land(ledger)
    ledger.decide(copied, DEAD_LETTER)
    ledger.end(copied, Outcome.LOST)
    undecided = land(ledger)
    ledger.end(undecided, Outcome.LOST)
    for ended in (copied, undecided):
        with pytest.raises(ValueError, match="decided twice"):
            ledger.decide(ended, REJECTED)
    assert ledger.counts() == Counts(3, 0, 0, 0, 1, 2, 0)
    assert ledger.undecided == 0


async def test_whoever_waits_is_told(autojump_clock, ledger: Ledger, nursery: trio.Nursery) -> None:
    entry = land(ledger)
    seen: list[str] = []

    async def see(what: str, satisfied) -> None:  # type: ignore[no-untyped-def]
        await ledger.changed.wait_until(satisfied)
        seen.append(what)

    nursery.start_soon(see, "decided", lambda: entry.fate is not None)
    nursery.start_soon(see, "ended", lambda: entry.ended is not None)
    await trio.testing.wait_all_tasks_blocked()
    ledger.decide(entry, PROCESSED)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["decided"]
    entry.done = trio.Event()
    ledger.end(entry, Outcome.PROCESSED)
    assert entry.done.is_set()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["decided", "ended"]


async def test_the_first_of_several_deliveries_is_at_work_until_it_ends(autojump_clock, ledger: Ledger) -> None:
    assert ledger.at_work_on("m") is None
    first, second, third = (land(ledger) for _ in range(3))
    assert ledger.at_work_on("m") is first
    ledger.end(second, Outcome.RELEASED)
    assert ledger.at_work_on("m") is first
    ledger.end(first, Outcome.RELEASED)
    assert ledger.at_work_on("m") is None
    ledger.follow(third)
    assert ledger.at_work_on("m") is third


@pytest.mark.parametrize(
    ("fate", "outcome", "finished"),
    [
        (PROCESSED, Outcome.PROCESSED, True),
        (REJECTED, Outcome.REJECTED, True),
        (Fate(Action.DELETE, Outcome.FAILED), Outcome.FAILED, True),  # FIFO: it is in the dead-letter queue
        (FAILED, Outcome.FAILED, False),
        (None, Outcome.FAILED, False),
        (RELEASED, Outcome.RELEASED, False),
        (PROCESSED, Outcome.LOST, False),
        (None, Outcome.LOST, False),
    ],
)
async def test_what_has_left_the_queue_is_finished_and_the_rest_waits_there(
    autojump_clock, ledger: Ledger, fate: Fate | None, outcome: Outcome, finished: bool
) -> None:
    entry = land(ledger)
    assert not entry.is_finished
    if fate is not None:
        ledger.decide(entry, fate)
    assert not entry.is_finished
    ledger.end(entry, outcome)
    assert entry.is_finished is finished
    assert ledger.deferred(100) == ({} if finished else {"m": 130})
    assert ledger.deferred_count(100) == (not finished)
    assert ledger.deferred_count(131) == 0
    # Finished, and SQS may have it still: when it comes back it is deleted.
    assert ledger.is_finished("m") is (outcome is Outcome.LOST and fate is PROCESSED)


async def test_a_successor_passes_what_is_finished_what_it_is_itself_and_what_left_before_it_came(
    autojump_clock,
    ledger: Ledger,
) -> None:
    one_receive = object()
    head, successor = land(ledger, "head", receive=one_receive), land(ledger, "next", receive=one_receive)
    later, again = land(ledger, "next", receive=object()), land(ledger, "head", receive=one_receive)
    assert not head.lets_pass(successor)
    assert head.lets_pass(later)
    assert head.lets_pass(again)
    ledger.end(head, Outcome.LOST)
    assert not head.lets_pass(successor)
    done, behind = land(ledger, "done", receive=one_receive), land(ledger, "behind", receive=one_receive)
    ledger.end(done, Outcome.PROCESSED)
    assert done.lets_pass(behind)


async def test_what_is_hidden_for_longer_is_told_so_once_it_has_ended(autojump_clock, ledger: Ledger) -> None:
    entry = land(ledger)
    ledger.hide(entry, 140.0)
    assert ledger.deferred(100) == {}  # in flight
    ledger.end(entry, Outcome.FAILED)
    assert ledger.deferred(100) == {"m": 140}
    ledger.hide(entry, 150.0)  # the answer to a heartbeat
    assert ledger.deferred(100) == {"m": 150}
    ledger.hide(entry, 100.0)
    assert ledger.deferred(100) == {}
    finished = land(ledger, "finished")
    ledger.end(finished, Outcome.PROCESSED)
    ledger.hide(finished, 150.0)
    assert ledger.deferred_count(100) == 0


async def test_sleep_ends_every_lease_as_much_earlier(autojump_clock, ledger: Ledger) -> None:
    postponed = land(ledger, "postponed", lease_until=190.0)
    ledger.end(postponed, Outcome.LOST)
    assert ledger.deferred(100) == {"postponed": 200}
    entry = land(ledger)
    assert (ledger.moment(), ledger.time_of(100.0)) == (100, 100)
    ledger.slept(7)
    ledger.slept(3)
    assert (entry.received_at, entry.lease.until, entry.hidden_until) == (80, 110, 120)
    assert (ledger.moment(), ledger.time_of(110.0)) == (110, 100)
    await trio.sleep(1)
    assert ledger.moment() == 111
    assert ledger.deferred(101) == {"postponed": 190}
    ledger.end(entry, Outcome.FAILED)
    assert ledger.deferred(101) == {"m": 120, "postponed": 190}
    ledger.hide(entry, 150.0)
    assert ledger.deferred(101) == {"m": 150, "postponed": 190}
    assert [ledger.deferred_count(now) for now in (101, 149)] == [2, 2]
    assert ledger.deferred(150.5) == {"postponed": 190}
    assert [ledger.deferred_count(now) for now in (150.5, 190)] == [1, 0]


async def test_sleep_makes_retries_due_as_much_earlier_and_changes_no_other_fate(
    autojump_clock, ledger: Ledger
) -> None:
    waits, released, undecided = land(ledger, "a"), land(ledger, "b"), land(ledger, "c")
    ledger.decide(waits, replace(FAILED, after=50, due=150.0))
    ledger.decide(released, RELEASED)
    ledger.slept(30)
    assert waits.fate == replace(FAILED, after=50, due=120.0)
    assert released.fate is RELEASED
    assert undecided.fate is None
    assert [entry.is_undecided for entry in ledger] == [False, False, True]


def test_a_copy_waits_for_the_rest_of_the_time_and_what_is_due_may_be_worked_on() -> None:
    fate = replace(FAILED, after=50, due=150.0)
    assert fate.of_a_copy(120.5) == replace(fate, after=30)
    assert fate.of_a_copy(151) == replace(fate, after=0)
    assert RELEASED.of_a_copy(120) is RELEASED
    assert [fate.allows_work(now) for now in (149.9, 150, 151)] == [False, True, True]
    assert not PROCESSED.allows_work(1)


async def test_sleep_is_counted_when_something_ends_after_it(autojump_clock, ledger: Ledger) -> None:
    """What is visible by then is not counted as postponed."""
    ledger.slept(25)
    entry = land(ledger, lease_until=95.0)
    assert entry.hidden_until == 105
    await trio.sleep(4)
    ledger.end(entry, Outcome.FAILED)
    assert (ledger.deferred(104), ledger.deferred_count(105)) == ({"m": 105}, 0)


async def test_what_is_lost_is_told_with_its_reason(autojump_clock, ledger: Ledger) -> None:
    entry = land(ledger)
    with capture_logs() as lines:
        ledger.lose(entry, "somebody took it")
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("message lost", "warning")
    assert (line["message_id"], line["error"]) == ("m", "somebody took it")
    assert list(ledger.errors) == [ErrorRecord(100, "m", "lost: somebody took it")]
    assert (entry.ended, ledger.counts().lost) == (Outcome.LOST, 1)


async def test_the_last_errors_are_kept(autojump_clock, ledger: Ledger) -> None:
    for number in range(RECENT_ERRORS + 3):
        ledger.note_error(str(number), "no")
    assert [one.message_id for one in ledger.errors] == [str(number) for number in range(3, RECENT_ERRORS + 3)]


async def test_finished_messages_are_remembered_the_oldest_forgotten_first(autojump_clock, ledger: Ledger) -> None:
    ledger.remember("old")
    ledger.remember("again")
    for number in range(REMEMBERED_MESSAGES - 2):
        ledger.remember(str(number))
    assert ledger.is_finished("old")
    ledger.remember("old")  # it is the latest now
    ledger.remember("one more")
    assert [ledger.is_finished(name) for name in ("again", "old", "0", "one more")] == [False, True, True, True]
    ledger.remember("and one more")
    assert [ledger.is_finished(name) for name in ("0", "1", "old")] == [False, True, True]


async def test_listeners_are_told_in_their_order_of_what_they_listen_to(autojump_clock, ledger: Ledger) -> None:
    heard: list[str] = []

    class Named(Listener):
        def __init__(self, name: str) -> None:
            self.name = name

        def landed(self, entry: Entry) -> None:
            heard.append(self.name)

    class OfEnds(Named):
        landed = Listener.landed

        def ended(self, entry: Entry) -> None:
            heard.append(f"{self.name}, its end")

    ledger.listen(Named("b"), OfEnds("c"))
    ledger.listen(Named("d"))
    ledger.listen(OfEnds("z"), Named("a"), first=True)
    entry = land(ledger)
    assert heard == ["a", "b", "d"]
    ledger.lose(entry, "the test takes it")
    assert heard[3:] == ["z, its end", "c, its end"]


async def test_a_listener_may_hold_what_it_does_in_an_attribute(autojump_clock, ledger: Ledger) -> None:
    heard: list[str] = []
    listener = SimpleNamespace(
        landed=lambda entry: heard.append("landed"),
        decided=lambda entry: heard.append("decided"),
        ended=lambda entry: heard.append("ended"),
    )
    ledger.listen(listener)
    entry = land(ledger)
    ledger.decide(entry, PROCESSED)
    ledger.end(entry, Outcome.PROCESSED)
    assert heard == ["landed", "decided", "ended"]
    undecided = land(ledger)
    ledger.end(undecided, Outcome.LOST)
    assert undecided.is_undecided is False
