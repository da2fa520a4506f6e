"""The table of a delivery's states, walked."""

import itertools

import pytest
import trio

from svc import Message
from svc.consumer.delivery_states import (
    LANDINGS,
    MOVES,
    Action,
    Event,
    First,
    IllegalMove,
    Mode,
    State,
    first_ended,
    landing,
    move,
)
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService

BOTH = (True, False)


def test_every_move_of_the_table_and_no_other() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) in MOVES:
            assert move(state, event) is MOVES[state, event]
        else:
            with pytest.raises(IllegalMove, match=rf"{event.name} .*{state.value}"):
                move(state, event)


def test_whatever_lands_has_a_way() -> None:
    seen = set()
    for mode, finished, first, late, must_run in itertools.product(Mode, BOTH, First, BOTH, BOTH):
        event = landing(mode, finished=finished, first=first, late=late, must_run=must_run)
        assert move(State.LANDED, event).state is not State.LANDED
        seen.add(event)
    assert seen == set(LANDINGS)
    broken = {Event.DECIDED, Event.ENDED}  # its way could not be chosen
    assert {event for state, event in MOVES if state is State.LANDED} == seen | broken


def test_whatever_becomes_of_the_first_its_copies_have_a_way() -> None:
    seen = set()
    for mode, what in itertools.product(Mode, (None, "finished", "failed", "given_back")):
        facts = {name: name == what for name in ("finished", "failed", "given_back")}
        event = first_ended(mode, **facts)
        assert move(State.COPY, event).state is not State.COPY
        seen.add(event)
    assert len(seen) == 4


def test_nothing_is_started_but_while_receiving_or_where_its_release_would_dead_letter_it() -> None:
    for mode, first, late in itertools.product(Mode, First, BOTH):
        event = landing(mode, finished=False, first=first, late=late, must_run=False)
        assert (move(State.LANDED, event).action is Action.START) is (
            mode is Mode.RECEIVING and first is First.NONE and not late
        )
    assert landing(Mode.HOLDING, finished=False, first=First.NONE, late=False, must_run=True) is Event.MAY_START
    for mode in (Mode.REFUSING, Mode.CLOSING):
        assert landing(mode, finished=False, first=First.NONE, late=False, must_run=True) is Event.NOT_WANTED


def test_a_copy_of_what_goes_back_waits_unless_nothing_is_worked_on_any_more() -> None:
    for mode in Mode:
        event = landing(mode, finished=False, first=First.GOES_BACK, late=False, must_run=False)
        ends = mode in (Mode.REFUSING, Mode.CLOSING)
        assert event is (Event.FIRST_GOES_BACK if ends else Event.HAS_FIRST)


def test_a_copy_takes_the_place_of_what_was_given_back_only_while_receiving() -> None:
    for mode, given_back in itertools.product(Mode, BOTH):
        event = first_ended(mode, finished=False, failed=False, given_back=given_back)
        follows = given_back and mode is Mode.RECEIVING
        assert event is (Event.FIRST_GIVEN_BACK if follows else Event.FIRST_SETTLED)


def test_from_every_state_a_delivery_can_end_and_then_nothing_follows() -> None:
    for state in set(State) - {State.LANDED}:
        assert move(state, Event.ENDED).state is State.ENDED
    assert [event for state, event in MOVES if state is State.ENDED] == [Event.ENDED]
    reached, ahead = {State.LANDED}, [State.LANDED]
    while ahead:
        at = ahead.pop()
        following = {moved.state for (state, _), moved in MOVES.items() if state is at} - reached
        reached |= following
        ahead += following
    assert reached == set(State)


def test_what_is_undecided_when_the_time_is_over_is_given_back() -> None:
    undecided = {State.HELD, State.COPY, State.STARTED}
    assert {state for state, event in MOVES if event is Event.WORK_ENDS} == undecided
    for state in undecided:
        assert move(state, Event.WORK_ENDS).action is Action.RELEASE


async def test_an_illegal_move_changes_nothing(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("one")

    async def work(message: Message) -> None:
        await trio.sleep(5)

    async with SimulatedService(queue, work) as service:
        await service.at_work("one")
        worker = service.core.worker
        (entry,) = worker.ledger
        assert entry.state is State.STARTED
        with pytest.raises(IllegalMove):
            worker.deliveries.route(entry, None)
        assert entry.state is State.STARTED
        assert entry.is_undecided
        await service.idle()
        assert entry.state is State.ENDED
    assert len(queue.deleted) == 1
