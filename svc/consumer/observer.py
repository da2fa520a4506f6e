"""Events of the work as it happens: the `Observer` protocol, which metrics and traces implement.

The files that decide (`worker.py` and its parts) know this protocol and no foreign library. What can be looked at later, such as
how many messages are in flight, is a snapshot and no event; here stands only what a later look cannot know: how long something
took, and how often it happened.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from svc.consumer.ledger import Entry, Listener
from svc.consumer.queue import Received
from svc.defects import Defects
from svc.maintenance.handler import DrainReport

Action = Literal["receive", "delete", "change_visibility", "dead_letter", "send", "attributes"]
"""What was asked of the queue: the methods of `queue.Queue`."""

Result = Literal["ok", "timeout", "unavailable", "misconfigured", "refused", "error", "cancelled"]
"""How it ended: by the `QueueError` that it raised. `cancelled`: given up by us; it may have acted."""


class Observer(Listener, Protocol):
    """Everything is called in the middle of a decision: it must not raise, wait, or take more than microseconds. Of an entry it
    may read everything and change nothing."""

    def landed(self, entry: Entry) -> None:
        """A delivery has come in and stands in the ledger."""

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


class Unobserved:
    """Nobody looks."""

    def landed(self, entry: Entry) -> None:
        pass

    def begins(self, entry: Entry) -> None:
        pass

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        pass

    def decided(self, entry: Entry) -> None:
        pass

    def ended(self, entry: Entry) -> None:
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


class Several:
    """Calls each of several observers, in their order. What one of them raises is logged as a defect, and goes no further."""

    def __init__(self, defects: Defects, *observers: Observer) -> None:
        self._defects = defects
        self._observers = observers

    def _each(self, name: str, *args: object, **options: object) -> None:
        for one in self._observers:
            try:
                getattr(one, name)(*args, **options)
            except Exception as defect:
                self._defects.note("observer", defect)

    def landed(self, entry: Entry) -> None:
        self._each("landed", entry)

    def begins(self, entry: Entry) -> None:
        self._each("begins", entry)

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        self._each("worked", entry, error)

    def decided(self, entry: Entry) -> None:
        self._each("decided", entry)

    def ended(self, entry: Entry) -> None:
        self._each("ended", entry)

    def extended(self, *, confirmed: int, refused: int, unanswered: int) -> None:
        self._each("extended", confirmed=confirmed, refused=refused, unanswered=unanswered)

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        self._each("called", action, result, seconds, entries)

    def received(self, deliveries: Sequence[Received]) -> None:
        self._each("received", deliveries)

    def drain_ended(self, report: DrainReport) -> None:
        self._each("drain_ended", report)
