"""The circuit breaker: when nearly everything fails, receiving pauses, then probes with a few messages, then goes on.

A downstream that is gone fails every message. To go on receiving would cost each of them a receive on its way to the dead-letter
queue, and would load the downstream while it recovers. The breaker counts how runs of the processor end (`note`); when failures
within the window reach the threshold it opens, for a pause that doubles while probing fails; then it grants a few messages at
once (`grants`), and the first that succeeds closes it.

Only a run that raised an error is a failure: `Retry` and `Reject` are verdicts of a processor that works. The threshold is a
share *and* a least number: a few poison messages, or one bad minute of a nearly idle queue, never reach it, and below that
number a pause would spare nobody anything.

A table of moves and plain decisions: nothing here waits, reads a clock or knows of queues. It only ever holds back receives:
what is in flight goes on, and a drain does not ask it.
"""

import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from svc.backoff import backoff

PROBES = 3
"""Messages that are tried at once after a pause."""

BUCKETS = 10
"""Parts of the window: what is older than the window goes one part at a time, so that memory is bounded."""


class State(Enum):
    CLOSED = "closed"
    """Receiving goes on."""
    OPEN = "open"
    """Receiving pauses."""
    PROBING = "probing"
    """A few messages are tried."""


class Event(Enum):
    TRIPPED = "tripped"
    """The threshold is reached."""
    PAUSE_OVER = "pause over"
    PROBES_FAILED = "probes failed"
    PROBE_SUCCEEDED = "probe succeeded"


MOVES: Mapping[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.PAUSE_OVER): State.PROBING,
    (State.PROBING, Event.PROBES_FAILED): State.OPEN,
    (State.PROBING, Event.PROBE_SUCCEEDED): State.CLOSED,
}


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """Times in seconds; ranges: see `settings.py`."""

    share: float = 0.9
    """Of the runs within the window that failed …"""
    least: int = 30
    """… of at least so many."""
    window: float = 60.0
    pause: tuple[float, float] = (10.0, 300.0)
    """The first, and the longest: each doubles while probes fail."""


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    state: State
    since: float | None
    """Trio time of the move into this state; None: it was never in another."""
    until: float | None
    """Trio time at which the pause is over, while it is open."""
    runs: int
    """Of the processor, within the window, or of the probing."""
    failures: int
    """Among them."""
    opened: int
    """How often it has opened since the start, failed probes aside."""
    reason: str | None = None
    """What is away that the work needs, if that is why receiving pauses."""


class BreakerMachine:
    """`now` is any clock that only goes forward; always the same one."""

    def __init__(self, config: BreakerConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._parts_a_second = BUCKETS / config.window
        self._window: deque[list[int]] = deque()  # part of time, runs, failures
        self._runs = 0
        self._failures = 0
        self._pauses = 0  # in a row
        self._probes_failed = 0
        self._until = -math.inf
        self.state = State.CLOSED
        self.since: float | None = None
        self.opened_at = -math.inf
        """The last time that the threshold was reached."""
        self.counted = (0, 0)
        """Runs and failures within the window, as last counted."""
        self.opened = 0

    def note(self, *, failed: bool, began: float, now: float) -> Event | None:
        """A run has ended that began then. Returns what that led to."""
        match self.state:
            case State.CLOSED:
                runs, failures = self.counted = self._count(failed, now)
                if runs >= self._config.least and failures >= self._config.share * runs:
                    if self.since is None or now - self.since > self._config.window:
                        self._pauses = 0  # else it has closed only just now: the trouble is the old one
                    return self._move(Event.TRIPPED, now)
            case State.PROBING if self.since is not None and began >= self.since:
                if not failed:
                    return self._move(Event.PROBE_SUCCEEDED, now)
                self._probes_failed += 1
                if self._probes_failed >= PROBES:
                    return self._move(Event.PROBES_FAILED, now)
            case _:
                pass  # it began before the pause: what it says is known
        return None

    def look(self, now: float) -> Event | None:
        """Time has gone on. Returns what that led to."""
        if self.state is State.OPEN and now >= self._until:
            return self._move(Event.PAUSE_OVER, now)
        return None

    def resume(self, now: float) -> Event | None:
        """An operator has stopped and started receiving: what is left of a pause is dropped."""
        return self._move(Event.PAUSE_OVER, now) if self.state is State.OPEN else None

    def grants(self, *, probing: int) -> float:
        """How many more messages may be asked for; `probing` were received since the pause and are in hand."""
        if self.state is State.CLOSED:
            return math.inf
        return max(0, PROBES - self._probes_failed - probing) if self.state is State.PROBING else 0

    @property
    def until(self) -> float | None:
        """When the pause is over, while there is one."""
        return self._until if self.state is State.OPEN else None

    def snapshot(self, now: float) -> BreakerSnapshot:
        failed = self._probes_failed
        runs, failures = (
            self._within(math.floor(now * self._parts_a_second)) if self.state is State.CLOSED else (failed, failed)
        )
        return BreakerSnapshot(self.state, self.since, self.until, runs, failures, self.opened)

    def _move(self, event: Event, now: float) -> Event:
        self.state = MOVES[self.state, event]
        self.since = now
        self._probes_failed = 0
        self._window.clear()
        self._runs = self._failures = 0
        if event is Event.TRIPPED:
            self.opened += 1
            self.opened_at = now
        if self.state is State.OPEN:
            self._pauses += 1
            first, cap = self._config.pause
            self._until = now + backoff(self._pauses, first=first, cap=cap, rng=self._rng)
        return event

    def _count(self, failed: bool, now: float) -> tuple[int, int]:
        part = math.floor(now * self._parts_a_second)
        if not self._window or self._window[-1][0] != part:
            self._window.append([part, 0, 0])
        latest = self._window[-1]
        latest[1] += 1
        latest[2] += failed
        self._runs += 1
        self._failures += failed
        return self._within(part)

    def _within(self, part: int) -> tuple[int, int]:
        """Runs and failures within the window that ends with this part of time."""
        while self._window and self._window[0][0] <= part - BUCKETS:
            _, runs, failures = self._window.popleft()
            self._runs -= runs
            self._failures -= failures
        return self._runs, self._failures
