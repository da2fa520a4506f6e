"""What a receive brings, into `Received`: part of the border that `answers.py` begins.

A message that cannot be read is left out alone. Pure; no text made here holds a receipt handle or what a message says.
"""

import base64
import binascii
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from svc.consumer.queue import Received
from svc.processors import received_message, system
from svc.sqs import digests, wire
from svc.sqs.answers import OF_ANY_ANSWER, listed, not_sqs, whole

log = logging.getLogger(__name__)

SYSTEM_ATTRIBUTES = ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId", *system.NAMES]
"""What a receive has to bring beside the body, to fill a `Received`."""

# Most messages have no attributes: they share these.
_NONE: Mapping[str, Any] = MappingProxyType({})
_NO_ATTRIBUTES: Mapping[str, str | bytes] = MappingProxyType({})


def received(answer: Mapping[str, Any]) -> list[Received]:
    """The deliveries of a ReceiveMessage answer. A message that cannot be read is logged and left out; the others are kept.

    It stays invisible until its lease ends, and is received again: SQS's redrive policy moves it to the dead-letter queue.
    Raises `QueueUnavailable` where nothing of the answer is a message.
    """
    if "Messages" not in answer and answer.keys() - OF_ANY_ANSWER:
        raise not_sqs("receiving", "it has no Messages")  # SQS answers {} when there are none
    entries = listed("receiving", answer, "Messages")
    deliveries: dict[str, Received] = {}
    odd = 0
    for entry in entries:
        try:
            delivery = _delivery(entry)
        except _Unreadable as error:
            odd += not isinstance(entry, Mapping)
            named = entry.get("MessageId") if isinstance(entry, Mapping) else None
            log.error(
                "message %s is left out, because it cannot be read: %s; it stays invisible until its lease ends",
                wire.quoted(named) if isinstance(named, str) else "without an id",
                error,
            )
        else:
            deliveries.setdefault(delivery.receipt, delivery)
    if odd and odd == len(entries):
        raise not_sqs("receiving", "its Messages are no messages")
    return list(deliveries.values())


class _Unreadable(Exception):
    """Why a message cannot be made of an entry."""


def _delivery(entry: object) -> Received:
    if type(entry) is not dict and not isinstance(entry, Mapping):  # the first is what JSON makes, and told at once
        raise _Unreadable("it is no object")
    # Without a handle or an id nothing can be done with it; without anything else, the processor can still decide.
    get = entry.get
    receipt, message_id, body = get("ReceiptHandle"), get("MessageId"), get("Body")
    if not type(receipt) is type(message_id) is type(body) is str:
        receipt, message_id, body = _text(entry, "ReceiptHandle"), _text(entry, "MessageId"), _text(entry, "Body") or ""
    if not receipt or not message_id:
        raise _Unreadable("it has no ReceiptHandle or no MessageId")
    if not message_id.isprintable() or len(message_id) > 1000:
        raise _Unreadable("its MessageId is no id")
    said = _mapping(entry, "Attributes")
    native = _mapping(entry, "MessageAttributes")
    values: Mapping[str, str | bytes] = _NO_ATTRIBUTES
    if native:
        read = {name: _attribute(name, value) for name, value in native.items()}
        native = MappingProxyType({name: value for name, value in read.items() if value is not None})
        values = MappingProxyType(
            {
                name: value["BinaryValue"] if "BinaryValue" in value else value["StringValue"]
                for name, value in native.items()
            }
        )
    if (damage := digests.damaged(entry, body, native)) is not None:
        raise _Unreadable(damage)
    message = received_message(
        message_id,
        body,
        values,
        whole(said.get("ApproximateReceiveCount")) or 1,
        None if (sent := whole(said.get("SentTimestamp"))) is None else system.moment(sent),
        _text(said, "MessageGroupId"),
        system.packed(said),
    )
    return Received(message, receipt, native, _text(said, "AWSTraceHeader"))


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise _Unreadable(f"its {name} is no text")
    return value


def _mapping(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = entry.get(name)
    if value is None:
        return _NONE
    if type(value) is not dict and not isinstance(value, Mapping):
        raise _Unreadable(f"its {name} are no object")
    return value


def _attribute(name: str, value: object) -> dict[str, Any] | None:
    """One message attribute in SQS's form, its value in bytes where it is binary; None where it has no value."""
    shown = wire.quoted(name)[:80]
    if not isinstance(value, Mapping):
        raise _Unreadable(f"its attribute {shown} is no object")
    text, binary = _text(value, "StringValue"), value.get("BinaryValue")
    kind = _text(value, "DataType") or ("String" if binary is None else "Binary")
    if isinstance(binary, str):
        try:
            return {"DataType": kind, "BinaryValue": base64.b64decode(binary, validate=True)}
        except (binascii.Error, ValueError):
            raise _Unreadable(f"the BinaryValue of its attribute {shown} is not in Base64") from None
    if binary is not None:
        raise _Unreadable(f"the BinaryValue of its attribute {shown} is no text")
    return None if text is None else {"DataType": kind, "StringValue": text}
