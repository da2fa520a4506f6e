"""What the simulated SQS says no with: the codes and the texts that AWS uses."""

from svc.consumer.queue import MessageRefused, Refusal
from svc.sqs import wire

UNNAMED = Refusal("", "the answer does not name it", gone=False, unconfirmed=True)
"""As `svc.sqs.answers.unconfirmed` has it."""


def unknown_handle() -> Refusal:
    return wire.refusal("ReceiptHandleIsInvalid", "The input receipt handle is not a valid receipt handle.")


def bad_handle(reason: str) -> Refusal:
    return wire.refusal("InvalidParameterValue", f"The value for parameter ReceiptHandle is invalid. Reason: {reason}")


def bad_timeout(timeout: int, reason: str) -> Refusal:
    text = f"Value {timeout} for parameter VisibilityTimeout is invalid. Reason: {reason}"
    return wire.refusal("InvalidParameterValue", text)


def too_long(limit: int) -> MessageRefused:
    """Of a message of more bytes than the queue takes."""
    return _refused("InvalidParameterValue", f"Message must be shorter than {limit} bytes.")


def check_fifo(
    fifo: bool, delay: float | None, group_id: str | None, deduplication_id: str | None, *, deduplicated: bool
) -> None:
    """Raise `MessageRefused` for what a FIFO queue needs and has not got, and for what only such a queue takes."""
    if fifo and group_id is None:
        raise _refused("MissingParameter", "The request must contain the parameter MessageGroupId.")
    if fifo and not deduplicated:
        raise _refused("InvalidParameterValue", "MessageDeduplicationId is needed without ContentBasedDeduplication.")
    if fifo and delay:
        raise _refused("InvalidParameterValue", "DelaySeconds is not valid for this queue type.")
    if not fifo and deduplication_id is not None:
        raise _refused("InvalidParameterValue", "MessageDeduplicationId is not valid for this queue type.")


def _refused(code: str, text: str) -> MessageRefused:
    return wire.message_error(code, text) or MessageRefused(text)
