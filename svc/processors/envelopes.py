"""Envelopes: what SNS, EventBridge and S3 put around a payload, taken off in the order that the processor said. Pure.

What comes from outside is read here once, into types of our own; a body that has another form raises `NoSuchEnvelope`, which
names what is missing and never quotes the body.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_plus

Envelope = Literal["sns", "eventbridge", "s3"]

CONTEXT_NAMES = ("traceparent", "tracestate")
"""W3C Trace Context's names, of HTTP headers and of message attributes alike."""


class NoSuchEnvelope(ValueError):
    """The body has not the form of the envelope that was said. The text says what is missing."""


class NothingToProcess(Exception):
    """The message carries no payload: SNS's confirmation of a subscription, S3's test event. The text says what it is."""


@dataclass(frozen=True, slots=True)
class Peeled:
    """A body without its envelope."""

    body: str
    """The inner payload."""
    envelope: object
    """What the envelope said; stands in `Message.envelope`."""


Peel = Callable[[str], Peeled]
"""An envelope of one's own: body → `Peeled`. Raises `ValueError` when the body has another form."""


@dataclass(frozen=True, slots=True)
class SnsEnvelope:
    """An SNS notification (SNS developer guide, "Parsing message formats")."""

    topic_arn: str
    message_id: str
    """SNS's, which is not SQS's."""
    subject: str | None = None
    timestamp: str | None = None
    """As SNS writes it: ISO 8601, in UTC."""
    attributes: Mapping[str, str | bytes] = field(default_factory=dict)
    """The publisher's message attributes; numbers and lists as SNS sends them, as strings."""


@dataclass(frozen=True, slots=True)
class EventBridgeEnvelope:
    """An event (EventBridge user guide, "Event structure reference"); its `detail` is the payload."""

    id: str
    source: str
    detail_type: str
    time: str | None = None
    """As EventBridge writes it: ISO 8601, in UTC."""
    account: str | None = None
    region: str | None = None
    resources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class S3Record:
    """One of an S3 notification's records (S3 user guide, "Event message structure")."""

    event: str
    """E.g. `ObjectCreated:Put`."""
    bucket: str
    key: str
    """As in the bucket: what S3 sends is URL-encoded."""
    size: int | None = None
    """Bytes."""
    version_id: str | None = None
    time: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True)
class S3Envelope:
    """An S3 notification: one message, one delivery, however many records. The payload is the list of records as S3 wrote it."""

    records: tuple[S3Record, ...]


def peel_sns(body: str) -> Peeled:
    told = _object(body, "SNS")
    kind = told.get("Type")
    if kind in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        raise NothingToProcess(f"SNS's {kind} of {_shown(told.get('TopicArn'))}")
    if kind != "Notification":
        raise NoSuchEnvelope('no SNS envelope: "Type" is not "Notification" (is raw message delivery on?)')
    inner = _text(told, "Message", "SNS")
    attributes: dict[str, str | bytes] = {}
    for name, held in _mapping(told.get("MessageAttributes")).items():
        value, of = _mapping(held).get("Value"), _mapping(held).get("Type")
        if not isinstance(value, str):
            raise NoSuchEnvelope(f"no SNS envelope: the value of the attribute {_shown(name)} is no text")
        try:
            attributes[name] = base64.b64decode(value, validate=True) if of == "Binary" else value
        except binascii.Error:
            raise NoSuchEnvelope(f"no SNS envelope: the attribute {_shown(name)} is no base64") from None
    return Peeled(
        inner,
        SnsEnvelope(
            topic_arn=_text(told, "TopicArn", "SNS"),
            message_id=_text(told, "MessageId", "SNS"),
            subject=_optional(told, "Subject"),
            timestamp=_optional(told, "Timestamp"),
            attributes=attributes,
        ),
    )


def peel_eventbridge(body: str) -> Peeled:
    told = _object(body, "EventBridge")
    if "detail" not in told:
        raise NoSuchEnvelope('no EventBridge envelope: there is no "detail"')
    resources = told.get("resources")
    return Peeled(
        json.dumps(told["detail"], ensure_ascii=False, separators=(",", ":")),
        EventBridgeEnvelope(
            id=_text(told, "id", "EventBridge"),
            source=_text(told, "source", "EventBridge"),
            detail_type=_text(told, "detail-type", "EventBridge"),
            time=_optional(told, "time"),
            account=_optional(told, "account"),
            region=_optional(told, "region"),
            resources=tuple(one for one in resources if isinstance(one, str)) if isinstance(resources, list) else (),
        ),
    )


def peel_s3(body: str) -> Peeled:
    told = _object(body, "S3")
    if told.get("Event") == "s3:TestEvent":
        raise NothingToProcess(f"S3's test event of {_shown(told.get('Bucket'))}")
    records = told.get("Records")
    if not isinstance(records, list) or not records:
        raise NoSuchEnvelope('no S3 envelope: there are no "Records"')
    return Peeled(json.dumps(records, ensure_ascii=False), S3Envelope(tuple(_s3_record(one) for one in records)))


def _s3_record(record: object) -> S3Record:
    told, about = _mapping(record), _mapping(_mapping(record).get("s3"))
    thing = _mapping(about.get("object"))
    size = thing.get("size")
    return S3Record(
        event=_text(told, "eventName", "S3"),
        bucket=_text(_mapping(about.get("bucket")), "name", "S3"),
        key=unquote_plus(_text(thing, "key", "S3")),
        size=size if isinstance(size, int) and not isinstance(size, bool) else None,
        version_id=_optional(thing, "versionId"),
        time=_optional(told, "eventTime"),
        region=_optional(told, "awsRegion"),
    )


ENVELOPES: Mapping[str, Peel] = {"sns": peel_sns, "eventbridge": peel_eventbridge, "s3": peel_s3}
"""By the names that `@processor(envelope=…)` takes."""


def sender_context(body: str, peels: Sequence[str | Peel]) -> Mapping[str, str]:
    """The trace context (W3C's `traceparent` and `tracestate`) that travels in the outermost envelope that has one: in SNS's
    message attributes, in the detail of an event. Empty when there is none, or the body has another form."""
    for one in peels:
        try:
            peeled = (ENVELOPES[one] if isinstance(one, str) else one)(body)
        except Exception:  # a function of the user's may raise anything; who processes the message tells it
            return {}
        held: Mapping[str, object] = {}
        if isinstance(peeled.envelope, SnsEnvelope):
            held = peeled.envelope.attributes
        elif isinstance(peeled.envelope, EventBridgeEnvelope):
            held = _mapping(json.loads(peeled.body))
        if isinstance(held.get("traceparent"), str):
            return {name: value for name in CONTEXT_NAMES if isinstance(value := held.get(name), str)}
        body = peeled.body
    return {}


def _object(body: str, whose: str) -> Mapping[str, Any]:
    try:
        told = json.loads(body.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise NoSuchEnvelope(f"no {whose} envelope: the body is no JSON object")
    return told


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(held: Mapping[str, Any], name: str, whose: str) -> str:
    value = held.get(name)
    if not isinstance(value, str):
        raise NoSuchEnvelope(f'no {whose} envelope: there is no text "{name}"')
    return value


def _optional(held: Mapping[str, Any], name: str) -> str | None:
    value = held.get(name)
    return value if isinstance(value, str) else None


def _shown(value: object) -> str:
    """A name from outside, short and on one line."""
    text = str(value)
    return "".join(c if c.isprintable() else "?" for c in text[:120])
