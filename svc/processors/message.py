"""What a processor gets and what it may raise: `Message`, `Retry`, `Reject`."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Protocol

from svc.processors.shutdown import ShuttingDown
from svc.processors.system import System, unpacked

Process = Callable[["Message"], Awaitable[None]]
"""What the worker calls for each message. What it raises is the message's fate; it returns nothing."""


class Holder(Protocol):
    """Who has the messages in hand: the worker, for all of them. It may be asked from any thread."""

    @property
    def shutting_down(self) -> ShuttingDown: ...

    def now(self) -> datetime: ...

    def lease_left(self, message: "Message") -> float | None:
        """Seconds; None when the message is in hand no more."""

    def is_last_attempt(self, message: "Message") -> bool | None:
        """None: not known."""


Now = Callable[[], datetime]
"""A wall clock."""


def wall_clock() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as a processor sees it. It cannot be changed."""

    id: str
    """SQS's message id: the same for every delivery of the message."""
    body: str
    attributes: Mapping[str, str | bytes] = field(default_factory=lambda: MappingProxyType({}))
    """The sender's message attributes by name; numbers come as SQS sends them, as strings."""
    receive_count: int = 1
    """How often the message has been received, this time included (SQS: approximate)."""
    sent_at: datetime | None = None
    """When it was sent, in UTC; None if the queue did not say."""
    group_id: str | None = None
    """The message group (FIFO queues, and fair queues)."""
    envelopes: tuple[object, ...] = ()
    """What the envelopes said that were taken off, the outer one first (`@processor(envelope=…)`)."""
    raw_body: str | None = None
    """The body as it came, when an envelope was taken off it."""
    _packed_system: str = field(default="", repr=False, compare=False)
    """What `system` reads."""
    _holder: Holder | None = field(default=None, repr=False, compare=False)

    @property
    def system(self) -> System:
        """What SQS itself says of it beside `receive_count`, `sent_at` and `group_id`: sender, first receive, sequence number,
        deduplication id, the queue whose dead letter it is, X-Ray's header."""
        return unpacked(self._packed_system)

    @property
    def is_last_attempt(self) -> bool | None:
        """Whether this is the last receive that the queue's redrive policy grants: if it is not processed now, it goes to the
        dead-letter queue. None as long as the policy is not known (`svc` may not read the queue's attributes, or has not yet),
        and for a message that no service holds."""
        return None if self._holder is None else self._holder.is_last_attempt(self)

    @property
    def lease_until(self) -> datetime | None:
        """Until when SQS keeps it from others, as far as that is confirmed, in UTC. It moves: the service extends it in time,
        again and again, for as long as the processor works. None when the service holds the message no more: its lease was lost,
        or its outcome is confirmed."""
        left = None if self._holder is None else self._holder.lease_left(self)
        return None if left is None or self._holder is None else self._holder.now() + timedelta(seconds=left)

    @property
    def shutting_down(self) -> ShuttingDown:
        """Set when a drain begins, for a maintenance or the stop of the service: a long processor can stop at a good point
        before the drain's deadline cancels it. `message.shutting_down.is_set()` anywhere, `await message.shutting_down.wait()` on
        Trio and asyncio, `message.shutting_down.wait(timeout=seconds)` in a plain function. Of a message that no service holds it
        is never set."""
        return ShuttingDown() if self._holder is None else self._holder.shutting_down

    @property
    def envelope(self) -> Any:
        """What the innermost envelope said: an `SnsEnvelope`, `EventBridgeEnvelope`, `S3Envelope`, or what a function of one's
        own returned; None without one."""
        return self.envelopes[-1] if self.envelopes else None

    @property
    def raw(self) -> str:
        """The body as it came from the queue, envelopes included."""
        return self.body if self.raw_body is None else self.raw_body

    def json(self) -> Any:
        """The body, read as JSON. Raises `json.JSONDecodeError` (a `ValueError`) when it is none."""
        return json.loads(self.body)


_Draft = make_dataclass("_Draft", [known.name for known in fields(Message)], slots=True)


def received_message(
    id: str,
    body: str,
    attributes: Mapping[str, str | bytes],
    receive_count: int,
    sent_at: datetime | None,
    group_id: str | None,
    packed_system: str,
) -> Message:
    """A message as the queue hands it out. To make one that cannot be changed, field by field, costs four times as much."""
    draft: Any = _Draft(id, body, attributes, receive_count, sent_at, group_id, (), None, packed_system, None)
    draft.__class__ = Message  # which has the same slots
    made: Message = draft
    return made


def hold(message: Message, holder: Holder) -> None:
    """From now on the message can be asked what only its holder knows. Before any processor has seen it."""
    object.__setattr__(message, "_holder", holder)  # no new object: there may be tens of thousands


class Retry(Exception):
    """Raised by a processor: give the message back to the queue and make it visible again in `after` seconds (0-43200)."""

    def __init__(self, reason: str = "", *, after: float = 0) -> None:
        if not 0 <= after <= 43_200:
            raise ValueError(f"Retry(after={after!r}): SQS takes 0 to 43200 seconds")
        super().__init__(reason or f"retry in {after:g} s")
        self.after = after


class Reject(Exception):
    """Raised by a processor: this message can never be processed. It goes to the dead-letter queue at once, with the reason as
    a message attribute; where the queue has none it fails and comes back (`REJECT_WITHOUT_DLQ=delete`: is deleted), with an
    error in the log."""

    def __init__(self, reason: str = "rejected by the processor") -> None:
        super().__init__(reason)
        self.reason = reason
