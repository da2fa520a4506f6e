"""SQS's language and ours: messages into requests, error codes into `QueueError`s and `Refusal`s. (`answers.py` reads answers.)

Pure functions over what travels on the wire; `queue.py` does the calls, and the simulated queue speaks the same language
through the same functions. Nothing here does I/O, reads a clock or imports an AWS library. No text made here may hold a
secret, a signed header or a receipt handle.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from svc.consumer.queue import (
    MessageRefused,
    MessageTooLong,
    QueueError,
    QueueMisconfigured,
    QueueUnavailable,
    Received,
    Refusal,
)

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0
"""How long an ordinary call may take, botocore's second attempt included. `/health` promises an answer in 5 s
(SPEC.md)."""

LANDING_SECONDS = 5.0
"""How long after its wait a receive may take to answer, before it is given up."""

MAX_MESSAGE_BYTES = 1_048_576
"""Body and message attributes together (SQS developer guide, "Amazon SQS message quotas"; 262,144 until August
2025)."""

MAX_ATTRIBUTES = 10
"""Message attributes per message (SQS developer guide, "Amazon SQS message metadata")."""

REJECT_REASON = "RejectReason"
"""The message attribute that tells in the dead-letter queue why a processor rejected the message."""

REJECTED_ID = "RejectedMessageId"
"""The message attribute that tells in the dead-letter queue of which message it is the copy: by the id that the log names."""

OF_A_COPY = frozenset({REJECT_REASON, REJECTED_ID})
"""What a message loses when it is moved back."""

MAX_REASON = 1000
"""Characters of a reason that are kept: enough for a person, and no traceback that crowds out the message."""

_ID = re.compile("[!-~]{1,128}")
"""An id that may be the value of an attribute, whatever it was that gave it."""

_NO_SUCH_QUEUE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})
_THROTTLED = frozenset(
    {"RequestThrottled", "Throttling", "Throttled", "RequestLimitExceeded", "TooManyRequests", "SlowDown"}
    | {"KmsThrottled"}
)
_DENIED = frozenset({"AccessDenied", "UnauthorizedOperation", "KmsAccessDenied"})
_BAD_CREDENTIALS = frozenset(
    {"InvalidClientTokenId", "UnrecognizedClient", "SignatureDoesNotMatch", "IncompleteSignature", "InvalidSignature"}
    | {"MissingAuthenticationToken", "InvalidAccessKeyId", "AuthFailure", "OptInRequired"}
)
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired"})
_CLOCK = frozenset({"RequestExpired", "RequestTimeTooSkewed"})
# "Signature expired: … is now earlier than …", "Signature not yet current: …": the key is right, the time is not.
_CLOCK_TEXT = re.compile(r"signature expired|not yet current|request time too skewed", re.I)
_KMS = frozenset({"KmsDisabled", "KmsInvalidState", "KmsInvalidKeyUsage", "KmsNotFound", "KmsOptInRequired"})
_BAD_MESSAGE = frozenset(
    {"InvalidParameterValue", "InvalidMessageContents", "MissingParameter", "UnsupportedOperation"}
    | {"InvalidAttributeName", "InvalidAttributeValue", "BatchRequestTooLong"}
)

# What SQS says of a handle that holds nothing any more. The codes alone do not tell: InvalidParameterValue is also the
# answer to a time-out out of range (aws-sdk-net#1927, aws-sdk-java#1628, elastic/beats#30675).
_GONE_CODES = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight"})
_GONE_TEXT = re.compile(r"does not exist|not available for visibility timeout change|receipt handle has expired", re.I)

# The characters of XML 1.0, the only ones SQS takes (API reference, SendMessage).
_REFUSED_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ATTRIBUTE_NAME = re.compile(r"(?!(?i:aws\.|amazon\.))[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class NoSuchQueue(QueueMisconfigured):
    """The queue that was asked for does not exist, or not for this account."""


def short_code(code: str) -> str:
    """An error code without what some of its spellings add: the older protocol a prefix, others (LocalStack too) a
    suffix."""
    return code.removeprefix("AWS.SimpleQueueService.").removeprefix("com.amazonaws.sqs#").removesuffix("Exception")


def refusal(code: str, text: str) -> Refusal:
    """One `Failed` entry of a batch answer. `gone` is told from the code and, where the code says too little, the
    text."""
    code = short_code(code)
    gone = code in _GONE_CODES or (code == "InvalidParameterValue" and bool(_GONE_TEXT.search(text)))
    return Refusal(code, quoted(text), gone)


def outgoing(attributes: Mapping[str, str | int | float] | None) -> dict[str, dict[str, Any]]:
    """Message attributes in SQS's form: text as String, numbers as Number. Raises `MessageRefused` for what SQS would
    refuse."""
    form: dict[str, dict[str, Any]] = {}
    for name, value in (attributes or {}).items():
        if isinstance(value, bool):
            form[name] = {"DataType": "String", "StringValue": "true" if value else "false"}
        elif isinstance(value, str):
            form[name] = {"DataType": "String", "StringValue": value}
        elif math.isfinite(value):
            form[name] = {"DataType": "Number", "StringValue": repr(value)}
        else:
            raise MessageRefused(f"attribute {name!r} is {value!r}; SQS takes finite numbers only")
    return form


def check(body: str, native: Mapping[str, Mapping[str, Any]], delay: float | None = None) -> None:
    """Raise `MessageRefused` or `MessageTooLong` for a message that no SQS queue takes.

    Checked here, not left to SQS, because emulators let it pass or break down on it (a lone surrogate is a 500 in
    moto).
    """
    if not body:
        raise MessageRefused("the message is empty; SQS takes messages of at least one character")
    _check_characters("the message", body)
    if delay is not None and not 0 <= delay <= 900:
        raise MessageRefused(f"the delay is {delay:g} s; SQS takes 0 to 900")
    if len(native) > MAX_ATTRIBUTES:
        raise MessageRefused(f"the message has {len(native)} attributes; SQS takes at most {MAX_ATTRIBUTES}")
    for name, value in native.items():
        if len(name) > 256 or not _ATTRIBUTE_NAME.fullmatch(name):
            raise MessageRefused(
                f"attribute name {name[:80]!r} is not allowed; SQS takes 1 to 256 letters, digits, _, - and single "
                "dots within, and no name that begins with AWS. or Amazon."
            )
        text = value.get("StringValue")
        if not (text or value.get("BinaryValue")):
            raise MessageRefused(f"attribute {name!r} is empty; SQS takes attributes of at least one character")
        if text:
            _check_characters(f"attribute {name!r}", text)
    if (bytes_ := size(body, native)) > MAX_MESSAGE_BYTES:
        raise MessageTooLong(
            f"the message has {bytes_} bytes with its attributes; SQS takes at most {MAX_MESSAGE_BYTES} (1 MiB)"
        )


def _check_characters(what: str, text: str) -> None:
    if found := _REFUSED_CHARACTER.search(text):
        raise MessageRefused(
            f"{what} holds the character U+{ord(found[0]):04X} at position {found.start()}; SQS takes only characters "
            "that XML 1.0 allows"
        )


def size(body: str, native: Mapping[str, Mapping[str, Any]]) -> int:
    """The bytes that count towards SQS's limit: the body, and each attribute's name, type and value."""
    return _bytes([body]) + sum(
        _bytes([name, value.get("DataType", ""), value.get("StringValue") or value.get("BinaryValue") or ""])
        for name, value in native.items()
    )


def _bytes(parts: Iterable[str | bytes]) -> int:
    return sum(len(part) if isinstance(part, bytes) else len(part.encode("utf-8", "surrogatepass")) for part in parts)


def dead_letter_attributes(delivery: Received, reason: str) -> dict[str, Any]:
    """The attributes of the copy for the dead-letter queue: the original ones with their data types, the reason, and the
    message's id.

    What would make the copy break a limit of SQS is left out, the id first: the message counts for more. The reason is logged
    then.
    """
    native = delivery.native if isinstance(delivery.native, Mapping) else {}
    clean = _REFUSED_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", reason)[:MAX_REASON] or "no reason given"
    with_reason = {**native, REJECT_REASON: {"DataType": "String", "StringValue": clean}}
    with_both = dict(with_reason)
    if _ID.fullmatch(delivery.message.id):
        with_both[REJECTED_ID] = {"DataType": "String", "StringValue": delivery.message.id}
    for told in (with_both, with_reason):
        if len(told) <= MAX_ATTRIBUTES and size(delivery.message.body, told) <= MAX_MESSAGE_BYTES:
            return told
    log.warning(
        "message %s goes to the dead-letter queue without its reason, which would break SQS's limit of %d attributes "
        "or %d bytes: %s", delivery.message.id, MAX_ATTRIBUTES, MAX_MESSAGE_BYTES, clean,
    )  # fmt: skip
    return dict(native)


def service_error(doing: str, code: str, text: str, status: int, *, what: str = "SQS_QUEUE_URL") -> QueueError:
    """The `QueueError` for an error answer: `code` and `text` as SQS sent them, `status` the HTTP status (0: unknown).

    `doing` names the call ("sending"); `what` names what holds the queue's address, for the sentence that says what to
    do.
    """
    code, text = short_code(code), quoted(text)
    if code in _CLOCK or (code in _BAD_CREDENTIALS and _CLOCK_TEXT.search(text)):
        return QueueMisconfigured(f"{doing}: AWS says the request is out of date ({code}); set this machine's clock")
    if code in _NO_SUCH_QUEUE:
        return NoSuchQueue(f"{doing}: there is no such queue; create it with `svc init`, or set {what}")
    if code in _THROTTLED or status == 429:
        return QueueUnavailable(f"{doing}: SQS throttled the call ({code}); the same call may succeed in a moment")
    if code == "OverLimit":
        return QueueUnavailable(
            f"{doing}: too many of the queue's messages are in flight (SQS allows 120,000); they have to be deleted or "
            "run out of their leases first"
        )
    if code in _DENIED:
        return QueueMisconfigured(
            f"{doing}: the credentials in use may not do this; grant the action in the IAM policy or the queue's "
            f"policy ({code}: {text})"
        )
    if code in _EXPIRED:
        return QueueMisconfigured(f"{doing}: the credentials have expired ({code}); renew them")
    if code in _BAD_CREDENTIALS:
        # SQS's own text is not quoted: for a wrong signature it holds the signed headers.
        return QueueMisconfigured(
            f"{doing}: AWS does not accept the credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and AWS_SESSION_TOKEN, or the role"
        )
    if code in _KMS:
        return QueueMisconfigured(f"{doing}: the queue's KMS key cannot be used ({code}: {text}); see to the key")
    if code == "InvalidAddress":
        return QueueMisconfigured(
            f"{doing}: AWS does not know this queue address ({code}); check {what} and AWS_REGION"
        )
    if code == "InvalidSecurity":
        return QueueMisconfigured(f"{doing}: the queue is reached over https only ({code}); change AWS_ENDPOINT")
    if status >= 500 or code in ("InternalError", "InternalFailure", "ServiceUnavailable"):
        return QueueUnavailable(
            f"{doing}: SQS broke down (HTTP {status or 500}, {code}); the same call may succeed later"
        )
    return QueueError(f"{doing}: SQS refused the call ({code}: {text})")


def refuses_credentials(code: str) -> bool:
    """Whether an error code says that the credentials are not, or no longer, accepted."""
    return short_code(code) in _BAD_CREDENTIALS | _EXPIRED


def message_error(code: str, text: str) -> MessageRefused | None:
    """Why SQS does not take a message that was to be sent, or None when the error is not the message's fault."""
    code, text = short_code(code), quoted(text)
    if code not in _BAD_MESSAGE:
        return None
    if "must be shorter than" in text or code == "BatchRequestTooLong":
        return MessageTooLong(f"the message is larger than the queue takes: {text}")
    return MessageRefused(f"the queue does not take the message: {text} ({code})")


def quoted(text: str) -> str:
    """Words of others on one line, at bearable length, without receipt handles (which are the key to a message) and without what
    a terminal would act upon."""
    text = re.sub(r"\s+", " ", text[:10_000]).strip()
    text = re.sub(r"[A-Za-z0-9+/=]{64,}", "…", text)[:300]
    return (
        text
        if text.isprintable()
        else "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    )
