"""What SQS itself says of a message: the system attributes, typed, for `message.system`.

A message keeps them as one short text, which is read when somebody asks: tens of thousands of messages may be in flight, and most
processors never ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

NAMES = (
    "SenderId",
    "ApproximateFirstReceiveTimestamp",
    "SequenceNumber",
    "MessageDeduplicationId",
    "DeadLetterQueueSourceArn",
    "AWSTraceHeader",
)
"""Those that `System` holds, as SQS names them, in the order in which `packed` writes them down."""

_APART = "\0"


@dataclass(frozen=True, slots=True)
class System:
    """The system attributes of a message that are not fields of `Message`; None where SQS did not say."""

    sender_id: str | None = None
    """Who has sent it: the user id of an IAM user, or role id and session name."""
    first_received_at: datetime | None = None
    """When it was received for the first time, by whomever, in UTC (SQS: approximate)."""
    sequence_number: int | None = None
    """FIFO queues: grows with each message that is sent within a group."""
    deduplication_id: str | None = None
    """FIFO queues: the sender's, or the digest of the body."""
    dead_letter_source: str | None = None
    """The ARN of the queue from which a redrive policy moved it to this one."""
    trace_header: str | None = None
    """X-Ray's header (`AWSTraceHeader`)."""


def packed(attributes: Mapping[str, object]) -> str:
    """What `unpacked` reads, of the attributes as SQS names them. What is neither text nor a number is left out."""
    values = [*map(attributes.get, NAMES)]
    if not any(values):
        return ""
    return _APART.join([value if type(value) is str else str(value) if type(value) is int else "" for value in values])


def unpacked(text: str) -> System:
    """Reads what `packed` wrote."""
    fields = text.split(_APART)
    if len(fields) != len(NAMES):  # there was nothing, or a text that holds anything
        return System()
    sender, first, number, deduplication, source, trace = fields
    return System(
        sender_id=sender or None,
        first_received_at=moment(int(first)) if _is_number(first) else None,
        sequence_number=int(number) if _is_number(number) else None,
        deduplication_id=deduplication or None,
        dead_letter_source=source or None,
        trace_header=trace or None,
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 40  # SQS: 20 digits


def moment(milliseconds: int) -> datetime | None:
    """Milliseconds since 1970, which is how SQS writes times, in UTC; None where no date is so far away."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
