"""What a processor gets and what it may raise: `Message`, `Retry`, `Reject`."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

Process = Callable[["Message"], Awaitable[None]]
"""What the worker calls for each message. What it raises is the message's fate; it returns nothing."""


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
