"""The phases of an instance as a table: which event leads where, and which event the state calls for. Pure: no I/O, no clock.

`next_event` says what the whole state calls for, `MOVES` where that leads. An illegal move raises and changes nothing.
"""

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    STARTING = "starting"
    """The key has not been read yet: nothing is taken."""
    RUNNING = "running"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    """Drained, or the drain's time is over."""
    STOPPING = "stopping"
    """Draining for the last time."""
    STOPPED = "stopped"


class Event(Enum):
    RESUME = "resume"
    DRAIN = "drain"
    DRAIN_ENDED = "drain ended"
    STOP = "stop"


MOVES: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.STARTING, Event.RESUME): Phase.RUNNING,
    (Phase.STARTING, Event.DRAIN): Phase.DRAINING,
    (Phase.STARTING, Event.STOP): Phase.STOPPING,
    (Phase.RUNNING, Event.DRAIN): Phase.DRAINING,
    (Phase.RUNNING, Event.STOP): Phase.STOPPING,
    (Phase.DRAINING, Event.RESUME): Phase.RUNNING,
    (Phase.DRAINING, Event.DRAIN_ENDED): Phase.MAINTENANCE,
    (Phase.DRAINING, Event.STOP): Phase.STOPPING,
    (Phase.MAINTENANCE, Event.RESUME): Phase.RUNNING,
    (Phase.MAINTENANCE, Event.STOP): Phase.STOPPING,
    (Phase.STOPPING, Event.DRAIN_ENDED): Phase.STOPPED,
}


class IllegalMove(Exception):
    """The event makes no sense in this phase. Nothing has changed."""


def move(phase: Phase, event: Event) -> Phase:
    """The phase that follows; raises `IllegalMove`."""
    try:
        return MOVES[phase, event]
    except KeyError:
        raise IllegalMove(f"{event.value!r} in phase {phase.value!r}") from None


def next_event(phase: Phase, *, wanted: bool | None, stop: bool, drain_ended: bool) -> Event | None:
    """What the state calls for: `wanted` is the latest maintenance state (None: never read), `stop` that the end of the process
    has been asked for, `drain_ended` that the running drain is over."""
    if phase is Phase.STOPPED:
        return None
    if phase is Phase.STOPPING:
        return Event.DRAIN_ENDED if drain_ended else None
    if stop:
        return Event.STOP
    if wanted is None:
        return None
    if wanted:
        if phase in (Phase.STARTING, Phase.RUNNING):
            return Event.DRAIN
        return Event.DRAIN_ENDED if phase is Phase.DRAINING and drain_ended else None
    return Event.RESUME if phase is not Phase.RUNNING else None
