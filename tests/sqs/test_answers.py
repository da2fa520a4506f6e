"""The border to SQS, in memory: each odd answer that somebody has met, to each call that the program makes."""

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from svc.consumer.queue import QueueError, QueueUnavailable, Refusal
from svc.processors import Message, System
from svc.sqs import answers
from svc.sqs.dead_letters import Depth, depth
from svc.sqs.messages import received
from tests.border.calls import ARN, DELIVERY, USES, Canned, botocore, queue_of
from tests.border.odd import LISTS, MESSAGE, ODD, OLD_PROTOCOL, POISON, Raw, message, page, said

MAY_FAIL_INSIDE = {"svc dlq list", "svc dlq redrive", "svc dlq purge", "the page's dead letters"}
"""Their deletes and releases are tried again, or left to the lease."""


async def steps(name: str) -> list[str]:
    """The operations of a use of the queue, when all goes well."""
    canned = Canned(None)
    await USES[name](queue_of(canned), canned)
    return canned.operations


async def failures(name: str, through: Any) -> list[str]:
    """Give every odd answer to every step of a use; returns what did not end as it should."""
    wrong = []
    for at, operation in enumerate(await steps(name)):
        for odd, (raw, kind) in ODD.items():
            if operation == "set_queue_attributes" and raw.status < 300 and odd != "200 and null":
                continue  # it has no output: any object, or nothing
            canned = Canned(raw, at)
            call = through(canned)
            try:
                await USES[name](queue_of(call), call)
            except QueueError as error:
                if not isinstance(error, kind) or "\n" in str(error) or len(str(error)) > 500:
                    wrong.append(f"{operation}, {odd}: {type(error).__name__}: {error}")
            except Exception as error:
                wrong.append(f"{operation}, {odd}: {error!r}")
            else:
                if name not in MAY_FAIL_INSIDE or at == 0:
                    wrong.append(f"{operation}, {odd}: taken for good")
    return wrong


@pytest.mark.parametrize("name", USES)
async def test_an_odd_answer_is_that_call_s_failure(name: str, autojump_clock) -> None:
    assert await failures(name, lambda canned: canned) == []


async def test_an_odd_answer_through_botocore_is_that_call_s_failure(autojump_clock) -> None:
    async with botocore() as through:
        for name in ("receive", "delete", "attributes", "dead_letter", "svc init"):
            assert await failures(name, through) == []


@pytest.mark.parametrize("name", USES)
async def test_a_call_whose_client_breaks_is_that_call_s_failure(name: str, autojump_clock) -> None:
    async def broken(operation: str, **request: Any) -> dict[str, Any]:
        raise ValueError("a secret")

    with pytest.raises(QueueUnavailable, match=r"inside the SQS client \(ValueError at sqs/test_answers.py:[0-9]+\)"):
        await USES[name](queue_of(broken), broken)


async def test_what_a_server_is_called_by(autojump_clock) -> None:
    async def says(raw: Raw) -> str:
        with pytest.raises(QueueError) as caught:
            await queue_of(Canned(raw)).attributes()
        return str(caught.value)

    assert "old query protocol" in await says(Raw(400, OLD_PROTOCOL))
    assert "HTTP 502 without an error code of SQS's" in await says(page(502))
    assert "(HTTP 403 without an error code of SQS's)" in await says(page(403))
    assert "(it is compressed, which was not asked for)" in await says(Raw(200, b"\x1f\x8bxx"))
    assert "(it is a page)" in await says(page(200))
    assert "(it is empty)" in await says(Raw(200, b""))
    assert "(it is not UTF-8)" in await says(Raw(200, b"\xff"))
    assert "throttled" in await says(page(429))
    spoken = await says(said({"__type": "Odd", "message": "\x1b[31mred\u202e\n\ud800"}, 400))
    assert spoken.isprintable()
    assert "red" in spoken


async def test_a_message_is_not_taken_for_sent_by_a_stranger(autojump_clock) -> None:
    for name in ("send", "take_back", "dead_letter"):
        canned = Canned(said({"hello": "world"}), len(await steps(name)) - 1)
        with pytest.raises(QueueUnavailable, match="it has no MessageId"):
            await USES[name](queue_of(canned), canned)


# Messages


def receive(*messages: object) -> list[Message]:
    return [delivery.message for delivery in received(json.loads(json.dumps({"Messages": messages})))]


@pytest.mark.expects_errors
@pytest.mark.parametrize("how", POISON)
def test_a_message_that_cannot_be_read_is_left_out_alone(how: str, caplog: pytest.LogCaptureFixture) -> None:
    assert [message.id for message in receive(MESSAGE, POISON[how], {**MESSAGE, "ReceiptHandle": "2"})] == ["good"] * 2
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "is left out" in record.getMessage()
    assert record.getMessage().isprintable()
    assert record.exc_info is None


@pytest.mark.expects_errors
def test_an_answer_of_no_messages_at_all_is_no_answer() -> None:
    for entries in (["x", 1], [None], [[]]):
        with pytest.raises(QueueUnavailable, match="not SQS's"):
            receive(*entries)
    assert receive(message(Body=1)) == []  # one message that cannot be read is no trouble of the queue's
    for odd in LISTS:
        with pytest.raises(QueueUnavailable, match="its Messages is no list"):
            received({"Messages": odd})


def test_a_receive_without_messages() -> None:
    for answer in ({}, {"Messages": []}, {"Messages": None}, {"ResponseMetadata": {}}):
        assert received(answer) == []


def test_the_same_delivery_twice_is_one() -> None:
    assert len(receive(MESSAGE, MESSAGE)) == 1


def test_what_is_received_is_a_message_like_any_other() -> None:
    """It is made in another way, for speed."""
    [found] = receive(message(Body="text", Attributes={"MessageGroupId": "g", "SenderId": "AIDA"}))
    assert type(found) is Message
    assert found == Message(found.id, "text", group_id="g")
    assert replace(found, body="other") == Message(found.id, "other", group_id="g")
    assert (found.raw, found.envelope, found.lease_until) == ("text", None, None)
    assert found.system.sender_id == "AIDA"
    for name in ("id", "body", "invented"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(found, name, "changed")


@pytest.mark.parametrize(
    ("count", "taken"),
    [("3", 3), (3, 3), (3.0, 3), ("0", 1), (0, 1), (-1, 1), (True, 1), (1.5, 1), ("many", 1), (None, 1), ("9" * 5000, 1),
     ("٣", 1), ({}, 1)],
)  # fmt: skip
def test_receive_counts(count: object, taken: int) -> None:
    [found] = receive(message(Attributes={"ApproximateReceiveCount": count}))
    assert found.receive_count == taken


def test_system_attributes_of_any_shape() -> None:
    said: dict[str, object] = {
        "SenderId": "AIDA", "ApproximateFirstReceiveTimestamp": "1700000000000", "SequenceNumber": "18849496460467696128",
        "MessageDeduplicationId": "d", "DeadLetterQueueSourceArn": "arn:aws:sqs:eu-west-1:1:a",
    }  # fmt: skip
    first = datetime.fromtimestamp(1_700_000_000, UTC)
    [found] = receive(message(Attributes=said))
    assert found.system == System("AIDA", first, 18_849_496_460_467_696_128, "d", "arn:aws:sqs:eu-west-1:1:a")
    [found] = receive(message(Attributes={**said, "ApproximateFirstReceiveTimestamp": 1_700_000_000_000}))
    assert found.system.first_received_at == first
    for odd in (None, [], {}, True, 1.5, "many", "9" * 5000, "٣", "-1", "a\0b", "\0" * 5):
        for name in set(said) | {"Other"}:
            [found] = receive(message(Attributes={**said, name: odd}))
            assert isinstance(found.system, System)
            assert found.system.sequence_number in (18_849_496_460_467_696_128, None)


@pytest.mark.parametrize("sent", ["1700000000000", 1700000000000])
def test_when_it_was_sent(sent: object) -> None:
    [found] = receive(message(Attributes={"SentTimestamp": sent}))
    assert found.sent_at == datetime.fromtimestamp(1_700_000_000, UTC)


def test_attributes_without_a_value_are_left_out() -> None:
    [delivery] = received(
        {"Messages": [message(MessageAttributes={"a": {"DataType": "String"}, "b": {"StringValue": "x"}})]}
    )
    assert dict(delivery.message.attributes) == {"b": "x"}
    assert delivery.native == {"b": {"DataType": "String", "StringValue": "x"}}


# Batches


def batch(answer: dict[str, Any]) -> dict[str, Refusal]:
    return answers.unconfirmed("deleting", answer, ["one", "two", "three"])


DONE = [{"Id": "0"}, {"Id": "2"}]


def test_halves_of_characters_are_read_as_json_has_them() -> None:
    """Not every parser takes them, and one such message must not cost the others of its receive."""
    for text in ("\ud800", "\udfff\ud800", "whole", "😀"):
        assert answers.parsed(200, {}, json.dumps({text: [text]}).encode()) == {text: [text]}


@pytest.mark.parametrize(
    "failed",
    [[{"Id": "17", "Code": "X"}], [{"Id": "-1"}], [{"Id": "x"}], [{"Id": None}], [{}], [{"Id": [1]}], [None], ["1"], [], None,
     [{"Id": "9" * 5000}], [{"Id": 1.5}], [{"Id": True}]],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_not_named_is_not_confirmed(failed: object) -> None:
    found = batch({"Successful": DONE, "Failed": failed})
    assert list(found) == ["two"]
    assert found["two"].unconfirmed
    assert not found["two"].gone
    assert "does not name it" in found["two"].text


def test_an_entry_that_is_named_twice_is_not_confirmed() -> None:
    found = batch({"Successful": [*DONE, {"Id": "1"}], "Failed": [{"Id": "1", "Code": "ReceiptHandleIsInvalid"}]})
    assert list(found) == ["two"]
    assert found["two"].unconfirmed
    assert not found["two"].gone


def test_an_entry_that_is_refused() -> None:
    found = batch({"Successful": DONE, "Failed": [{"Id": 1, "Code": "ReceiptHandleIsInvalid", "Message": 'the "two"'}]})
    assert found == {"two": Refusal("ReceiptHandleIsInvalid", 'the "…"', gone=True)}
    odd = batch({"Successful": DONE, "Failed": [{"Id": "1", "Code": [], "Message": 7}]})
    assert odd == {"two": Refusal("", "", gone=False)}


@pytest.mark.parametrize(
    "answer", [{}, {"Successful": []}, {"Failed": [{"Id": "7"}]}, {"Successful": None, "Failed": [1]}]
)
def test_a_batch_of_which_nothing_is_named_has_no_answer(answer: dict[str, Any]) -> None:
    with pytest.raises(QueueUnavailable, match="it names none of the entries"):
        batch(answer)


@pytest.mark.parametrize("name", ["Successful", "Failed"])
def test_a_batch_answer_without_lists(name: str) -> None:
    for odd in LISTS:
        with pytest.raises(QueueUnavailable, match="is no list"):
            batch({"Successful": DONE, name: odd})


# The rest


def test_attributes_are_text() -> None:
    found = answers.attributes("reading", {"Attributes": {"QueueArn": "a", "VisibilityTimeout": 30, "FifoQueue": True}})
    assert found == {"QueueArn": "a", "VisibilityTimeout": "30", "FifoQueue": "true"}
    assert answers.attributes("reading", {"Attributes": {"Policy\ud800": "ä\udfff"}}) == {"Policy?": "ä?"}
    for odd in ([], "x", 1, None, {}, {"QueueArn": []}, {"QueueArn": None}):
        with pytest.raises(QueueUnavailable, match="Attributes"):
            answers.attributes("reading", {"Attributes": odd})


@pytest.mark.parametrize("text", ["many", "²", "٣", "9" * 5000, "-1", "1.5", ""])
async def test_a_depth_that_is_no_number_is_none(text: str, autojump_clock) -> None:
    queue = queue_of(Canned(said({"Attributes": {"QueueArn": ARN, "ApproximateNumberOfMessages": text}})))
    assert await depth(queue) == Depth(0, 0)


@pytest.mark.parametrize(
    "policy",
    ["", "null", "[]", "17", "x", "[" * 100_000, '{"deadLetterTargetArn": 1, "maxReceiveCount": 3}', "\ud800",
     f'{{"deadLetterTargetArn": "{ARN}"}}', f'{{"deadLetterTargetArn": "{ARN}", "maxReceiveCount": []}}',
     '{"deadLetterTargetArn": "queue", "maxReceiveCount": "3"}'],
    ids=lambda text: text[:40].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_a_redrive_policy_that_cannot_be_read_is_none(policy: str) -> None:
    assert answers.redrive_policy({"RedrivePolicy": policy}) is None


@pytest.mark.parametrize("most", ["3", 3])
def test_a_redrive_policy(most: object) -> None:
    text = json.dumps({"deadLetterTargetArn": ARN, "maxReceiveCount": most})
    assert answers.redrive_policy({"RedrivePolicy": text}) == (ARN, 3)


@pytest.mark.parametrize(
    "url", [None, 1, "", "q", "ftp://x/q", "http://user:secret@x/0/q", "http://x/0/q?a=b", "http://x", "http://x/\n"]
)
def test_a_queue_url_that_is_none(url: object) -> None:
    with pytest.raises(QueueUnavailable, match="QueueUrl") as caught:
        answers.queue_url("looking", {"QueueUrl": url})
    assert "secret" not in str(caught.value)


async def test_the_trace_header_travels_with_a_copy(autojump_clock) -> None:
    header = "Root=1-5759e988-bd862e3fe1be46a994272793"
    canned = Canned(said({"Messages": [message(Attributes={"AWSTraceHeader": header})]}))
    [delivery] = await queue_of(canned).receive(limit=1, wait=0, visibility=30)
    assert "AWSTraceHeader" in canned.requests[0]["MessageSystemAttributeNames"]
    for copy in (lambda queue: queue.dead_letter(delivery, "because"), lambda queue: queue.take_back(delivery)):
        canned = Canned(None)
        await copy(queue_of(canned))
        sent = canned.requests[-1]["MessageSystemAttributes"]
        assert sent == {"AWSTraceHeader": {"DataType": "String", "StringValue": header}}


async def test_a_receive_ends_without_a_checkpoint_after_its_answer(autojump_clock) -> None:
    """The messages are ours by then: a cancellation that came meanwhile must not strand them."""
    with trio.CancelScope() as scope:

        async def call(operation: str, **request: Any) -> dict[str, Any]:
            scope.cancel()
            return {"Messages": [MESSAGE]}

        assert len(await queue_of(call).receive(limit=1, wait=0, visibility=30)) == 1


@pytest.mark.parametrize(
    ("found", "fifo"),
    [({"QueueArn": ARN}, False), ({"QueueArn": f"{ARN}.fifo"}, True), ({"QueueArn": ARN, "FifoQueue": "true"}, True),
     ({"QueueArn": ARN, "FifoQueue": "false"}, False)],
)  # fmt: skip
async def test_a_queue_s_attributes_say_whether_it_is_fifo(found: dict[str, str], fifo: bool, autojump_clock) -> None:
    canned = Canned(said({"Attributes": found}))
    queue = queue_of(canned)
    assert queue.fifo is None
    await queue.attributes()
    assert queue.fifo is fifo
    canned.odd = None
    await queue.take_back(DELIVERY)
    assert ("MessageDeduplicationId" in canned.requests[-1]) is fifo


def test_an_answer_of_a_million_lists_is_not_read() -> None:
    """They hold up the loop for seconds; and a few kilobytes of gzip hold them."""
    with pytest.raises(answers.OddAnswer):
        answers.parsed(200, {}, b'{"Messages": [' + b"[]," * 1_000_000 + b"[]]}")
    with pytest.raises(answers.OddAnswer):
        answers.parsed(200, {}, b'{"' + b"a[" * 20 + b'": [' + b"{}," * 30_000 + b"{}]}")


def test_a_message_may_hold_a_million_lists() -> None:
    body = "[]," * 300_000 + '"\\'
    found = answers.parsed(200, {}, json.dumps({"Messages": [{"Body": body}]}).encode())
    assert found["Messages"][0]["Body"] == body
