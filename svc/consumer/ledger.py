"""The one place that knows what is in flight: every delivery stands here from its receive until its end.

A delivery (one receipt handle) is added when the receive that brought it lands, is *decided* when its fate is known (delete it,
give it back, …), and ends in exactly one `Outcome`, when the queue has confirmed that fate or the lease is over. So at every
moment received = processed + failed + released + rejected + lost + in flight: the figures are the lengths and sums of one table.

Times are Trio seconds. A lease is counted from the moment the receive was *sent*, which is never later than SQS counts it.
This file decides nothing, waits for nothing and calls nobody but its listeners.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import structlog
import trio

from svc.consumer.delivery_states import State
from svc.consumer.postponed import Postponed
from svc.consumer.queue import Received
from svc.processors import Message
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

REMEMBERED_MESSAGES = 10_000
"""How many finished messages that could not be deleted are remembered, oldest forgotten first."""

RECENT_ERRORS = 10
"""How many errors the statistics show (SPEC)."""

# Of every message: Python 3.11 looks an Enum's member up in Python, each time.
_ALWAYS, _LANDED = -math.inf, State.LANDED


class Outcome(Enum):
    """How a delivery ended."""

    __hash__ = object.__hash__  # Enum's own is a function in Python, and every delivery is counted by its outcome

    PROCESSED = "processed"
    """Its processor returned and the delete is confirmed."""
    FAILED = "failed"
    """Its processor raised; it becomes visible again after its back-off, or when its visibility timeout ends. Of a FIFO queue,
    after the last receive: it is in the dead-letter queue."""
    RELEASED = "released"
    """Given back: by a drain (visible at once), or because the processor raised `Retry`."""
    REJECTED = "rejected"
    """Its processor raised `Reject`: dead-lettered where possible, and deleted."""
    LOST = "lost"
    """Its lease ran out or was taken before the fate was confirmed: another consumer may have it."""


class Action(Enum):
    """What is asked of the queue to settle a delivery."""

    __hash__ = object.__hash__  # as Outcome's

    DELETE = "delete"
    CHANGE_VISIBILITY = "change_visibility"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Fate:
    """A decision about a delivery, and the outcome it ends in once the queue has confirmed it."""

    action: Action
    outcome: Outcome
    after: int = 0
    """CHANGE_VISIBILITY: seconds until it is visible again."""
    due: float = 0.0
    """CHANGE_VISIBILITY: Trio time from which the message may be worked on again."""
    reason: str = ""
    """DEAD_LETTER: the processor's reason."""

    def allows_work(self, now: float) -> bool:
        """Whether the message may be worked on again by now: it was given back, or the time of its retry has come."""
        return self.action is Action.CHANGE_VISIBILITY and self.due <= now

    def of_a_copy(self, now: float) -> "Fate":
        """For another delivery of the message, which is settled now: it waits for the rest of the time."""
        return replace(self, after=max(0, math.ceil(self.due - now))) if self.after else self


PROCESSED = Fate(Action.DELETE, Outcome.PROCESSED)
RELEASED = Fate(Action.CHANGE_VISIBILITY, Outcome.RELEASED)


class Lease:
    """What the heartbeat knows of one delivery. Only `leases.py` writes to it."""

    __slots__ = ("attempts", "error", "extending", "group", "next_try", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        """Until when the queue keeps the message from others, as far as we have a confirmation."""
        self.extending = False
        """A heartbeat for it is on the wire: a change of visibility sent now could be overtaken by it."""
        self.group: dict[Entry, None] | None = None
        """The entries whose lease is extended together with this one."""
        self.next_try = _ALWAYS
        """Not before then is it extended."""
        self.attempts = 0
        """How many extensions in a row have failed."""
        self.error = ""
        """Why the last of them did."""


class Entry:
    """One delivery in flight. Who reads is free; who writes a slot stands above it, and nobody else does."""

    __slots__ = (
        "attempts",
        "began_at",
        "delivery",
        "done",
        "ended",
        "fate",
        "hidden_until",
        "is_undecided",
        "landed_at",
        "lease",
        "message",
        "receive",
        "received_at",
        "scope",
        "state",
        "worked_until",
    )

    def __init__(
        self,
        delivery: Received,
        *,
        received_at: float,
        lease_until: float,
        landed_at: float | None = None,
        receive: object = None,
    ) -> None:
        # Known from the start, and never changed.
        self.delivery = delivery
        self.message: Message = delivery.message
        self.receive = receive
        """Which receive brought it: the same for all that it brought."""
        self.received_at = received_at
        """When the receive that brought it was sent."""
        self.landed_at = trio.current_time() if landed_at is None else landed_at
        """When its answer came: a long poll later at most."""
        self.lease = Lease(lease_until)

        # Ledger.
        self.hidden_until = self.landed_at + lease_until - received_at
        """Until when the queue keeps it from others at the latest: it counts from when it acted, which may be as late as its
        answer; a call without an answer may have acted too."""
        self.fate: Fate | None = None
        self.ended: Outcome | None = None
        self.is_undecided = True
        """Waiting for its turn, or being processed: it has no fate, and has not ended."""

        # Deliveries.
        self.state = _LANDED

        # Message tasks.
        self.began_at: float | None = None
        """When its processor was called."""
        self.worked_until: float | None = None
        """When it ended, however it did."""
        self.scope: trio.CancelScope | None = None
        """Cancels the processor; None while the message waits for its turn, or when it will have none."""
        self.done: trio.Event | None = None
        """Set by the ledger at the end, if somebody waits for it."""

        # Settlement.
        self.attempts = 0
        """How many calls in a row have failed to carry its fate to the queue."""

    @property
    def is_finished(self) -> bool:
        """It has ended, and its message has left the queue: nothing of its group has to wait for it any more."""
        if self.ended is Outcome.FAILED:
            return self.fate is not None and self.fate.action is Action.DELETE
        return self.ended in (Outcome.PROCESSED, Outcome.REJECTED)

    def lets_pass(self, successor: "Entry") -> bool:
        """In a FIFO group, when this one has ended: whether the next in the line may follow.

        It may when this one is finished. If not, it may when it is the same message, which came back; or when it shows that this
        one, lost or given back, has left the queue since. For a FIFO queue hands out nothing of a group while one of its messages
        is invisible, and then the oldest first: a later receive that begins with the successor came when this one was deleted or
        dead-lettered."""
        if self.is_finished or successor.message.id == self.message.id:
            return True
        return successor.receive is not self.receive


_GIVEN_UP = frozenset({Outcome.RELEASED, Outcome.FAILED, Outcome.LOST})


def _stays_invisible(ended: Entry) -> bool:
    """Whether its message is still in the queue, and may be invisible for a while."""
    return ended.ended in _GIVEN_UP and not ended.is_finished


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """One of the recent errors."""

    at: float
    """Trio time."""
    message_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Counts:
    """The figures of the ledger at one moment: received is always the sum of the others."""

    received: int
    processed: int
    failed: int
    released: int
    rejected: int
    lost: int
    in_flight: int

    def __sub__(self, earlier: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


class Listener(Protocol):
    """A part that is called when something happens to a delivery, in the middle of it: it must not raise or wait."""

    def landed(self, entry: Entry) -> None:
        """It stands in the ledger."""
        return

    def decided(self, entry: Entry) -> None:
        """Its fate is known. A dead letter is decided once more, for its delete."""
        return

    def ended(self, entry: Entry) -> None:
        """It is out of our hands."""
        return


def _overriding(listeners: Sequence[Listener], event: str) -> list[Callable[[Entry], None]]:
    """Who does something at this event: it happens to every message, and most of them do nothing."""
    calls = [getattr(listener, event) for listener in listeners]
    return [call for call in calls if getattr(call, "__func__", None) is not getattr(Listener, event)]


class Ledger:
    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._on_landed: list[Callable[[Entry], None]] = []
        self._on_decided: list[Callable[[Entry], None]] = []
        self._on_ended: list[Callable[[Entry], None]] = []
        self.changed = WakeUp()
        """Notified when a delivery is decided or has ended, after the listeners."""
        self._entries: dict[str, Entry] = {}  # by receipt handle
        self._by_message: dict[str, Entry] = {}
        self._ended = dict.fromkeys(Outcome, 0)
        self._undecided = 0
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._postponed = Postponed()  # whose times are moments
        self._slept = 0.0
        self.errors: deque[ErrorRecord] = deque(maxlen=RECENT_ERRORS)
        self.last_received_at: float | None = None
        self.bytes = 0
        """Memory that the bodies in flight take."""
        self.bytes_landed = 0
        """Memory that all bodies since the start have taken."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Everything in flight, in the order of landing."""
        return iter(self._entries.values())

    def __contains__(self, receipt: str) -> bool:
        return receipt in self._entries

    @property
    def undecided(self) -> int:
        """How many have no fate yet: waiting for their turn, or being processed."""
        return self._undecided

    def listen(self, *listeners: Listener, first: bool = False) -> None:
        """From now on these are told too, in this order, after those that are told already, or before them."""
        self._listeners = [*listeners, *self._listeners] if first else [*self._listeners, *listeners]
        self._on_landed = _overriding(self._listeners, "landed")
        self._on_decided = _overriding(self._listeners, "decided")
        self._on_ended = _overriding(self._listeners, "ended")

    def add(
        self,
        delivery: Received,
        *,
        received_at: float,
        lease_until: float,
        landed_at: float | None = None,
        receive: object = None,
    ) -> Entry:
        """A delivery has landed, now or, by Trio's clock, at `landed_at`."""
        entry = Entry(delivery, received_at=received_at, lease_until=lease_until, landed_at=landed_at, receive=receive)
        size = delivery.size
        if delivery.receipt in self._entries:
            raise ValueError(f"message {delivery.message.id}: this receipt handle stands in the ledger already")
        self._entries[delivery.receipt] = entry
        self._by_message.setdefault(delivery.message.id, entry)
        self._undecided += 1
        self.bytes += size
        self.bytes_landed += size
        self.last_received_at = received_at
        for landed in self._on_landed:
            landed(entry)
        return entry

    def slept(self, seconds: float) -> None:
        """The machine has slept, which Trio's clock does not count, and the queue's does: every lease ends as much earlier, and
        every retry is due as much earlier."""
        self._slept += seconds
        for entry in self:
            if entry.fate is not None and entry.fate.due:
                entry.fate = replace(entry.fate, due=entry.fate.due - seconds)
            entry.received_at -= seconds
            entry.lease.until -= seconds
            entry.hidden_until -= seconds

    def moment(self) -> float:
        """Now, on a clock that goes on while the machine sleeps: for what is compared with a time after an `await`."""
        return trio.current_time() + self._slept

    def time_of(self, moment: float) -> float:
        """The Trio time of a moment, as if Trio's clock had gone on too."""
        return moment - self._slept

    def at_work_on(self, message_id: str) -> Entry | None:
        """The delivery of this message that is in flight and was here first, if there is one."""
        return self._by_message.get(message_id)

    def follow(self, entry: Entry) -> None:
        """The delivery of its message that was here first has ended; now this one is the first."""
        self._by_message[entry.message.id] = entry

    def hide(self, entry: Entry, until: float) -> None:
        """The queue keeps it from others until then, at the latest. (A heartbeat may be answered after the entry's end.)"""
        before, entry.hidden_until = entry.hidden_until, until
        if entry.ended is not None and _stays_invisible(entry):
            slept = self._slept
            self._postponed.move(entry.message.id, before + slept, until + slept, self.moment())

    def decide(self, entry: Entry, fate: Fate) -> None:
        """The fate is known; it may change only from dead-lettering to the delete that follows it."""
        if entry.ended is not None or not (entry.fate is None or entry.fate.action is Action.DEAD_LETTER):
            raise ValueError(f"message {entry.message.id}: decided twice ({entry.fate}, {entry.ended}, now {fate})")
        if entry.is_undecided:
            entry.is_undecided = False
            self._undecided -= 1
        entry.fate = fate
        for decided in self._on_decided:
            decided(entry)
        self.changed.notify()

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """The delivery is out of our hands."""
        if entry.ended is not None:
            raise ValueError(f"message {entry.message.id}: ended twice ({entry.ended}, now {outcome})")
        del self._entries[entry.delivery.receipt]
        self.bytes -= entry.delivery.size
        if self._by_message.get(entry.message.id) is entry:
            del self._by_message[entry.message.id]
        if entry.is_undecided:
            entry.is_undecided = False
            self._undecided -= 1
        entry.ended = outcome
        self._ended[outcome] += 1
        if _stays_invisible(entry):
            self._postpone(entry)
        if outcome is Outcome.LOST and entry.fate is not None and entry.fate.action is Action.DELETE:
            self.remember(entry.message.id)
        if entry.done is not None:
            entry.done.set()
        for ended in self._on_ended:
            ended(entry)
        self.changed.notify()

    def lose(self, entry: Entry, why: str) -> None:
        """Its lease is over: another consumer may have its message, and no call may be made by its receipt any more."""
        log.warning("message lost", message_id=entry.message.id, error=why)
        self.note_error(entry.message.id, f"lost: {why}")
        self.end(entry, Outcome.LOST)

    def _postpone(self, entry: Entry) -> None:
        self._postponed.add(entry.message.id, entry.hidden_until + self._slept, self.moment())

    def remember(self, message_id: str) -> None:
        """Finished, but not known to be deleted in all its copies: when it comes back, it must be deleted and not processed
        again."""
        self._finished[message_id] = None
        self._finished.move_to_end(message_id)
        if len(self._finished) > REMEMBERED_MESSAGES:
            self._finished.popitem(last=False)

    def is_finished(self, message_id: str) -> bool:
        """Whether this message was finished here before, and may come back all the same."""
        return message_id in self._finished

    def deferred(self, now: float) -> dict[str, float]:
        """Message id → Trio time at which it becomes visible again at the latest: failed, to be retried later, or lost. Given
        up by us, but still invisible. The soonest hundred (`postponed.SHOWN`)."""
        return {id_: at - self._slept for id_, at in self._postponed.first(now + self._slept).items()}

    def deferred_count(self, now: float) -> int:
        """How many they are in all."""
        return self._postponed.number(now + self._slept)

    def note_error(self, message_id: str, error: str) -> None:
        self.errors.append(ErrorRecord(trio.current_time(), message_id, error))

    def counts(self) -> Counts:
        ended = self._ended
        return Counts(
            received=sum(ended.values()) + len(self._entries),
            processed=ended[Outcome.PROCESSED],
            failed=ended[Outcome.FAILED],
            released=ended[Outcome.RELEASED],
            rejected=ended[Outcome.REJECTED],
            lost=ended[Outcome.LOST],
            in_flight=len(self._entries),
        )
