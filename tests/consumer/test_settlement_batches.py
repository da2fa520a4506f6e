"""Which settlements leave when: decisions alone, at times that are given."""

import random

import pytest

from svc import Message
from svc.consumer.ledger import Action, Entry
from svc.consumer.queue import Received
from svc.consumer.settlement_batches import RETRY_CAP, RETRY_FIRST, Batches


@pytest.fixture
async def entries(autojump_clock) -> list[Entry]:
    def entry(number: int) -> Entry:
        return Entry(Received(Message(str(number), ""), f"receipt {number}"), received_at=0, lease_until=30)

    return [entry(number) for number in range(25)]


def batches(linger: float = 0.1) -> Batches:
    return Batches(linger=linger, rng=random.Random(1))


async def test_full_batches_leave_at_once_and_the_rest_lingers(entries) -> None:
    held = batches()
    for entry in entries:
        held.put(entry, Action.DELETE, 1.0)
    left, next_look = held.take(1.0, calls=40, company=True)
    assert [len(batch.entries) for batch in left] == [10, 10]
    assert next_look == pytest.approx(1.1)
    left, _ = held.take(1.1, calls=40, company=True)
    assert [len(batch.entries) for batch in left] == [5]
    assert held.left == {"size": 2, "time": 1, "flush": 0}


async def test_without_company_or_in_a_drain_nothing_lingers(entries) -> None:
    held = batches()
    held.put(entries[0], Action.DELETE, 1.0)
    assert len(held.take(1.0, calls=40, company=False)[0]) == 1
    held.flush(True, 1.0)
    held.put(entries[1], Action.DELETE, 1.0)
    assert len(held.take(1.0, calls=40, company=True)[0]) == 1
    assert held.left["flush"] == 2


async def test_no_more_leave_than_there_is_room_for(entries) -> None:
    held = batches()
    for entry in entries:
        held.put(entry, Action.DEAD_LETTER, 0)
    assert len(held.take(0, calls=3, company=False)[0]) == 3
    assert held.take(0, calls=0, company=False)[0] == []
    assert len(held.take(0, calls=40, company=False)[0]) == 22


async def test_a_lingering_takes_a_quarter_of_the_lease_at_most(entries) -> None:
    held = batches(linger=20)
    held.put(entries[0], Action.DELETE, 26)
    assert held.take(26, calls=40, company=True) == ([], 27)


async def test_a_change_of_visibility_waits_for_the_heartbeat_and_a_delete_does_not(entries) -> None:
    held = batches()
    for entry, action in zip(entries[:2], (Action.CHANGE_VISIBILITY, Action.DELETE), strict=True):
        entry.lease.extending = True
        held.put(entry, action, 0)
    assert [batch.action for batch in held.take(0, calls=40, company=False)[0]] == [Action.DELETE]
    entries[0].lease.extending = False
    assert [batch.action for batch in held.take(1, calls=40, company=False)[0]] == [Action.CHANGE_VISIBILITY]


async def test_what_fails_is_tried_again_until_its_lease_ends(entries) -> None:
    held, entry, now = batches(), entries[0], 0.0
    held.put(entry, Action.DELETE, now)
    tries = 0
    while True:
        (batch,), _ = held.take(now, calls=40, company=False)
        tries += 1
        if held.again(batch.action, batch.entries, now, together=False):
            break
        nothing, next_look = held.take(now, calls=40, company=False)
        assert nothing == []
        assert RETRY_FIRST / 2 <= next_look - now <= RETRY_CAP
        now = next_look
    assert 28 - RETRY_CAP < now < 30
    assert entry.attempts == tries > 15


async def test_an_outage_costs_a_call_for_ten_messages(entries) -> None:
    held = batches()
    held.put(entries[0], Action.DELETE, 0)
    ((batch,), _) = held.take(0, calls=40, company=False)
    assert held.again(batch.action, batch.entries, 0, together=True) == set()
    for entry in entries[1:20]:
        held.put(entry, Action.DELETE, 0.05)
    assert held.take(0.05, calls=40, company=False)[0] == []
    _, next_look = held.take(0.05, calls=40, company=False)
    assert [len(batch.entries) for batch in held.take(next_look, calls=40, company=False)[0]] == [10, 10]
    # An answer ends the pause; what a drain finds untried has its one try.
    held.again(Action.DELETE, entries[:1], 1, together=True)
    held.put(entries[20], Action.DELETE, 1)
    held.flush(True, 1)
    assert [batch.entries for batch in held.take(1, calls=40, company=False)[0]] == [[entries[20]]]
    held.answered(Action.DELETE)
    held.flush(False, 1)
    held.put(entries[21], Action.DELETE, 1)
    assert len(held.take(1, calls=40, company=False)[0]) == 1


async def test_at_the_end_everything_leaves_but_what_a_heartbeat_on_the_wire_could_undo(entries) -> None:
    held = batches()
    held.again(Action.DELETE, entries[:1], 0, together=True)
    held.put(entries[1], Action.DELETE, 0)
    entries[2].lease.extending = True
    held.put(entries[2], Action.CHANGE_VISIBILITY, 0)
    left = {entry for batch in held.take_all() for entry in batch.entries}
    assert left == set(entries[:2])
    assert list(held.take_all()) == []
    entries[2].lease.extending = False
    assert [entry for batch in held.take_all() for entry in batch.entries] == [entries[2]]


async def test_a_batch_that_is_full_to_the_last_place_does_not_linger(entries) -> None:
    held = batches()
    for entry in entries[:10]:
        held.put(entry, Action.DELETE, 1.0)
    assert len(held.take(1.0, calls=40, company=True)[0]) == 1
    assert held.left == {"size": 1, "time": 0, "flush": 0}
    held.put(entries[10], Action.DEAD_LETTER, 1.0)  # a call each: nothing to wait for
    assert len(held.take(1.0, calls=40, company=True)[0]) == 1
    assert held.left["size"] == 2


async def test_a_pause_that_ends_with_the_lease_is_not_waited_for(entries) -> None:
    held = batches()
    held.again(Action.DELETE, entries[:1], 0, together=True)
    pause = held.take(0, calls=40, company=False)[1]
    entries[1].lease.until = pause
    held.put(entries[1], Action.DELETE, 0)
    ((batch,), _) = held.take(0, calls=40, company=False)
    assert batch.entries == [entries[1]]
    entries[2].lease.until = pause  # and what is tried again then is over
    assert held.again(Action.DELETE, [entries[2]], 0, together=True) == {entries[2]}


async def test_an_answer_ends_the_pause_of_its_action_and_of_no_other(entries) -> None:
    held = batches()
    for action, entry in zip((Action.DELETE, Action.CHANGE_VISIBILITY), entries, strict=False):
        held.again(action, [entry], 0, together=True)
    held.answered(Action.DELETE)
    held.put(entries[2], Action.DELETE, 0)
    held.put(entries[3], Action.CHANGE_VISIBILITY, 0)
    assert [batch.entries for batch in held.take(0, calls=40, company=False)[0]] == [[entries[2]]]


async def test_what_fails_together_while_there_is_a_pause_is_tried_at_its_end(entries) -> None:
    held = batches()
    held.again(Action.DELETE, entries[:1], 0, together=True)
    pause = held.take(0, calls=40, company=False)[1]
    entries[1].attempts = 9  # alone it would wait for two seconds
    held.again(Action.DELETE, entries[1:2], 0, together=True)
    assert held.take(0, calls=40, company=False)[1] == pause
    ((batch,), _) = held.take(pause, calls=40, company=False)
    assert batch.entries == entries[:2]


async def test_those_put_off_to_one_moment_leave_in_their_order(entries) -> None:
    held = batches()
    held.again(Action.DELETE, entries[:9], 0, together=True)
    pause = held.take(0, calls=40, company=False)[1]
    ((batch,), _) = held.take(pause, calls=40, company=False)
    assert batch.entries == entries[:9]
