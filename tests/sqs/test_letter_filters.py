"""The filters of `svc dlq`: which letters they mean, and where a wrong one is wrong. Pure."""

from datetime import UTC, datetime

import pytest

from svc.consumer.queue import Received
from svc.processors import Message
from svc.sqs import letters
from svc.sqs.letter_filters import BadExpression, condition, every, of_ids, older_than

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SENT = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)  # two hours before


def letter(body: str = "hello", receives: int = 3, group: str | None = None, **attributes: str | bytes) -> Received:
    return Received(Message("id-1", body, attributes, receives, SENT, group), "receipt")


LETTER = letter(
    '{"item": "a Chair"}', group="g", RejectReason="Read Timeout after 5 s", ErrorCode="200", ErrorMessage="gone", price="12.5",
    blob=b"\x00\xff", RejectedMessageId="id-0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("reason~timeout", True),
        ("reason ~ 'TIMEOUT after'", True),
        ("reason~refused", False),
        ("reason=Read Timeout after 5 s", True),
        ("reason=read timeout after 5 s", False),
        ("reason!=x", True),
        ("reason=", False),
        ("error=200: gone", True),
        ("error~GONE", True),
        ("id=id-1", True),
        ("id!=id-1", False),
        ("original_id=id-0", True),
        ("original_id=", False),
        ("group=g", True),
        ("body~chair", True),
        ('body="{"item": "a Chair"}"', True),
        ("attribute:price=12.5", True),
        ("attribute:price>12", True),
        ("attribute:price<1.25e1", False),
        ("attribute:ErrorMessage>1", False),
        ("attribute:absent=", True),
        ("attribute:absent<5", False),
        ("attribute:blob=AP8=", True),
        ("receives>2", True),
        ("receives>3", False),
        ("receives<4", True),
        ("receives=3", True),
        ("receives!=3", False),
        ("age>1h", True),
        ("age>2h", False),
        ("age<2h30m", True),
        ("sent<2026-01-02", True),
        ("sent>2026-01-01T22:00:00Z", False),
        ("sent>2026-01-01T22:30:00+01:00", True),
        ("  reason   ~  timeout  ", True),
    ],
)
def test_what_an_expression_means(text: str, holds: bool) -> None:
    assert condition(text).holds(LETTER, NOW) is holds


def test_what_a_letter_does_not_have() -> None:
    bare = Received(Message("id-2", "", {}, 1, None), "receipt")
    assert condition("reason=").holds(bare, NOW)
    assert not condition("reason!=").holds(bare, NOW)
    for text in ("age>0", "age<9000h", "sent<2999-01-01", "attribute:n<5"):
        assert not condition(text).holds(bare, NOW), text
    assert not older_than(1).holds(bare, NOW)


def test_several_have_to_hold_all() -> None:
    both = [condition("reason~timeout"), condition("receives>2")]
    assert every(both, NOW)(LETTER)
    assert not every([*both, of_ids(["id-7"])], NOW)(LETTER)
    assert every([of_ids(["id-7", "id-1"]), older_than(7200)], NOW)(LETTER)
    assert not every([older_than(7201)], NOW)(LETTER)
    assert every([], NOW)(LETTER)


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("", 0, "a field is missing"),
        ("~x", 0, "a field is missing"),
        ("resaon~x", 0, "there is no field 'resaon'"),
        ("reason", 6, "an operator is missing"),
        ("reason timeout", 7, "an operator is missing"),
        ("reason>5", 6, "a text has =, != and ~"),
        ("reason==x", 7, "there is no such operator"),
        ("reason=~x", 7, "there is no such operator"),
        ("receives>=3", 9, "there is no such operator"),
        ("reason~", 7, "~ needs something"),
        ("reason~''", 7, "~ needs something"),
        ("reason='x", 7, "no ' at its end"),
        ("receives~3", 8, "receives is a number"),
        ("receives>three", 9, "not a whole number"),
        ("age=1h", 3, "age has < and >"),
        ("age > 1 hour", 6, "not a duration"),
        ("sent~2026", 4, "sent has < and >"),
        ("sent<yesterday", 5, "not a time"),
        ("attribute=x", 9, "attribute needs a name"),
        ("attribute:=x", 9, "attribute needs a name"),
        ("body:x=1", 4, "body takes no name"),
        ("attribute:n>many", 12, "not a number"),
    ],
)
def test_a_wrong_expression_is_shown_with_the_place(text: str, at: int, why: str) -> None:
    with pytest.raises(BadExpression) as raised:
        condition(text)
    said, shown, caret = str(raised.value).split("\n")
    assert why in said
    assert (shown, caret) == (f"  {text}", f"  {' ' * at}^")


def test_a_wrong_expression_tells_the_terminal_nothing() -> None:
    with pytest.raises(BadExpression) as raised:
        condition("reason\x1b[2J>5")
    _, shown, caret = str(raised.value).split("\n")
    assert shown == "  reason\\x1b[2J>5"
    assert caret.index("^") == shown.index("\\")


def test_a_letter_is_described_to_the_last_character() -> None:
    told = letters.described(LETTER, NOW)
    assert told["sent"] == "2026-01-01T22:00:00.000Z"
    assert (told["age_seconds"], told["receives"], told["group"]) == (7200, 3, "g")
    assert (told["reason"], told["error"]) == ("Read Timeout after 5 s", "200: gone")
    assert told["body"] == LETTER.message.body
    assert told["attributes"]["blob"] == {"type": "Binary", "base64": "AP8="}
    of_eventbridge = letter(ERROR_CODE="SDK_CLIENT_ERROR", ERROR_MESSAGE="no target")
    assert letters.error(of_eventbridge) == "SDK_CLIENT_ERROR: no target"
    assert letters.described(letter(), NOW)["reason"] is None
