"""Events of the work as it happens: the `Observer` protocol, which metrics and traces implement.

The files that decide (`worker.py` and its parts) know this protocol and no foreign library. What can be looked at later, such as
how many messages are in flight, is a snapshot and no event; here stands only what a later look cannot know: how long something
took, and how often it happened.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from svc.consumer.ledger import Entry, Listener
from svc.consumer.queue import Received
from svc.defects import Defects
from svc.maintenance.handler import DrainReport

Action = Literal["receive", "delete", "change_visibility", "dead_letter", "send", "attributes"]
"""What was asked of the queue: the methods of `queue.Queue`."""

Result = Literal["ok", "timeout", "unavailable", "misconfigured", "refused", "error", "cancelled"]
"""How it ended: by the `QueueError` that it raised. `cancelled`: given up by us; it may have acted."""


BatchReason = Literal["size", "time", "flush"]
"""Why a batch of messages left for the processor: see `gathering.py`."""


class Observer(Listener, Protocol):
    """Everything is called in the middle of a decision: it must not raise, wait, or take more than microseconds. Of an entry it
    may read everything and change nothing."""

    def landed(self, entry: Entry) -> None:
        """A delivery has come in and stands in the ledger."""

    def batch_begins(self, messages: int, reason: BatchReason) -> None:
        """A processor of batches is about to be called with so many messages, which left for this reason; `begins` of each
        follows, the last one first."""

    def begins(self, entry: Entry) -> None:
        """Its processor is about to be called, in the task that calls this."""

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        """Its processor has ended, in the task that calls this: by returning (None), or by this exception."""

    def decided(self, entry: Entry) -> None:
        """Its fate is known (`entry.fate`), and goes to the queue now. A dead letter is decided once more, for its delete."""

    def ended(self, entry: Entry) -> None:
        """It is out of our hands (`entry.ended`)."""

    def extended(self, *, confirmed: int, refused: int, unanswered: int) -> None:
        """One heartbeat has been sent, and so many leases were extended, were not, or may have been."""

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        """One call to the queue has ended; `entries` messages went out with it."""

    def received(self, deliveries: Sequence[Received]) -> None:
        """A receive was answered, with these (or none)."""

    def drain_ended(self, report: DrainReport) -> None:
        """A drain is over."""


class Unobserved(Listener):
    """Nobody looks."""

    def batch_begins(self, messages: int, reason: BatchReason) -> None:
        pass

    def begins(self, entry: Entry) -> None:
        pass

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        pass

    def extended(self, *, confirmed: int, refused: int, unanswered: int) -> None:
        pass

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        pass

    def received(self, deliveries: Sequence[Received]) -> None:
        pass

    def drain_ended(self, report: DrainReport) -> None:
        pass


UNOBSERVED: Observer = Unobserved()


_EVENTS = (
    "landed",
    "batch_begins",
    "begins",
    "worked",
    "decided",
    "ended",
    "extended",
    "called",
    "received",
    "drain_ended",
)


class Several(Unobserved):
    """Calls each of several observers, in their order. What one of them raises is logged as a defect, and goes no further.

    Five of the events happen to every message: those in which an observer does nothing (`Unobserved`'s own methods) are not
    passed on to it, and what nobody wants costs a call of nothing."""

    def __init__(self, defects: Defects, *observers: Observer) -> None:
        for name in _EVENTS:
            wanting = [
                getattr(one, name)
                for one in observers
                if getattr(type(one), name, None) is not getattr(Unobserved, name)
            ]
            if wanting:
                setattr(self, name, _guarded(defects, wanting))


def _guarded(defects: Defects, calls: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def each(*args: object, **options: object) -> None:
        for call in calls:
            try:
                call(*args, **options)
            except Exception as defect:
                defects.note("observer", defect)

    return each
