"""What `POST /messages/send` takes: reads the body, checks it against SQS's rules, and says what is wrong with it. And a `limit`.

Pure: bytes in, an `Outgoing` or an `Unacceptable` out.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MESSAGE_LIMIT = 1_048_576
"""Bytes of body and attributes together: SQS's limit since August 2025 (SQS developer guide, "Message quotas"). A queue's own
MaximumMessageSize may be lower; SQS answers then."""

BODY_LIMIT = 6 * MESSAGE_LIMIT + 65_536
"""Bytes of a request: JSON may write each byte of a message as six (`\\u00e9`)."""

ATTRIBUTES_LIMIT = 10
"""Message attributes (SQS developer guide, "Message quotas")."""

# "A message can include only XML, JSON, and unformatted text. The following Unicode characters are allowed: #x9 | #xA | #xD |
# #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF" (API reference, SendMessage)
_REFUSED = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"(?!(?i:aws|amazon)\.)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)")
_ID = re.compile(r"[!-~]{1,128}")


class Unacceptable(Exception):
    """The request cannot be taken; the text says what to change."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to send."""

    message: str
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    delay_seconds: int | None = None
    group_id: str | None = None
    deduplication_id: str | None = None


def read(body: bytes) -> Outgoing:
    """The message that the body describes. Raises `Unacceptable`."""
    document = json_object(body, such_as='{"message": "text"}')
    unknown = sorted(set(document) - set(Outgoing.__slots__))
    if unknown:
        raise Unacceptable(f"unknown field {unknown[0][:100]!r}; known are {', '.join(Outgoing.__slots__)}")
    message = document.get("message")
    if not isinstance(message, str) or not message:
        raise Unacceptable('"message" must be a text of at least one character')
    _check_characters('"message"', message)
    outgoing = Outgoing(
        message,
        _attributes(document.get("attributes")),
        _delay(document.get("delay_seconds")),
        _id("group_id", document.get("group_id")),
        _id("deduplication_id", document.get("deduplication_id")),
    )
    size = len(message.encode()) + sum(len(n.encode()) + len(str(v).encode()) for n, v in outgoing.attributes.items())
    if size > MESSAGE_LIMIT:
        raise Unacceptable(f"the message has {size} bytes, attributes included; SQS takes {MESSAGE_LIMIT}", 413)
    return outgoing


def json_object(body: bytes, *, such_as: str) -> dict[str, Any]:
    """The JSON object that the body is. Raises `Unacceptable`."""
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Unacceptable("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Unacceptable(f"the body is not JSON: {what}") from None
    if not isinstance(document, dict):
        raise Unacceptable(f"the body must be a JSON object such as {such_as}")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _check_characters(where: str, text: str) -> None:
    if refused := _REFUSED.search(text):
        raise Unacceptable(f"{where} holds U+{ord(refused[0]):04X} at position {refused.start()}, which SQS refuses")


def _attributes(held: object) -> dict[str, str | int | float]:
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise Unacceptable('"attributes" must be an object of names and texts or numbers')
    if len(held) > ATTRIBUTES_LIMIT:
        raise Unacceptable(f'"attributes" has {len(held)} entries; SQS takes {ATTRIBUTES_LIMIT}')
    for name, value in held.items():
        if not _NAME.fullmatch(name):
            raise Unacceptable(
                f"the attribute name {name[:300]!r} is not of 1 to 256 letters, digits, _ - and single inner dots, "
                "or begins with AWS. or Amazon."
            )
        if isinstance(value, str) and value:
            _check_characters(f"the attribute {name!r}", value)
        elif isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
            raise Unacceptable(f"the attribute {name!r} must be a text of at least one character or a number")
        elif abs(value) > 1e126 or 0 < abs(value) < 1e-128 or len(str(abs(value))) > 38:
            # "up to 38 digits of precision … between 10^-128 and 10^+126" (developer guide, "message metadata")
            raise Unacceptable(f"the attribute {name!r} is a number beyond what SQS takes: 38 digits, 1e-128 to 1e126")
    return held


def _delay(held: object) -> int | None:
    if held is not None and (isinstance(held, bool) or not isinstance(held, int) or not 0 <= held <= 900):
        raise Unacceptable('"delay_seconds" must be a whole number from 0 to 900')
    return held


def _id(name: str, held: object) -> str | None:
    if held is not None and not (isinstance(held, str) and _ID.fullmatch(held)):
        raise Unacceptable(f'"{name}" must be a text of 1 to 128 letters, digits and punctuation')
    return held


LETTERS, MOST_LETTERS = 20, 50
"""Dead letters that are shown: without `limit`, and with the highest."""


def letters_limit(asked: Sequence[str]) -> int:
    """Of `GET /dead-letters?limit=…`. Raises `Unacceptable`."""
    if not asked:
        return LETTERS
    text = asked[0] if len(asked) == 1 else ""
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MOST_LETTERS):
        raise Unacceptable(f"limit has to be a whole number from 1 to {MOST_LETTERS}, once")
    return int(text)
