"""The real queue against moto and against small servers that misbehave, in real time; each test on every road to SQS that this
Python has, unless it is about what both share (`one_road`). An ordinary run takes `direct`, and every road for the tests that
stand for their kind (`every_road`); the rest is marked slow."""

import asyncio
import gc
import json
import logging
import sys
from functools import partial
from typing import Any

import pytest
import trio

from svc.consumer.queue import (
    MessageRefused,
    MessageTooLong,
    QueueError,
    QueueMisconfigured,
    QueueTimeout,
    QueueUnavailable,
    Received,
)
from svc.devstack.stack import Moto
from svc.processors import Message
from svc.settings import Settings
from svc.sqs import answers, aws_client, creation, sdk, wire
from svc.sqs import queue as sqs
from tests.roads import ROADS, SLICED
from tests.sqs.small_server import Server, answer, error

the_road: aws_client.Road = "native"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("road", getattr(metafunc.function, "roads", SLICED), indirect=True)


def one_road(test: Any) -> Any:
    """Marks a test of what is the same on every road: errors in words, what is asked of SQS and in which order."""
    test.roads = ROADS[:1]
    return test


def every_road(test: Any) -> Any:
    """Marks a test that an ordinary run makes on every road, too."""
    test.roads = ROADS
    return test


@pytest.fixture(autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> aws_client.Road:
    """The road of this test: `settings()` asks for it."""
    monkeypatch.setattr(sys.modules[__name__], "the_road", request.param)
    return request.param  # type: ignore[no-any-return]


def settings(endpoint: str, name: str = "q", **more: Any) -> Settings:
    return Settings(
        sqs_queue_url=f"{endpoint}/000000000000/{name}", aws_endpoint=endpoint, sqs_wait_time_seconds=1,
        **{"sqs_transport": the_road, **more},
    )  # fmt: skip


# What goes wrong on the way


@every_road
async def test_a_refused_port_is_unavailable_and_says_what_to_check() -> None:
    async with sqs.opened(settings("http://127.0.0.1:1"), polls=1) as queue:
        for call in (queue.attributes, lambda: queue.receive(limit=1, wait=1, visibility=30), lambda: queue.send("x")):
            with trio.fail_after(4), pytest.raises(QueueUnavailable, match="AWS_ENDPOINT"):
                await call()


async def test_a_server_that_never_answers_is_a_timeout_after_five_seconds(nursery: trio.Nursery) -> None:
    url = await Server(lambda operation, number: None).start(nursery)
    began = trio.current_time()
    took: dict[str, float] = {}
    async with sqs.opened(settings(url), polls=1) as queue, trio.open_nursery() as calls:

        async def call(name: str, function: Any, *args: Any, **more: Any) -> None:
            with pytest.raises(QueueTimeout):
                await function(*args, **more)
            took[name] = trio.current_time() - began

        calls.start_soon(call, "attributes", queue.attributes)
        calls.start_soon(call, "delete", queue.delete, ["x"])
        calls.start_soon(lambda: call("receive", queue.receive, limit=1, wait=1, visibility=30))
    # CALL_SECONDS, and for the receive its wait and LANDING_SECONDS; at most two more on a busy machine.
    assert all(5 <= took[name] < 7 for name in ("attributes", "delete"))
    assert 6 <= took["receive"] < 8


BROKEN = {
    "closes at once": b"",
    "closes in the middle": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{",
    "speaks no HTTP": b"220 smtp.example.org ESMTP\r\n",
    "answers with a page": answer(b"<html>It works!</html>"),
    "answers with other JSON": answer({"hello": "world"}),
    "is a broken proxy": answer(b"<html>Bad gateway</html>", 502),
    "breaks down": error("InternalError", 500),
    "throttles": error("RequestThrottled", 400),
    "throttles by status": error("Whatever", 429),
    "has too much in flight": error("OverLimit", 403),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_what_may_pass_is_unavailable(how: str, nursery: trio.Nursery) -> None:
    server = Server(lambda operation, number: BROKEN[how])
    async with sqs.opened(settings(await server.start(nursery)), polls=1) as queue:
        with trio.fail_after(6), pytest.raises(QueueUnavailable):
            await queue.send("x")


@every_road
async def test_a_receive_is_sent_once_and_other_calls_twice(nursery: trio.Nursery) -> None:
    server = Server(lambda operation, number: error("InternalError", 500))
    async with sqs.opened(settings(await server.start(nursery)), polls=1) as queue:
        with pytest.raises(QueueUnavailable):
            await queue.receive(limit=1, wait=1, visibility=30)
        with pytest.raises(QueueUnavailable):
            await queue.attributes()
    assert server.requests == {"ReceiveMessage": 1, "GetQueueAttributes": 2}


async def test_a_page_is_no_answer_whatever_its_status(nursery: trio.Nursery) -> None:
    page = b"<html>Please sign in</html>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page)
    url = await Server(lambda operation, number: head + page).start(nursery)
    async with sqs.opened(settings(url), polls=1) as queue:
        for call in (
            partial(queue.receive, limit=1, wait=1, visibility=30),
            partial(queue.delete, ["receipt"]),
            queue.attributes,
        ):
            with pytest.raises(QueueUnavailable, match="the answer is not SQS's"):
                await call()


async def test_a_connection_that_the_server_has_closed_is_not_noticed(nursery: trio.Nursery) -> None:
    def respond(operation: str, number: int) -> bytes:
        return b"" if number == 2 else answer({"Attributes": {"QueueArn": "a"}})

    server = Server(respond)
    async with sqs.opened(settings(await server.start(nursery)), polls=1) as queue:
        assert await queue.attributes() == await queue.attributes() == {"QueueArn": "a"}
    assert server.requests["GetQueueAttributes"] == 3


@one_road
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("QueueDoesNotExist", "svc init"),
        ("AWS.SimpleQueueService.NonExistentQueue", "svc init"),
        ("AccessDenied", "IAM policy"),
        ("KmsAccessDenied", "IAM policy"),
        ("ExpiredToken", "expired"),
        ("InvalidClientTokenId", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("RequestExpired", "clock"),
        ("KmsDisabled", "KMS key"),
        ("InvalidAddress", "SQS_QUEUE_URL"),
        ("InvalidSecurity", "https"),
    ],
)
async def test_what_an_operator_has_to_mend_says_so(code: str, says: str, nursery: trio.Nursery) -> None:
    url = await Server(lambda operation, number: error(code, 403, "hmac: x-amz-security-token:TOP")).start(nursery)
    async with sqs.opened(settings(url), polls=1) as queue:
        with pytest.raises(QueueMisconfigured, match=says) as caught:
            await queue.receive(limit=1, wait=0, visibility=30)
    if code == "SignatureDoesNotMatch":
        assert "TOP" not in str(caught.value)


@one_road
@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("InvalidParameterValue", "One or more parameters are invalid. Reason: Message must be shorter than 1024 bytes.",
         MessageTooLong),
        ("InvalidMessageContents", "Invalid characters found.", MessageRefused),
        ("MissingParameter", "The request must contain the parameter MessageGroupId.", MessageRefused),
    ],
)  # fmt: skip
async def test_what_the_sender_has_to_mend(code: str, text: str, kind: type[QueueError], nursery: trio.Nursery) -> None:
    url = await Server(lambda operation, number: error(code, 400, text)).start(nursery)
    async with sqs.opened(settings(url), polls=1) as queue:
        with pytest.raises(QueueError) as caught:
            await queue.send("x")
        assert type(caught.value) is kind
        with pytest.raises(QueueError) as caught:
            await queue.receive(limit=1, wait=0, visibility=30)
        assert type(caught.value) is QueueError


async def test_no_credentials(moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with sqs.opened(settings(moto.url), polls=1) as queue:
        with pytest.raises(QueueMisconfigured, match="no AWS credentials"):
            await queue.attributes()


async def test_an_aws_profile_that_does_not_exist(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(QueueMisconfigured, match="nowhere"):
        async with sqs.opened(settings(moto.url), polls=1):
            pass


@one_road
async def test_a_queue_that_does_not_exist(moto: Moto) -> None:
    async with sqs.opened(settings(moto.url, "nowhere"), polls=1) as queue:
        for call in (queue.attributes, lambda: queue.receive(limit=1, wait=0, visibility=30), lambda: queue.send("x")):
            with pytest.raises(QueueMisconfigured, match="svc init"):
                await call()


# Answers


@pytest.mark.expects_errors
async def test_one_message_that_cannot_be_read_does_not_lose_the_others(nursery: trio.Nursery) -> None:
    good = {"MessageId": "1", "ReceiptHandle": "h", "Body": "x"}
    odd = {
        "MessageId": "2", "ReceiptHandle": "i", "Body": "y",
        "Attributes": {"ApproximateReceiveCount": "many", "SentTimestamp": "99999999999999999999"},
        "MessageAttributes": {"b": {"DataType": "Binary", "BinaryValue": "AAE="}},
    }  # fmt: skip
    bad = {"MessageId": "3", "Body": "z"}
    url = await Server(lambda operation, number: answer({"Messages": [bad, good, odd]})).start(nursery)
    async with sqs.opened(settings(url), polls=1) as queue:
        first, second = await queue.receive(limit=10, wait=0, visibility=30)
    assert first.message == Message("1", "x")
    assert second.message == Message("2", "y", {"b": b"\x00\x01"})
    assert "receipt" not in repr(first)


@one_road
@pytest.mark.parametrize(
    ("code", "text", "gone"),
    [
        ("ReceiptHandleIsInvalid", "", True),
        ("AWS.SimpleQueueService.MessageNotInflight", "", True),
        ("InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid. Reason: Message does not exist or is "
         "not available for visibility timeout change.", True),
        ("InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
         True),
        ("InvalidParameterValue", "Value 43200 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout "
         "for the message is beyond the limit [43200 seconds]", False),
        ("InvalidParameterValueException", "Reason: The receipt handle has expired.", True),
        ("InternalError", "", False),
        ("RequestThrottled", "", False),
    ],
)  # fmt: skip
def test_which_refusals_mean_that_the_lease_is_gone(code: str, text: str, gone: bool) -> None:
    assert wire.refusal(code, text).gone is gone


@one_road
def test_a_refusal_does_not_quote_the_handle() -> None:
    answer = {"Failed": [{"Id": "0", "Code": "X", "Message": 'The handle "secret" is wrong'}]}
    assert answers.unconfirmed("deleting", answer, ["secret"])["secret"].text == 'The handle "…" is wrong'


# Dead letters

TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"


@every_road
async def test_a_dead_letter_keeps_attributes_and_their_types(moto: Moto, queue_name: str) -> None:
    here = settings(moto.url, queue_name, sqs_dlq_name=f"{queue_name}-dead")
    created = await creation.create(here)
    native = {
        "n": {"DataType": "Number.float", "StringValue": "1.5"},
        "b": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"},
        "s": {"DataType": "String", "StringValue": "text"},
    }
    async with sqs.opened(here, polls=1) as queue:
        assert await queue.dead_letter(Received(Message("id", "body"), "h", native, TRACE), "why " * 1000)
    at = here.model_copy(update={"sqs_queue_url": created.dead_letter_url})
    async with sqs.opened(at, polls=1) as dead:
        [letter] = await dead.receive(limit=1, wait=1, visibility=30)
    reason = {"DataType": "String", "StringValue": ("why " * 1000)[: wire.MAX_REASON]}
    of_what = {"DataType": "String", "StringValue": "id"}
    assert letter.native == {**native, "RejectReason": reason, "RejectedMessageId": of_what}
    assert letter.trace_header == TRACE
    assert letter.message.body == "body"


@one_road
def test_a_reason_that_would_break_a_limit_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    ten = {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(10)}
    assert wire.dead_letter_attributes(Received(Message("id", "body"), "h", ten), "because") == ten
    del ten["a9"]  # the reason goes before the id
    assert set(wire.dead_letter_attributes(Received(Message("id", "body"), "h", ten), "because")) == {
        *ten,
        "RejectReason",
    }
    assert "RejectedMessageId" not in wire.dead_letter_attributes(Received(Message("\x00", "body"), "h", {}), "because")
    large = Received(Message("id", "x" * wire.MAX_MESSAGE_BYTES), "h", {})
    assert wire.dead_letter_attributes(large, "because") == {}
    assert caplog.text.count("because") == 2


@one_road
async def test_the_redrive_policy_is_read_once_for_many_dead_letters(nursery: trio.Nursery) -> None:
    policy = json.dumps({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": "4"})

    def respond(operation: str, number: int) -> bytes:
        match operation, number:
            case "GetQueueAttributes", _:
                return answer({"Attributes": {"RedrivePolicy": policy}})
            case "GetQueueUrl", 1:  # with the account; an emulator may know no accounts
                return error("QueueDoesNotExist")
            case "GetQueueUrl", _:
                return answer({"QueueUrl": "http://x/dead"})
            case "SendMessage", 3:  # somebody has deleted the dead-letter queue
                return error("QueueDoesNotExist")
            case _:
                return answer({"MessageId": "1"})

    server = Server(respond)
    async with sqs.opened(settings(await server.start(nursery)), polls=1) as queue:
        for _ in range(2):
            assert await queue.dead_letter(Received(Message("id", "body"), "h"), "why")
        assert queue.max_receive_count == 4
        assert server.requests == {"GetQueueAttributes": 1, "GetQueueUrl": 2, "SendMessage": 2}
        with pytest.raises(QueueMisconfigured, match="redrive policy"):
            await queue.dead_letter(Received(Message("id", "body"), "h"), "why")
        assert await queue.dead_letter(Received(Message("id", "body"), "h"), "why")
        assert server.requests["GetQueueAttributes"] == 2


# svc init


@one_road
async def test_create_makes_what_is_absent_and_leaves_what_is_there(moto: Moto, queue_name: str) -> None:
    plain = settings(moto.url, queue_name, sqs_visibility_timeout_seconds=77)
    first = await creation.create(plain, messages=2)
    assert (first.queue_is_new, first.dead_letter_url, first.redrive, len(first.sent)) == (True, None, "none", 2)
    assert first.queue_url.endswith(f"/{queue_name}")

    more = plain.model_copy(
        update={"sqs_dlq_name": f"{queue_name}-dead", "sqs_max_receive_count": 3, "sqs_visibility_timeout_seconds": 5}
    )
    second = await creation.create(more)
    assert (second.queue_is_new, second.dead_letter_is_new, second.redrive) == (False, True, "set")
    third = await creation.create(more.model_copy(update={"sqs_max_receive_count": 9}))
    assert (third.queue_is_new, third.dead_letter_is_new, third.redrive, third.sent) == (False, False, "kept", ())

    async with sqs.opened(plain, polls=1) as queue:
        attributes = await queue.attributes()
        assert queue.max_receive_count == 3
        assert (attributes["VisibilityTimeout"], attributes["ApproximateNumberOfMessages"]) == ("77", "2")
        bodies = [delivery.message.body for delivery in await queue.receive(limit=10, wait=1, visibility=30)]
        assert bodies == ["first message 1 of 2", "first message 2 of 2"]


@one_road
async def test_create_fifo(moto: Moto, queue_name: str) -> None:
    here = settings(moto.url, f"{queue_name}.fifo", sqs_dlq_name=f"{queue_name}-dead.fifo")
    created = await creation.create(here, messages=1)
    again = await creation.create(here, messages=1)
    assert (created.redrive, again.redrive, len({*created.sent, *again.sent})) == ("set", "kept", 2)
    async with sqs.opened(here, polls=1) as queue:
        attributes = await queue.attributes()
    assert (attributes["FifoQueue"], attributes["ContentBasedDeduplication"]) == ("true", "true")
    assert attributes["ApproximateNumberOfMessages"] == "2"


@one_road
@pytest.mark.parametrize(
    ("name", "dead", "says"),
    [
        ("q.fifo", "dead", "must end in"),
        ("q", "dead.fifo", "must not end in"),
        ("q", "q", "itself"),
    ],
)
async def test_create_refuses_names_that_cannot_work(name: str, dead: str | None, says: str) -> None:
    with pytest.raises(QueueMisconfigured, match=says):
        await creation.create(settings("http://127.0.0.1:1", name, sqs_dlq_name=dead))


async def test_create_fails_plainly_when_nothing_is_there() -> None:
    with trio.fail_after(4), pytest.raises(QueueUnavailable, match="cannot be reached"):
        await creation.create(settings("http://127.0.0.1:1"))


# Opening and closing


@pytest.mark.parametrize("after", [0, 0.05, 0.1, 0.15, 0.3])
async def test_it_can_be_cut_off_at_any_moment_and_leaves_nothing_behind(
    after: float, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening takes some 0.1 s, the first call some 0.05 s more: reading certificates, connecting. (A call that was cut off there
    used to go on until its read timeout, after 12 or 23 s.)"""
    url = await Server(lambda operation, number: None).start(nursery)
    with trio.fail_after(after + 5), trio.move_on_after(after) as scope:
        async with sqs.opened(settings(url), polls=3) as queue, trio.open_nursery() as calls:
            for _ in range(3):
                calls.start_soon(lambda: queue.receive(limit=1, wait=10, visibility=30))
            calls.start_soon(queue.attributes)
    assert scope.cancelled_caught
    gc.collect()  # what is left open complains when it is collected
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@every_road
async def test_calls_that_were_cut_off_leave_the_client_usable(nursery: trio.Nursery) -> None:
    def respond(operation: str, number: int) -> bytes | None:
        return None if operation == "ReceiveMessage" else answer({"Attributes": {"QueueArn": "a"}})

    url = await Server(respond).start(nursery)
    async with sqs.opened(settings(url), polls=2) as queue:
        for _ in range(20):  # ten times as many as there are connections
            with trio.move_on_after(0.02):
                await queue.receive(limit=1, wait=10, visibility=30)
        with pytest.raises(QueueTimeout):  # and not: no connection was free
            await queue.receive(limit=1, wait=-4, visibility=30)
        with trio.fail_after(4):
            await queue.attributes()


@pytest.mark.skipif("asyncio" not in ROADS, reason="Trio tells of a cancellation at every step")
async def test_a_call_that_swallows_its_cancellation_is_cancelled_again() -> None:
    import trio_asyncio

    swallowed = 0

    async def deaf() -> str:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
        return "ended"

    async with trio_asyncio.open_loop() as loop:
        with trio.fail_after(10), trio.move_on_after(0.1) as scope:
            assert await sdk._ended(loop.create_task(deaf()), loop) == "ended"
        assert swallowed == 2
        assert scope.cancel_called
        assert not scope.cancelled_caught  # it did end: what it brought is not thrown away


async def test_what_is_raised_inside_comes_out_as_it_is(moto: Moto) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with sqs.opened(settings(moto.url), polls=1):
            raise KeyError("mine")


async def test_a_delete_does_not_wait_for_the_polls(moto: Moto, queue_name: str) -> None:
    here = settings(moto.url, queue_name)
    await creation.create(here)
    async with sqs.opened(here, polls=5) as queue, trio.open_nursery() as polls:
        for _ in range(5):
            polls.start_soon(lambda: queue.receive(limit=1, wait=2, visibility=30))
        await trio.sleep(0.2)
        with trio.fail_after(1.5):
            await queue.delete(["no such handle"])


# The two roads


@every_road
async def test_stray_asyncio_errors_are_logged_and_kill_nothing(
    road: aws_client.Road, moto: Moto, queue_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if road != "asyncio":
        return
    import trio_asyncio

    here = settings(moto.url, queue_name)
    await creation.create(here)

    async def fail() -> None:
        raise RuntimeError("nobody waits for me, and this is a secret")

    def fail_at_once() -> None:
        raise ValueError("secret")

    async with sqs.opened(here, polls=1) as queue:
        loop = trio_asyncio.current_loop.get()
        task: asyncio.Task[None] | None = loop.create_task(fail())
        loop.call_soon(fail_at_once)
        await trio.sleep(0.1)
        assert task is not None
        assert task.done()
        task = None
        gc.collect()  # asyncio complains when a failed task is collected
        await queue.send("still here")
    assert caplog.text.count("asyncio:") == 2
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


@one_road
def test_which_road_is_taken() -> None:
    assert [sdk.sdk_road(asked, (3, 13)) for asked in ("auto", "direct", "asyncio", "native")] == [
        "asyncio",
        "asyncio",
        "asyncio",
        "native",
    ]
    assert [sdk.sdk_road(asked, (3, 14)) for asked in ("auto", "direct", "native")] == ["native"] * 3
    with pytest.raises(QueueMisconfigured, match="leave SQS_TRANSPORT unset"):
        sdk.sdk_road("asyncio", (3, 14))
    with pytest.raises(QueueMisconfigured, match=r"svc\[native\]"):
        sdk.sdk_road("native", (3, 13), lambda package: None)


async def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(QueueMisconfigured, match="AWS_CA_BUNDLE"):
        async with sqs.opened(settings("https://127.0.0.1:1"), polls=1) as queue:
            await queue.attributes()
