"""The states of a delivery as a table: which event leads where, and what is then to be done with the delivery.

Most deliveries land, are started, get a fate and end. Three things make the way longer:

- *A drain.* Until all receives have landed, what they bring is held: released at once, it could come back by a receive of our own
  that is still on the wire, and each receive counts towards the dead-letter queue.
- *Copies.* A second delivery of a message that is in flight (a duplicate, or a release that is not confirmed yet) is not worked
  on beside the first. It waits for the end of the first and shares its fate.
- *FIFO.* Within a message group nothing overtakes. A delivery that waits takes its place in the group's line all the same.

`landing` and `first_ended` name the event, `MOVES` says what follows, `deliveries.py` does it. Nothing here waits, reads a clock
or changes anything; a move that the table does not have raises `IllegalMove`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache


class Mode(Enum):
    """What the worker does with deliveries that land."""

    __hash__ = object.__hash__  # Enum's own is a function in Python, which every landing would call

    RECEIVING = "receiving"
    HOLDING = "holding"
    """A drain waits for the receives on the wire."""
    REFUSING = "refusing"
    """Receiving has not begun, or the drain's time for work is over: what lands is given back."""
    CLOSING = "closing"
    """The worker is being cancelled."""


class State(Enum):
    __hash__ = object.__hash__  # as Mode's

    LANDED = "landed"
    """It stands in the ledger, nothing else is decided."""
    HELD = "held"
    COPY = "copy"
    """Another delivery of its message was in flight before it."""
    STARTED = "started"
    """The message tasks have it."""
    SETTLING = "settling"
    """Its fate is decided."""
    ENDED = "ended"


class Event(Enum):
    __hash__ = object.__hash__  # as Mode's

    # It lands, and …
    COMES_BACK = "its message was finished here before"
    FIRST_IS_DONE = "the delete of another delivery of its message is on the way"
    HAS_FIRST = "another delivery of its message is in flight"
    FIRST_GOES_BACK = "another delivery of its message is being given back, and so is this one"
    LATE = "its receive took longer than its lease"
    MAY_START = "it may be worked on"
    MUST_WAIT = "a drain waits for further receives"
    NOT_WANTED = "nothing is worked on any more"
    # Later.
    COPY_MUST_RUN = "a copy of it has landed which, given back, would end in the dead-letter queue"
    DRAIN_REVOKED = "the drain was called off"
    DRAIN_LANDED = "every receive of the drain has landed, or its time is over"
    PREDECESSOR_UNFINISHED = "a message before it in its group was not finished"
    FIRST_FINISHED = "the first delivery is finished"
    FIRST_FAILED = "the first delivery has failed and keeps its visibility timeout"
    FIRST_GIVEN_BACK = "the first delivery was given back or lost, and work goes on"
    FIRST_SETTLED = "the first delivery has ended in another way"
    WORK_ENDS = "the time for work is over"
    DECIDED = "its fate is decided"
    ENDED = "it is out of our hands"


LANDINGS = tuple(Event)[:8]
"""The events of which each delivery has exactly one, when it lands."""


class Action(Enum):
    NONE = "none"
    START = "start"
    """Give it to the message tasks."""
    HOLD = "hold"
    WAIT = "wait"
    """For the end of the first delivery of its message."""
    DELETE = "delete"
    """Without working on it."""
    RELEASE = "release"
    """Visible at once."""
    SHARE = "share"
    """The fate of the first delivery is its own; released if that has none."""
    FAIL = "fail"
    """As the first delivery: it keeps its visibility timeout."""
    LOSE = "lose"
    """Another consumer may have the message: no call by this receipt."""


@dataclass(frozen=True, slots=True)
class Move:
    state: State
    action: Action
    in_line: bool = False
    """Of a FIFO queue: it takes its place in its group's line, and nothing passes it."""


MOVES: Mapping[tuple[State, Event], Move] = {
    (State.LANDED, Event.COMES_BACK): Move(State.SETTLING, Action.DELETE, in_line=True),
    (State.LANDED, Event.FIRST_IS_DONE): Move(State.SETTLING, Action.DELETE, in_line=True),
    (State.LANDED, Event.HAS_FIRST): Move(State.COPY, Action.WAIT, in_line=True),
    (State.LANDED, Event.FIRST_GOES_BACK): Move(State.SETTLING, Action.RELEASE, in_line=True),
    (State.LANDED, Event.LATE): Move(State.ENDED, Action.LOSE),
    (State.LANDED, Event.MAY_START): Move(State.STARTED, Action.START, in_line=True),
    (State.LANDED, Event.MUST_WAIT): Move(State.HELD, Action.HOLD),
    (State.LANDED, Event.NOT_WANTED): Move(State.SETTLING, Action.RELEASE),
    (State.HELD, Event.COPY_MUST_RUN): Move(State.STARTED, Action.START, in_line=True),
    (State.HELD, Event.DRAIN_REVOKED): Move(State.STARTED, Action.START, in_line=True),
    (State.HELD, Event.DRAIN_LANDED): Move(State.SETTLING, Action.RELEASE),
    (State.HELD, Event.PREDECESSOR_UNFINISHED): Move(State.SETTLING, Action.RELEASE),
    (State.COPY, Event.FIRST_FINISHED): Move(State.SETTLING, Action.DELETE),
    (State.COPY, Event.FIRST_FAILED): Move(State.ENDED, Action.FAIL),
    (State.COPY, Event.FIRST_GIVEN_BACK): Move(State.STARTED, Action.START),
    (State.COPY, Event.FIRST_SETTLED): Move(State.SETTLING, Action.SHARE),
    **{
        (state, Event.WORK_ENDS): Move(State.SETTLING, Action.RELEASE)
        for state in (State.HELD, State.COPY, State.STARTED)
    },
    # By others: the message tasks, the heartbeat, the settlement; while it lands, because its way could not be chosen (a defect).
    **{(state, Event.DECIDED): Move(State.SETTLING, Action.NONE) for state in State if state is not State.ENDED},
    **{(state, Event.ENDED): Move(State.ENDED, Action.NONE) for state in State},
}


class IllegalMove(Exception):
    """The event makes no sense in this state. Nothing has changed."""


def move(state: State, event: Event) -> Move:
    """What follows; raises `IllegalMove`."""
    try:
        return MOVES[state, event]
    except KeyError:
        raise IllegalMove(f"{event.name} ({event.value}) of a delivery that is {state.value!r}") from None


class First(Enum):
    """The delivery of the same message that is in flight and was here first."""

    __hash__ = object.__hash__  # as Mode's

    NONE = "none"
    UNDECIDED = "undecided"
    """Or decided in a way that this one waits for."""
    DONE = "done"
    """Its delete is on the way, by a receipt that this delivery may have superseded."""
    GOES_BACK = "goes back"
    """Its release is on the way."""


@cache
def landing(mode: Mode, *, finished: bool, first: First, late: bool, must_run: bool) -> Event:
    """The event that the landing of a delivery is. `finished`: its message was finished here before; `late`: its lease is over;
    `must_run`: given back, it would end in the dead-letter queue, and its turn has come."""
    if finished:
        return Event.COMES_BACK
    if first is First.DONE:
        return Event.FIRST_IS_DONE
    if first is First.GOES_BACK and mode in (Mode.REFUSING, Mode.CLOSING):
        return Event.FIRST_GOES_BACK
    if first is not First.NONE:
        return Event.HAS_FIRST
    if late:
        return Event.LATE
    if mode is Mode.RECEIVING or (mode is Mode.HOLDING and must_run):
        return Event.MAY_START
    return Event.MUST_WAIT if mode is Mode.HOLDING else Event.NOT_WANTED


def first_ended(mode: Mode, *, finished: bool, failed: bool, given_back: bool) -> Event:
    """The event that the end of the first delivery is for its copies. At most one is true: `finished`; `failed` and keeps its
    visibility timeout; `given_back` to be visible at once, or lost before it had a fate."""
    if finished:
        return Event.FIRST_FINISHED
    if failed:
        return Event.FIRST_FAILED
    return Event.FIRST_GIVEN_BACK if given_back and mode is Mode.RECEIVING else Event.FIRST_SETTLED
