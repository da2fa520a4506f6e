"""Answers that nobody has thought of: bytes, JSON of any form, real answers with something odd in them, odd headers."""

import gzip
import json
import zlib
from typing import Any

from hypothesis import strategies as st

from tests.border.calls import good
from tests.border.odd import MESSAGE, ODD, POISON, Raw

OPERATIONS = (
    "receive_message", "get_queue_attributes", "get_queue_url", "send_message", "delete_message_batch",
    "change_message_visibility_batch",
)  # fmt: skip

NAMES = (
    "Messages", "MessageId", "ReceiptHandle", "Body", "Attributes", "MessageAttributes", "ApproximateReceiveCount",
    "SentTimestamp", "MessageGroupId", "AWSTraceHeader", "DataType", "StringValue", "BinaryValue", "Successful", "Failed",
    "Id", "Code", "Message", "message", "__type", "QueueUrl", "QueueArn", "RedrivePolicy", "deadLetterTargetArn",
    "maxReceiveCount", "ResponseMetadata", "Error",
)  # fmt: skip

CODES = (
    "com.amazonaws.sqs#QueueDoesNotExist", "RequestThrottled", "OverLimit", "AccessDenied", "InvalidParameterValue",
    "ReceiptHandleIsInvalid", "InvalidSignatureException", "KmsDisabled", "InternalError", "0", "1", "2", "-1", "",
)  # fmt: skip

texts = (
    st.text(max_size=20) | st.sampled_from(CODES) | st.sampled_from(["\ud800", "\x1b[2J", "\u202e", "9" * 5000, "AAE="])
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=5)
        | st.sampled_from(list(POISON.values()))
    ),
    max_leaves=12,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        found += _places(inner, (*path, step))
    return found


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


_REQUEST = {"Entries": [{"Id": "0"}, {"Id": "1"}, {"Id": "2"}]}

_FULL = {
    **MESSAGE,
    "Attributes": {"ApproximateReceiveCount": "2", "SentTimestamp": "1700000000000", "MessageGroupId": "g"},
    "MessageAttributes": {
        "a": {"DataType": "Binary", "BinaryValue": "AAE="},
        "b": {"DataType": "Number", "StringValue": "1"},
    },
}

_ANSWERS: list[Any] = [
    *(json.loads(good(operation, _REQUEST).body) for operation in OPERATIONS),
    {"Messages": [_FULL, MESSAGE]},
    {"Successful": [{"Id": "0"}], "Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid", "Message": "x"}]},
    {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "The specified queue does not exist."},
]


@st.composite
def nearly(draw: st.DrawFn) -> Any:
    """A real answer of which up to three places hold something else."""
    answer = draw(st.sampled_from(_ANSWERS))
    for _ in range(draw(st.integers(1, 3))):
        answer = _with(answer, draw(st.sampled_from(_places(answer))), draw(values))
    return answer


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["nearly", "json", "bytes", "known", "nested"]))
    if kind == "bytes":
        body = draw(st.binary(max_size=200))
    elif kind == "known":
        body = draw(st.sampled_from([raw.body for raw, _ in ODD.values()]))
    elif kind == "nested":
        opening = draw(st.sampled_from(["[", '{"Messages":[', '{"a":']))
        body = (opening * draw(st.integers(1, 3000))).encode()
    else:
        text = json.dumps(draw(nearly() if kind == "nearly" else values), ensure_ascii=draw(st.booleans()))
        encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"]))
        body = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    how = draw(st.sampled_from(["whole", "whole", "whole", "truncated", "gzip", "deflate", "doubled"]))
    if how == "truncated":
        return body[: draw(st.integers(0, len(body)))]
    if how == "gzip":
        return gzip.compress(body)
    if how == "deflate":
        return zlib.compress(body)
    return body * 2 if how == "doubled" else body


statuses = st.sampled_from(
    [200, 200, 200, 200, 201, 204, 206, 300, 302, 400, 403, 404, 407, 413, 429, 500, 502, 503, 504, 599]
)

_HEADERS = ["content-type", "content-encoding", "x-amzn-query-error", "x-amzn-requestid", "retry-after", "x-amz-crc32"]
_HELD = ["application/json", "text/html", "gzip", "br", "identity", "a;b", ";", "AccessDenied;Sender", "\xff", "-1", ""]

headers = st.dictionaries(
    st.sampled_from(_HEADERS),
    st.sampled_from(_HELD) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    max_size=4,
)

raws = st.builds(Raw, statuses, bodies(), headers)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """An answer as it travels, most of them damaged on the way."""
    wire = draw(raws).wire
    how = draw(st.sampled_from(["whole", "truncated", "inserted", "changed", "chunked", "noise"]))
    if how == "noise":
        return draw(st.binary(max_size=300))
    if how == "chunked":
        body = wire.partition(b"\r\n\r\n")[2]
        size = draw(st.sampled_from([b"%x" % len(body), b"ffffffffffffffffffff", b"-1", b"", b"zz", b"0", b"1"]))
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    at = draw(st.integers(0, len(wire)))
    if how == "truncated":
        return wire[:at]
    more = draw(st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\n", b"\0", b": ", b"Content-Length: 5\r\n"]))
    if how == "inserted":
        return wire[:at] + more + wire[at:]
    return wire[:at] + more + wire[at + len(more) :] if how == "changed" else wire
