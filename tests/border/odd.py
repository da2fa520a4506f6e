"""Answers that are not what SQS sends, as data: status, headers, bytes."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import cycle
from typing import Any

from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable


@dataclass(frozen=True)
class Raw:
    """An answer as it travels. Names of headers in lower case."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/x-amz-json-1.0"})

    @property
    def wire(self) -> bytes:
        known = self.status in set(HTTPStatus)
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase if known else 'Odd'}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        # A 204 has no body, and no length.
        head += [] if self.status == 204 else [f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*head, "", ""]).encode("latin-1") + (b"" if self.status == 204 else self.body)


def said(value: object, status: int = 200) -> Raw:
    return Raw(status, json.dumps(value).encode())


def page(status: int, text: str = "<html><body>Zugriff verweigert: ungültig</body></html>") -> Raw:
    return Raw(status, text.encode("latin-1"), {"content-type": "text/html; charset=iso-8859-1"})


OLD_PROTOCOL = (
    b'<?xml version="1.0"?><ErrorResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"><Error><Type>Sender</Type>'
    b"<Code>MissingAction</Code><Message>The request must contain the parameter Action.</Message></Error></ErrorResponse>"
)

ODD: dict[str, tuple[Raw, type[QueueError]]] = {
    "502 and JSON that is a text": (said("bad gateway", 502), QueueUnavailable),
    "503 and a list": (said([], 503), QueueUnavailable),
    "400 and null": (said(None, 400), QueueUnavailable),
    "400 and a number for a type": (said({"__type": 7}, 400), QueueUnavailable),
    "400 and a list for a text": (said({"__type": "com.amazonaws.sqs#Odd", "message": [1]}, 400), QueueError),
    "400 and a type of blanks": (said({"__type": " \n "}, 400), QueueUnavailable),
    "400 and nothing": (Raw(400, b""), QueueUnavailable),
    "302 and nothing": (Raw(302, b""), QueueUnavailable),
    "300 and an object": (said({"x": 1}, 300), QueueUnavailable),
    "403 and a page in Latin-1": (page(403), QueueUnavailable),
    "503 and a page in Latin-1": (page(503), QueueUnavailable),
    "407 and a page": (page(407), QueueUnavailable),
    "429 and a page": (page(429), QueueUnavailable),
    "418 and an object": (said({"error": "teapot"}, 418), QueueUnavailable),
    "200 and null": (said(None), QueueUnavailable),
    "200 and a list": (said([]), QueueUnavailable),
    "200 and a number": (said(17), QueueUnavailable),
    "200 and a text": (said("ok"), QueueUnavailable),
    "200 and NaN": (Raw(200, b"NaN"), QueueUnavailable),
    "200 in gzip": (Raw(200, gzip.compress(b'{"Messages": []}')), QueueUnavailable),
    "200 and invalid UTF-8": (Raw(200, b'{"Messages": "\xff\xfe"}'), QueueUnavailable),
    "200 in UTF-16": (Raw(200, '{"QueueUrl": "x"}'.encode("utf-16")), QueueUnavailable),
    "200 and a BOM": (Raw(200, b"\xef\xbb\xbf{}"), QueueUnavailable),
    "200, nested": (Raw(200, b'{"Messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"), QueueUnavailable),
    "200, nested and cut off": (Raw(200, b"[" * 20_000), QueueUnavailable),
    "200 and an endless number": (Raw(200, b'{"Messages": ' + b"9" * 10_000 + b"}"), QueueUnavailable),
    "200, cut off": (Raw(200, b'{"Messages": [{"MessageId": "1", '), QueueUnavailable),
    "200 and nothing": (Raw(200, b""), QueueUnavailable),
    "200 and blanks": (Raw(200, b" \r\n "), QueueUnavailable),
    "204": (Raw(204, b""), QueueUnavailable),
    "200 and a page": (page(200), QueueUnavailable),
    "200 and other JSON": (said({"hello": "world"}), QueueUnavailable),
    "the old protocol, refusing": (Raw(400, OLD_PROTOCOL, {"content-type": "text/xml"}), QueueMisconfigured),
    "the old protocol, answering": (
        Raw(200, b"<ReceiveMessageResponse><x/></ReceiveMessageResponse>"),
        QueueMisconfigured,
    ),
}
"""Odd as an answer to any call, and the kind of error that it is."""

MESSAGE = {"MessageId": "good", "ReceiptHandle": "good", "Body": "good"}


def message(**odd: object) -> dict[str, object]:
    return {"MessageId": "odd", "ReceiptHandle": "odd", "Body": "odd", **odd}


def attribute(value: object) -> dict[str, object]:
    return message(MessageAttributes={"a": value})


POISON: dict[str, object] = {
    "a text": "x",
    "a number": 1,
    "null": None,
    "an empty object": {},
    "no id": {"ReceiptHandle": "odd", "Body": "odd"},
    "an id that is a number": message(MessageId=1),
    "an id of control characters": message(MessageId="\x1b[2J"),
    "an id of half a character": message(MessageId="\ud800"),
    "no handle": {"MessageId": "odd", "Body": "odd"},
    "an empty handle": message(ReceiptHandle=""),
    "a handle that is a list": message(ReceiptHandle=[]),
    "a body that is an object": message(Body={}),
    "a group that is a number": message(Attributes={"MessageGroupId": 1}),
    "a trace header that is a list": message(Attributes={"AWSTraceHeader": []}),
    "system attributes that are a list": message(Attributes=[]),
    "system attributes that are a text": message(Attributes="x"),
    "attributes that are a list": message(MessageAttributes=[]),
    "attributes that are a number": message(MessageAttributes=3),
    "an attribute that is null": attribute(None),
    "an attribute that is a text": attribute("x"),
    "Base64 that is none": attribute({"DataType": "Binary", "BinaryValue": "abc"}),
    "Base64 with signs between": attribute({"DataType": "Binary", "BinaryValue": "AA!E="}),
    "Base64 of other characters": attribute({"DataType": "Binary", "BinaryValue": "ä==="}),
    "binary that is a number": attribute({"DataType": "Binary", "BinaryValue": 7}),
    "binary that is an object": attribute({"DataType": "Binary", "BinaryValue": {}}),
    "a text that is a number": attribute({"DataType": "Number", "StringValue": 7}),
    "a type that is a number": attribute({"DataType": 7, "StringValue": "x"}),
    "a name of half a character, and a digest": message(
        MD5OfMessageAttributes="x", MessageAttributes={"\ud800": {"DataType": "String", "StringValue": "x"}}
    ),
    "a type of half a character, and a digest": message(
        MD5OfMessageAttributes="x", MessageAttributes={"a": {"DataType": "\ud800", "StringValue": "x"}}
    ),
}
"""Messages that cannot be read, in an answer whose other messages can."""


def poisoned() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Puts a message that cannot be read before those of each ReceiveMessage answer: each time the next of `POISON`."""
    entries = cycle(POISON.values())
    return lambda answer: {"Messages": [next(entries), *answer["Messages"]]} if answer.get("Messages") else answer


FOREIGN = [raw.wire for raw, kind in ODD.values() if kind is QueueUnavailable]
"""Those of `ODD` that may pass, as they travel."""

LISTS = ["x", 17, True, {"0": 1}]
"""What a list may be instead of one."""
