"""What `POST /messages/send` takes: whatever the bytes, a message that SQS takes or a refusal that says why. (The table of bad
bodies is in test_api.py, where each goes through the API.)"""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc.api import request_bodies
from svc.api.request_bodies import MESSAGE_LIMIT, Outgoing, Unacceptable, read

ALLOWED = re.compile("[\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "message": st.text(st.characters(), max_size=50) | values,
        "attributes": st.dictionaries(st.text(max_size=10), st.text() | st.floats() | st.integers()) | values,
        "delay_seconds": st.integers(-10, 1000) | values,
        "group_id": st.text(max_size=5) | values,
        "deduplication_id": st.text(max_size=5) | values,
    },
)


def whole(**fields: Any) -> bytes:
    return json.dumps({"message": "x", **fields}).encode()


def assert_sendable(message: Outgoing) -> None:
    """By SQS's rules, written down once more and differently."""
    texts = [message.message, *(value for value in message.attributes.values() if isinstance(value, str))]
    assert all(ALLOWED.fullmatch(text) for text in texts)
    assert len(message.attributes) <= 10
    for name, value in message.attributes.items():
        assert name.isascii()
        assert 1 <= len(name) <= 256
        assert not name.lower().startswith(("aws.", "amazon."))
        assert isinstance(value, str) or (type(value) in (int, float) and math.isfinite(float(value)))
    assert message.delay_seconds is None or 0 <= message.delay_seconds <= 900
    for one in (message.group_id, message.deduplication_id):
        assert one is None or (1 <= len(one) <= 128 and one.isascii() and one.isprintable() and " " not in one)


def read_or_refusal(body: bytes) -> Outgoing | Unacceptable:
    try:
        return read(body)
    except Unacceptable as error:
        refused = error
    assert refused.status == 400
    assert 10 < len(str(refused)) < 1000
    assert str(refused).encode()  # a text that can be sent
    return refused


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    message = read_or_refusal(body)
    if isinstance(message, Outgoing):
        assert_sendable(message)


@given(documents)
def test_any_document(document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()  # NaN and infinities as Python writes them, surrogates as escapes
    message = read_or_refusal(body)
    if isinstance(message, Outgoing):
        assert_sendable(message)
        assert message.message == document["message"]


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=300))
def test_what_people_write_is_taken_as_it_is(text: str) -> None:
    assert read(json.dumps({"message": text}).encode()).message == text
    assert read(json.dumps({"message": text}, ensure_ascii=False).encode()).message == text


def test_defaults() -> None:
    assert read(b'{"message": "x"}') == Outgoing("x", {}, None, None, None)


def test_the_last_of_two_equal_names_counts() -> None:
    assert read(b'{"message": "x", "message": "y"}').message == "y"


@pytest.mark.parametrize(
    ("message", "attributes", "fits"),
    [
        ("x" * MESSAGE_LIMIT, None, True),
        ("x" * (MESSAGE_LIMIT + 1), None, False),
        ("é" * (MESSAGE_LIMIT // 2), None, True),
        ("é" * (MESSAGE_LIMIT // 2) + "x", None, False),
        ("\U0001f600" * (MESSAGE_LIMIT // 4), None, True),
        ("x" * (MESSAGE_LIMIT - 6), {"abc": "def"}, True),
        ("x" * (MESSAGE_LIMIT - 5), {"abc": "def"}, False),
        ("x" * (MESSAGE_LIMIT - 6), {"abc": 123}, True),
        ("x" * (MESSAGE_LIMIT - 5), {"abc": 123}, False),
    ],
    ids=range(9),
)
def test_the_limit_counts_bytes_and_attributes(message: str, attributes: dict[str, Any] | None, fits: bool) -> None:
    body = whole(message=message, attributes=attributes)
    if fits:
        assert read(body).message == message
        return
    with pytest.raises(
        Unacceptable, match=rf"has {MESSAGE_LIMIT + 1} bytes, attributes included; SQS takes"
    ) as refused:
        read(body)
    assert refused.value.status == 413


@pytest.mark.parametrize("code", [0, 8, 0xB, 0xC, 0xE, 0x1F, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF])
def test_refused_characters_are_named_with_their_place(code: int) -> None:
    with pytest.raises(Unacceptable, match=rf'"message" holds U\+{code:04X} at position 2, which SQS refuses'):
        read(json.dumps({"message": "ab" + chr(code)}).encode())
    with pytest.raises(Unacceptable, match=rf"the attribute 'n' holds U\+{code:04X} at position 0"):
        read(whole(attributes={"n": chr(code)}))


@pytest.mark.parametrize("code", [9, 0xA, 0xD, 0x20, 0x7F, 0x85, 0xD7FF, 0xE000, 0xFFFD, 0x10000, 0x10FFFF])
def test_taken_characters(code: int) -> None:
    assert read(json.dumps({"message": chr(code)}).encode()).message == chr(code)


@pytest.mark.parametrize(
    ("number", "taken"),
    [
        (0, True),
        (-1, True),
        (10**37, True),
        (-(10**37), True),
        (10**38, False),
        (1e126, True),
        (1e127, False),
        (10**127, False),
        (1e-128, True),
        (1e-129, False),
        (0.1, True),
        (10**4000, False),
    ],
    ids=str,
)
def test_numbers(number: float, taken: bool) -> None:
    if taken:
        assert read(whole(attributes={"n": number})).attributes == {"n": number}
    else:
        with pytest.raises(Unacceptable, match="'n'"):
            read(whole(attributes={"n": number}))


def test_the_body_limit_leaves_room_for_the_longest_way_to_write_a_message() -> None:
    assert len(b'{"message": "' + b"\\u00e9" * MESSAGE_LIMIT + b'"}') <= request_bodies.BODY_LIMIT
