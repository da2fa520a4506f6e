"""What a simulated queue keeps of each message, and what AWS reserves the right to do with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from svc.processors import system

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""What Trio time 0 is for messages: in `sent_at`, in `lease_until`."""

SENDER = "AIDASIMULATEDSENDER00"
"""Who sends every message."""

IN_FLIGHT_LIMIT = 120_000
"""Messages in flight per queue, standard and FIFO (API reference, ChangeMessageVisibility; FIFO: 20,000 until 2024)."""

DEDUPLICATION_SECONDS = 300.0
"""How long a FIFO queue remembers a deduplication id (API reference, SendMessage)."""


@dataclass(frozen=True, slots=True)
class Chances:
    """Probabilities of what AWS reserves the right to do with the messages of a standard queue."""

    duplicate: float = 0.0
    """A delivered message can be received once more while it is in flight ("at-least-once delivery")."""
    resurrect: float = 0.0
    """A deleted message comes back (API reference, DeleteMessage)."""
    disorder: float = 0.0
    """A receive takes messages in random order ("best-effort ordering")."""
    miss: float = 0.0
    """A short poll (`wait=0`) overlooks a message ("a weighted random set of machines is sampled")."""


@dataclass(slots=True, eq=False)
class Stored:
    """A message at the server."""

    id: str
    body: str
    native: Mapping[str, Any]
    group_id: str | None
    sent_at: datetime
    sequence: int
    deduplication_id: str | None = None
    first_received_at: datetime | None = None
    moved_from: str | None = None
    """The ARN of the queue whose redrive policy has moved it here."""
    hidden_until: float = -math.inf
    """In flight or delayed until then."""
    receives: int = 0
    receipt: str | None = None
    """Of the latest delivery; None before the first and when moved."""
    received_at: float = -math.inf
    lost_answer: bool = False
    """The answer that held the latest delivery never reached its client."""

    def system(self) -> str:
        """Its system attributes, packed."""
        said = {"SenderId": SENDER, "DeadLetterQueueSourceArn": self.moved_from or ""}
        if self.first_received_at is not None:
            said["ApproximateFirstReceiveTimestamp"] = str(round(self.first_received_at.timestamp() * 1000))
        if self.deduplication_id is not None:
            said |= {"MessageDeduplicationId": self.deduplication_id, "SequenceNumber": f"{self.sequence:020}"}
        return system.packed(said)


def moment(at: float) -> datetime:
    """A Trio time, as messages tell it."""
    return EPOCH + timedelta(seconds=at)


def in_order(messages: Mapping[str, Stored]) -> list[Stored]:
    return sorted(messages.values(), key=lambda stored: stored.sequence)


def values(native: Mapping[str, Any]) -> dict[str, str | bytes]:
    return {name: value.get("BinaryValue") or value["StringValue"] for name, value in native.items()}
