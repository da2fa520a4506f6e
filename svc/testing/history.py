"""What happened at a simulated queue: one frozen record per event, in the order of happening, with Trio times in
seconds.

Data only. `call` is the number of the call that caused the event (`Call.number`, counted from 1 over all kinds); a
message that a test put there itself was caused by call 0.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    """Trio time."""
    call: int


@dataclass(frozen=True, slots=True)
class Sent(Event):
    """A message was stored."""

    message_id: str
    body: str
    group_id: str | None


@dataclass(frozen=True, slots=True)
class Deduplicated(Event):
    """A message was sent again within five minutes, accepted and not stored; `message_id` is the stored one's."""

    message_id: str


@dataclass(frozen=True, slots=True)
class ReceiveBegan(Event):
    """A client began a receive."""

    limit: int
    wait: int
    visibility: int


@dataclass(frozen=True, slots=True)
class Assigned(Event):
    """The server handed a message to a receive, before the answer travelled."""

    message_id: str
    receipt: str
    receive_count: int
    until: float
    """When the lease ends, unless it is changed."""


@dataclass(frozen=True, slots=True)
class AssignedAgain(Event):
    """The server handed it out once more, by the same receipt, to a receive that was asked for again by its attempt id."""

    message_id: str
    receipt: str
    until: float
    """When the lease ends, unless it is changed."""


@dataclass(frozen=True, slots=True)
class ReceiveLanded(Event):
    """The answer of a receive reached its client, with these messages (perhaps none)."""

    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerLost(Event):
    """The server acted, and the client never learnt it. `message_ids`: what a receive had been assigned, now
    stranded."""

    kind: str
    message_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deleted(Event):
    message_id: str
    receipt: str


@dataclass(frozen=True, slots=True)
class DeleteIgnored(Event):
    """A delete succeeded and deleted nothing: the message had been received again, moved or deleted before."""

    message_id: str
    receipt: str


@dataclass(frozen=True, slots=True)
class VisibilityChanged(Event):
    message_id: str
    receipt: str
    until: float
    """When the lease ends; `at` itself when the message was given back."""


@dataclass(frozen=True, slots=True)
class DeadLettered(Event):
    """A message was put into the dead-letter queue: by redrive (`reason` is None, and it left this queue), or by a
    client."""

    message_id: str
    copy_id: str
    """Its id there."""
    reason: str | None


@dataclass(frozen=True, slots=True)
class Refused(Event):
    """One entry of a batch call was refused."""

    receipt: str
    code: str


@dataclass(frozen=True, slots=True)
class CallFailed(Event):
    """A call ended with an error at its client."""

    kind: str
    error: str


@dataclass(frozen=True, slots=True)
class Suspended(Event):
    """Those who look at this queue have slept, and the queue has gone on."""

    seconds: float
