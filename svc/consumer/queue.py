"""What the service asks of a queue: the `Queue` protocol, what it hands over, and how it fails.

`sqs/queue.py` is the real queue, `svc/testing/` holds the simulated one, and `tests/testing/test_queue_contract.py` runs one
suite against both.
Nothing here does anything: this file is the border that the worker is written against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Protocol

from svc.processors import Message

MAX_BATCH = 10
"""Messages per receive and entries per batch call (SQS developer guide, "Amazon SQS message quotas")."""

MAX_VISIBILITY = 43_200
"""Seconds; 12 hours, counted from the receive, extensions included (API reference, ChangeMessageVisibility)."""


@dataclass(slots=True)  # not frozen, which makes it four times as expensive: there is one for each message
class Received:
    """One delivery of a message: the message, and the receipt handle that settles this delivery and no other. Nobody changes
    it."""

    message: Message
    receipt: str = field(repr=False)
    native: object = field(default=None, repr=False, compare=False)
    """Whatever the queue's implementation wants to see again in `dead_letter`."""
    trace_header: str | None = field(default=None, repr=False)
    """X-Ray's header, which a copy of the message keeps."""

    @property
    def size(self) -> int:
        """Bytes of memory that its body and attributes take: up to four for a byte of SQS's limit (PEP 393)."""
        attributes = self.message.attributes
        return getsizeof(self.message.body) + (sum(map(getsizeof, attributes.values())) if attributes else 0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one entry of a batch call is not confirmed while the call itself succeeded."""

    code: str
    text: str
    gone: bool
    """The receipt handle no longer holds the message (its lease ran out, or it was deleted): trying again is pointless."""
    unconfirmed: bool = False
    """The answer does not tell: neither done nor refused. The queue may have acted all the same."""

    @property
    def why(self) -> str:
        """In words, for the log."""
        return ": ".join(part for part in (self.code, self.text) if part) or "no reason given"


class QueueError(Exception):
    """A call to the queue failed. The text says what happened and what to do about it."""


class QueueUnavailable(QueueError):
    """The queue could not be reached, broke down, or throttled us: the same call may succeed later."""


class NoAnswer(QueueUnavailable):
    """The call was sent, and there was no answer: it may have acted all the same."""


class QueueTimeout(NoAnswer):
    """The queue did not answer in time."""


class QueueMisconfigured(QueueError):
    """No such queue, no permission, no credentials: an operator has to act before a call can succeed."""


class MessageRefused(QueueError):
    """The queue does not take this message: the sender has to change it."""


class MessageTooLong(MessageRefused):
    """The message is larger than the queue takes."""


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """The queue to which the redrive policy moves messages."""

    url: str
    arn: str
    attributes: Mapping[str, str]
    """As SQS names them."""


def number_in(attributes: Mapping[str, str], name: str) -> int | None:
    """A number among a queue's attributes; None when it is not there, or none."""
    text = attributes.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class RedrivePolicy(Protocol):
    """What a queue's own attributes, as last read, say about its messages: how often one is received before the queue moves it
    to its dead-letter queue, and whether they have an order."""

    @property
    def max_receive_count(self) -> int | None:
        """`maxReceiveCount` as last read, or None when there is no policy or it was never read."""

    @property
    def fifo(self) -> bool | None:
        """Whether it is a FIFO queue; None when its attributes were never read: its name has to tell then."""


def is_fifo(policy: RedrivePolicy, by_name: bool) -> bool:
    """What the queue's attributes say, once they are known."""
    told = policy.fifo
    return by_name if told is None else told


def had_last_receive(policy: RedrivePolicy, message: Message) -> bool:
    """Whether the next attempt to receive it moves it to the dead-letter queue."""
    limit = policy.max_receive_count
    return limit is not None and message.receive_count >= limit


class Queue(RedrivePolicy, Protocol):
    """One SQS queue. Every method may raise `QueueError`; a cancelled call may have acted all the same."""

    @property
    def repeats_receives(self) -> bool:
        """Whether a receive can be asked for again by its `attempt` (FIFO queues of AWS)."""

    async def receive(
        self, *, limit: int, wait: int, visibility: int, attempt: str | None = None
    ) -> Sequence[Received]:
        """Up to `limit` (1-10) messages, waiting up to `wait` (0-20) seconds for the first, each leased for `visibility`
        (1-43200) seconds. Never cancel it: messages may have been assigned to the call already, and they would stay
        invisible until their visibility timeout ends.

        Where `repeats_receives`, `attempt` (1-128 characters, a new one for each receive) makes it one that may be cancelled, or
        remain unanswered: asked for again by the same one, within five minutes and while nobody has deleted its messages or
        changed their visibility, it brings the same messages by the same receipts, and leases them anew (API reference,
        ReceiveMessage, ReceiveRequestAttemptId)."""

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        """Delete 1-10 deliveries; returns those that are not confirmed, by receipt."""

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        """Let the leases of 1-10 deliveries end in so many seconds (0-43200; 0: visible now); returns those that are not
        confirmed."""

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        """Put a copy into the dead-letter queue with the reason as a message attribute; False when the queue has none.
        The delivery itself is left: delete it afterwards."""

    async def send(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: int | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        """Send one message; returns its id. `delay` in seconds, 0-900."""

    async def attributes(self) -> Mapping[str, str]:
        """Every attribute of the queue, as SQS names them. Also refreshes `max_receive_count`."""

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        """The dead-letter queue and its attributes, asked now; None when the queue has no redrive policy."""

    async def look_at_dead_letters(self, most: int, *, seconds: float) -> Sequence[Received] | None:
        """Up to `most` dead letters, received for so many seconds at most, and visible to others again when this returns or
        raises; each is charged one receive. None when the queue has no redrive policy."""
