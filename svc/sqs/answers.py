"""What SQS answers, into our own types, or a `QueueError`: the border for everything that comes from SQS.

Two steps, for every transport. `parsed()` makes a JSON object of a status, headers and bytes, or raises `ErrorAnswer` (SQS
refuses the call) or `OddAnswer` (this is not SQS). The functions below it make our types of a JSON object, one for each call;
`messages.py` does so for the messages of a receive.
Nothing that has not been looked at passes, and no other exception comes out of here, whatever goes in.

Pure. No text made here holds a receipt handle or a message.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json as _quickly  # in half of the time that the standard library's takes

from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable, Refusal
from svc.sqs import wire

log = logging.getLogger(__name__)

OF_ANY_ANSWER = frozenset({"ResponseMetadata", "RequestId", "requestId"})
"""What emulators may add."""

_CODE = re.compile(r"[A-Za-z0-9_.:/#-]{1,200}")
_XML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(?:[A-Za-z]*Response|Error)[\s>/]")
_ARN = re.compile(r"arn:[^:\s]+:sqs:[^:\s]*:[^:\s]*:[^:\s]+")


class ErrorAnswer(Exception):
    """SQS refuses the call. `code` is empty where the answer names none, which is a page of something in between."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(f"HTTP {status} {code}")
        self.status, self.code, self.text = status, code, text


class OddAnswer(Exception):
    """What came is no answer of SQS's. The text says what it is instead."""


class OldProtocol(OddAnswer):
    """It is one of SQS's, in the query protocol (XML) that came before the JSON protocol."""


def parsed(status: int, headers: Mapping[str, str], body: bytes, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The JSON object of a good answer. `headers` with lower-case names; `may_be_empty`: the call has no output, and SQS may
    answer it with nothing at all. Raises `ErrorAnswer` or `OddAnswer`, and nothing else."""
    found = _object(body)
    if status >= 300:
        if found is None and status < 500 and _XML.match(body):
            raise OldProtocol("XML")
        raise ErrorAnswer(status, *_error(found or {}, headers))
    if found is not None:
        return found
    if not body.strip() and may_be_empty:
        return {}
    raise OldProtocol("XML") if _XML.match(body) else OddAnswer(_what(body))


def answer(
    doing: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    what: str = "SQS_QUEUE_URL",
    message: bool = False,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """As `parsed`, and raises the `QueueError` to tell. For `doing`, `what` and `message` see `failure`."""
    try:
        return parsed(status, headers, body, may_be_empty=may_be_empty)
    except (ErrorAnswer, OddAnswer) as error:
        raise failure(doing, error, what=what, message=message) from None


def failure(
    doing: str, error: ErrorAnswer | OddAnswer, *, what: str = "SQS_QUEUE_URL", message: bool = False
) -> QueueError:
    """`doing` names the call ("sending"), `what` what holds the queue's address; `message`: the call sends a message, whose fault
    the error may be."""
    match error:
        case OldProtocol():
            return QueueMisconfigured(
                f"{doing}: the server speaks SQS's old query protocol (XML) and not its JSON protocol; use a newer version of "
                "the emulator, or check AWS_ENDPOINT"
            )
        case OddAnswer():
            return not_sqs(doing, str(error))
        case ErrorAnswer(code="") if error.status != 429:
            kind = f"HTTP {error.status} without an error code of SQS's"
            if error.status >= 500:
                return QueueUnavailable(
                    f"{doing}: {kind}, from SQS or a proxy before it; the same call may succeed later"
                )
            return not_sqs(doing, kind)
    refused = wire.message_error(error.code, error.text) if message else None
    return refused or wire.service_error(doing, error.code, error.text, error.status, what=what)


def not_sqs(doing: str, instead: str) -> QueueUnavailable:
    return QueueUnavailable(
        f"{doing}: the answer is not SQS's ({instead}); check that AWS_ENDPOINT is an SQS endpoint, and any proxy"
    )


MAX_CONTAINERS = 20_000
"""Objects and lists in one answer: ten messages with every attribute that there is hold a few hundred. Each costs Python
microseconds, and the whole loop stands still meanwhile: a megabyte of `[],` in gzip is a few bytes on the wire."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def _object(body: bytes) -> dict[str, Any] | None:
    # Within texts there may be as many as they like; and what is shorter cannot hold so many.
    if len(body) > MAX_CONTAINERS and body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        bare = _TEXT.sub(b"", body)
        if bare.count(b"{") + bare.count(b"[") > MAX_CONTAINERS:
            return None
    try:
        found = _quickly(body, cache_strings="keys")
    except ValueError:  # it may hold halves of characters, which JSON allows and this parser does not
        try:
            found = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _error(found: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, str]:
    """The code and the text of an error answer; empty where there are none. SQS names the code of its older protocol, which says
    more, in a header."""
    codes = (headers.get("x-amzn-query-error", "").partition(";")[0], found.get("__type"), found.get("Code"))
    code = next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), "")
    code = code.partition(":")[0].rpartition("#")[2]  # com.amazonaws.sqs#QueueDoesNotExist:http://…
    texts = (found.get("message"), found.get("Message"))
    return code, next((text for text in texts if isinstance(text, str)), "")


def _what(body: bytes) -> str:
    """In words, for somebody who looks for what stands there."""
    start = body[:200].lstrip()
    if not start:
        return "it is empty"
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed, which was not asked for"
    if start.startswith(b"<"):
        return "it is a page"
    try:
        body.decode("utf-8")
    except ValueError:
        return "it is not UTF-8"
    return "it is no JSON object"


# One for each call


def unconfirmed(doing: str, answer: Mapping[str, Any], receipts: Sequence[str]) -> dict[str, Refusal]:
    """The entries of a batch answer that are not confirmed, by receipt; entry `Id`s are positions in `receipts`.

    Confirmed is what `Successful` names and `Failed` does not. An entry that neither names, or both, may have been acted on.
    Raises `QueueUnavailable` where the answer names no entry at all.
    """
    done = {position for position, _ in _named(doing, answer, "Successful", len(receipts))}
    refused = dict(reversed(_named(doing, answer, "Failed", len(receipts))))
    if receipts and not done and not refused:
        raise not_sqs(doing, "it names none of the entries")
    found = {}
    for position, receipt in enumerate(receipts):
        entry = refused.get(position)
        if entry is None:
            if position not in done:
                found[receipt] = Refusal("", "the answer does not name it", gone=False, unconfirmed=True)
        elif position in done:
            found[receipt] = Refusal("", "the answer names it as done and as refused", gone=False, unconfirmed=True)
        else:
            code, text = (
                value if isinstance(value, str) else "" for value in (entry.get("Code"), entry.get("Message"))
            )
            found[receipt] = wire.refusal(code, text.replace(receipt, "…"))
    return found


def _named(doing: str, answer: Mapping[str, Any], name: str, count: int) -> list[tuple[int, Mapping[str, Any]]]:
    """The entries of a list whose `Id` is one that was sent."""
    found = []
    for entry in listed(doing, answer, name):
        # The first is what JSON makes, and told at once.
        position = whole(entry.get("Id")) if type(entry) is dict or isinstance(entry, Mapping) else None
        if position is not None and position < count:
            found.append((position, entry))
    return found


def listed(doing: str, answer: Mapping[str, Any], name: str) -> list[Any]:
    entries = answer.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise not_sqs(doing, f"its {name} is no list")
    return entries


def whole(value: object) -> int | None:
    """SQS sends numbers as text; some emulators send them as numbers."""
    if isinstance(value, str):
        return int(value) if len(value) < 19 and value.isascii() and value.isdigit() else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value < 10**18 else None


def attributes(doing: str, answer: Mapping[str, Any]) -> dict[str, str]:
    """Of a GetQueueAttributes answer. Whoever asks for them asks for `QueueArn` too, which every queue has."""
    found = answer.get("Attributes")
    if not isinstance(found, Mapping) or not found:
        raise not_sqs(doing, "it has no Attributes")
    texts = {}
    for name, value in found.items():
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise not_sqs(doing, "its Attributes are not all text")
        texts[_sendable(name)] = _sendable(value)
    return texts


def _sendable(text: str) -> str:
    """JSON may hold halves of characters, which no answer of ours can carry on."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def is_fifo(attributes: Mapping[str, str]) -> bool:
    """Of the attributes of a queue: those of a standard queue do not name it, and the ARN tells where not all were asked for."""
    return attributes.get("FifoQueue") == "true" or attributes.get("QueueArn", "").endswith(".fifo")


def redrive_policy(attributes: Mapping[str, str]) -> tuple[str, int] | None:
    """The ARN of the dead-letter queue and `maxReceiveCount`, from the attributes of a queue; None when it has no policy."""
    text = attributes.get("RedrivePolicy")
    if not text:
        return None
    policy = _object(text.encode("utf-8", "replace"))
    if policy is not None:
        arn, most = policy.get("deadLetterTargetArn"), whole(policy.get("maxReceiveCount"))
        if isinstance(arn, str) and _ARN.fullmatch(arn) and arn.isprintable() and most:
            return arn, most
    log.warning("the queue's RedrivePolicy cannot be read; taken as none: %.200r", text)
    return None


def queue_url(doing: str, answer: Mapping[str, Any]) -> str:
    """Of a GetQueueUrl or CreateQueue answer."""
    url = _part(doing, answer, "QueueUrl")
    if not re.fullmatch(r"https?://[^\s/@?#]+/[^\s@?#]+", url):
        raise not_sqs(doing, "its QueueUrl is no URL")
    return url


def message_id(doing: str, answer: Mapping[str, Any]) -> str:
    """Of a SendMessage answer."""
    return _part(doing, answer, "MessageId")


def _part(doing: str, answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise not_sqs(doing, f"it has no {name}")
    return value
