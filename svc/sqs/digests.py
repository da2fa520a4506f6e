"""The digests that SQS sends with a message, so that what was damaged on the way is noticed: `MD5OfBody` and
`MD5OfMessageAttributes` (SQS developer guide, "Amazon SQS message metadata", Calculating the MD5 message digest).

They guard against damage and nothing else: whoever can change a message can change its digest. Pure.
"""

from collections.abc import Iterator, Mapping
from hashlib import md5
from typing import Any

_TEXT, _BINARY = b"\x01", b"\x02"


def damaged(entry: Mapping[str, Any], body: str, attributes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What of a received message is not what its digests say; None when all is well, or no digest came. `attributes` in SQS's
    form, binary values as bytes."""
    # `usedforsecurity`: Pythons in FIPS mode refuse it otherwise.
    told = entry.get("MD5OfBody")
    if told is not None and told != md5(_utf8(body), usedforsecurity=False).hexdigest():
        return "its body is not what was sent (MD5OfBody)"
    told = entry.get("MD5OfMessageAttributes") if attributes else None
    if told is not None and told != md5(b"".join(_encoded(attributes)), usedforsecurity=False).hexdigest():
        return "its attributes are not what was sent (MD5OfMessageAttributes)"
    return None


def _encoded(attributes: Mapping[str, Mapping[str, Any]]) -> Iterator[bytes]:
    for name in sorted(attributes):
        attribute = attributes[name]
        yield _sized(_utf8(name))
        yield _sized(_utf8(attribute["DataType"]))
        if "BinaryValue" in attribute:
            yield _BINARY + _sized(attribute["BinaryValue"])
        else:
            yield _TEXT + _sized(_utf8(attribute["StringValue"]))


def _utf8(text: str) -> bytes:
    """JSON may hold halves of characters, in names too."""
    return text.encode("utf-8", "surrogatepass")


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
