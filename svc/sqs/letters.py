"""What a dead letter says of itself, for people and programs: `svc dlq` and the page show the same fields.

A letter comes here from three sides: by the redrive policy (it says nothing), by this service's `Reject` (`RejectReason`), or by
an AWS service that could not deliver it (Lambda, SNS, EventBridge), which writes its error into attributes of its own.
Pure.
"""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from svc.consumer.queue import Received
from svc.sqs.wire import REJECT_REASON, REJECTED_ID

_ERRORS = (("ErrorCode", "ErrorMessage"), ("ERROR_CODE", "ERROR_MESSAGE"))
"""Attributes of dead letters: Lambda and SNS write the first pair, EventBridge the second (their developer guides)."""


def text_of(value: str | bytes) -> str:
    """An attribute's value as text: of a binary one its Base64, as AWS's own tools show it."""
    return value if isinstance(value, str) else base64.b64encode(value).decode("ascii")


def reason(letter: Received) -> str | None:
    """Why a processor rejected it."""
    value = letter.message.attributes.get(REJECT_REASON)
    return None if value is None else text_of(value)


def original_id(letter: Received) -> str | None:
    """The id of the message that it is a copy of, which is the one that the service's log names. None where it is no copy."""
    value = letter.message.attributes.get(REJECTED_ID)
    told = None if value is None else text_of(value)
    return None if told == letter.message.id else told


def error(letter: Received) -> str | None:
    """What the AWS service that gave it up says went wrong."""
    held = letter.message.attributes
    told = [text_of(held[name]) for pair in _ERRORS for name in pair if name in held]
    return ": ".join(told) or None


def age(letter: Received, now: datetime) -> float | None:
    """Seconds since it was sent to the dead-letter queue; since it was first sent at all, where the redrive policy moved it."""
    sent = letter.message.sent_at
    return None if sent is None else max(0.0, (now - sent).total_seconds())


def described(letter: Received, now: datetime) -> dict[str, Any]:
    """Everything, for JSON. Body and attributes are what SQS brought, character by character."""
    message = letter.message
    sent = message.sent_at
    seconds = age(letter, now)
    return {
        "id": message.id,
        "original_id": original_id(letter),
        "sent": None if sent is None else sent.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "age_seconds": None if seconds is None else round(seconds),
        "receives": message.receive_count,
        "group": message.group_id,
        "reason": reason(letter),
        "error": error(letter),
        "body": message.body,
        "attributes": {name: _attribute(letter, name, value) for name, value in message.attributes.items()},
    }


def _attribute(letter: Received, name: str, value: str | bytes) -> dict[str, str]:
    native = letter.native.get(name) if isinstance(letter.native, Mapping) else None
    kind = native.get("DataType") if isinstance(native, Mapping) else None
    of_value = {"value": value} if isinstance(value, str) else {"base64": text_of(value)}
    return {"type": kind or ("String" if isinstance(value, str) else "Binary"), **of_value}
