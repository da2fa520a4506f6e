"""The direct road: what is sent and how often, what answers it, whose clock signs it; and where it is not taken."""

import base64
import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import trio
import trio.testing
from botocore import exceptions as boto
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoKeys

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings
from svc.sqs import answers, aws_client, direct
from svc.sqs.aws_client import Pool
from svc.sqs.credential_sources import Found, Keys
from svc.sqs.credentials import Credentials
from svc.sqs.handover import Handover, NotDirect, handover
from svc.sqs.messages import received
from tests.sqs.test_pool import Memory

URL = "https://sqs.eu-central-1.amazonaws.com"
HERE = Handover(URL, "eu-central-1", "svc/1 test", None)

Answer = tuple[int, Mapping[str, str], object]
Answering = Callable[[str, dict[str, Any], int], Answer | bytes | None]
"""From the operation, the request and its number to an answer: bytes as they are, or status, headers and a body."""


def keys(name: str = "AKIDEXAMPLE", token: str | None = None) -> Credentials:
    found = Found(Keys(name, "secret", token), "a test")
    return Credentials(lambda: found, in_thread=lambda look, deliver: deliver(direct_value(look())))


def direct_value(found: Found) -> Any:
    import outcome

    return outcome.Value(found)


class World(Memory):
    """Reads requests, and answers them."""

    def __init__(self, nursery: trio.Nursery, answering: Answering) -> None:
        super().__init__(nursery)
        self._answering = answering
        self.seen: list[tuple[dict[str, str], bytes]] = []

    async def _serve(self, number: int, server: trio.StapledStream) -> None:
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await server.receive_some()
                    if not more:
                        return
                    data += bytes(more)
                head, _, data = data.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                assert first == "POST / HTTP/1.1"
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                while len(data) < int(headers["content-length"]):
                    data += bytes(await server.receive_some())
                body, data = data[: int(headers["content-length"])], data[int(headers["content-length"]) :]
                self.seen.append((headers, body))
                operation = headers["x-amz-target"].partition(".")[2]
                answer = self._answering(operation, json.loads(body), len(self.seen))
                if answer == b"":
                    return
                if answer is not None:
                    await server.send_all(answer if isinstance(answer, bytes) else rendered(*answer))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(server)

    @property
    def operations(self) -> list[str]:
        return [headers["x-amz-target"].partition(".")[2] for headers, _ in self.seen]


def rendered(status: int, headers: Mapping[str, str], body: object) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


def refused(code: str, status: int = 400, **headers: str) -> Answer:
    return status, headers, {"__type": f"com.amazonaws.sqs#{code}", "message": "what SQS says"}


# What is sent


@pytest.mark.parametrize("token", [None, "session//token=="])
async def test_a_request_is_signed_as_botocore_signs_it(
    token: str | None, nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = World(nursery, lambda *_: (200, {}, {"Messages": []}))
    async with direct.opened(HERE, keys(token=token), [(1, 1)], world=world) as [call]:
        for operation, request in (
            ("receive_message", {"QueueUrl": f"{URL}/1/q", "MaxNumberOfMessages": 10}),
            ("delete_message_batch", {"QueueUrl": f"{URL}/1/q", "Entries": [{"Id": "0", "ReceiptHandle": "ü/+="}]}),
            ("delete_message_batch", {"QueueUrl": "half", "Entries": [{"Id": "0", "ReceiptHandle": "half \ud800"}]}),
            ("change_message_visibility_batch", {"Entries": [{"Id": "0", "VisibilityTimeout": 30}]}),
            ("send_message", {"MessageBody": "\N{GRINNING FACE} ü \x01"}),
        ):
            await call(operation, **request)
            headers, body = world.seen[-1]
            assert json.loads(body) == request
            listed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
            assert {"content-type", "host", "x-amz-date", "x-amz-target"} <= set(listed)
            assert headers.get("x-amz-security-token") == token
            assert token is None or "x-amz-security-token" in listed
            again = AWSRequest("POST", f"{URL}/", {name: headers[name] for name in listed}, data=body)
            again.context["timestamp"] = headers["x-amz-date"]
            auth = SigV4Auth(BotoKeys("AKIDEXAMPLE", "secret", token), "sqs", "eu-central-1")
            signature = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
            assert headers["authorization"].endswith(f"Signature={signature}")
    assert world.operations == [
        "ReceiveMessage",
        *["DeleteMessageBatch"] * 2,
        "ChangeMessageVisibilityBatch",
        "SendMessage",
    ]


async def test_bytes_are_sent_in_base64(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = World(nursery, lambda *_: (200, {}, {"MessageId": "1"}))
    async with direct.opened(HERE, keys(), [(1, 1)], world=world) as [call]:
        await call("send_message", MessageAttributes={"b": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}})
    sent = json.loads(world.seen[0][1])["MessageAttributes"]["b"]["BinaryValue"]
    assert base64.b64decode(sent) == b"\x00\xff"


async def test_no_more_calls_at_once_than_there_may_be(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = World(nursery, lambda *_: None)
    async with direct.opened(HERE, keys(), [(2, 1), (1, 1)], world=world) as [polls, others]:
        with trio.move_on_after(5):
            async with trio.open_nursery() as calls:
                for _ in range(5):
                    calls.start_soon(lambda: polls("receive_message"))
                calls.start_soon(lambda: others("get_queue_attributes"))
        assert sorted(world.operations) == ["GetQueueAttributes", "ReceiveMessage", "ReceiveMessage"]
        assert len(world.closed) == 3


# How often


@pytest.mark.parametrize(
    "trouble",
    [
        refused("InternalError", 500), (502, {}, b"<html>Bad gateway</html>"), (503, {}, b""), (504, {}, b"x"),
        refused("RequestThrottled"), refused("ThrottlingException"), (429, {}, {}), b"",
    ],
    ids=str,
)  # fmt: skip
async def test_a_call_has_a_second_attempt_and_a_receive_has_none(
    trouble: Answer | bytes, nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = World(nursery, lambda operation, request, number: trouble if number == 1 else (200, {}, {"ok": "1"}))
    async with direct.opened(HERE, keys(), [(1, 2)], world=world) as [call]:
        with pytest.raises((answers.ErrorAnswer, boto.ConnectionClosedError)):
            await call("receive_message")
        assert world.operations == ["ReceiveMessage"]
        world.seen.clear()
        assert await call("delete_message_batch") == {"ok": "1"}
        assert world.operations == ["DeleteMessageBatch"] * 2


@pytest.mark.parametrize("code", ["AccessDenied", "QueueDoesNotExist", "InvalidParameterValue", "OverLimit"])
async def test_what_would_fail_again_is_not_tried_again(
    code: str, nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = World(nursery, lambda *_: refused(code))
    async with direct.opened(HERE, keys(), [(1, 2)], world=world) as [call]:
        with pytest.raises(answers.ErrorAnswer, match=code):
            await call("delete_message_batch")
    assert len(world.seen) == 1


async def test_what_is_no_answer_is_not_tried_again(nursery: trio.Nursery, autojump_clock: object) -> None:
    for odd in (b"220 smtp\r\n\r\n", rendered(200, {}, b"<html>"), rendered(200, {}, []), rendered(204, {}, b"")):
        world = World(nursery, lambda *_, odd=odd: odd)  # type: ignore[misc]
        async with direct.opened(HERE, keys(), [(1, 2)], world=world) as [call]:
            with pytest.raises(answers.OddAnswer):
                await call("delete_message_batch")
        assert len(world.seen) == 1


# Whose clock


@pytest.mark.parametrize(
    "code", ["RequestTimeTooSkewed", "RequestExpired", "InvalidSignatureException", "SignatureDoesNotMatch"]
)
@pytest.mark.parametrize("hours", [-30, 2])
async def test_a_request_that_is_refused_for_our_clock_is_signed_by_theirs(
    code: str, hours: int, nursery: trio.Nursery, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def moment(headers: dict[str, str]) -> datetime:
        return datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    def respond(operation: str, request: dict[str, Any], number: int) -> Answer:
        theirs = datetime.now(UTC) + timedelta(hours=hours)
        told = {"Date": format_datetime(theirs, usegmt=True)}
        if abs((moment(world.seen[-1][0]) - theirs).total_seconds()) > 300:
            return refused(code, 403, **told)
        return 200, told, {"Messages": []}

    world = World(nursery, respond)
    async with direct.opened(HERE, keys(), [(1, 1)], world=world) as [call]:
        for _ in range(3):
            assert await call("receive_message") == {"Messages": []}
    assert len(world.seen) == 4  # the first one twice, a receive too: what is refused was not acted on
    assert caplog.text.count("clock") == 1


async def test_a_clock_that_is_set_meanwhile_is_believed_again() -> None:
    clock = direct.Clock()
    assert clock.learn(format_datetime(datetime.now(UTC) + timedelta(hours=1)))
    assert abs((clock.now() - datetime.now(UTC)).total_seconds() - 3600) < 2
    assert clock.is_corrected
    assert not clock.learn(format_datetime(datetime.now(UTC) + timedelta(hours=1, seconds=30)))
    assert clock.learn(format_datetime(datetime.now(UTC)))
    assert not clock.is_corrected
    for nonsense in (None, "", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT", "\x00"):
        assert not clock.learn(nonsense)


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 +0100",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2030 00:00:00 +99999999999999999999",
    ],
)
async def test_a_date_at_the_end_of_the_calendar_is_not_believed(date: str) -> None:
    clock = direct.Clock()
    assert not clock.learn(date)
    assert not clock.is_corrected


async def test_a_wrong_signature_without_a_wrong_clock_is_an_error(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = World(
        nursery, lambda *_: refused("SignatureDoesNotMatch", 403, Date=format_datetime(datetime.now(UTC), usegmt=True))
    )
    async with direct.opened(HERE, keys(), [(1, 1)], world=world) as [call]:
        with pytest.raises(answers.ErrorAnswer):
            await call("receive_message")
    assert len(world.seen) == 1


async def test_credentials_that_are_refused_are_looked_for_again(nursery: trio.Nursery, autojump_clock: object) -> None:
    names = iter(["OLD", "NEW", "NEWER"])

    def look() -> Found:
        return Found(Keys(next(names), "secret", None), "a test")

    found = Credentials(look, in_thread=lambda look, deliver: deliver(direct_value(look())))

    def respond(operation: str, request: dict[str, Any], number: int) -> Answer:
        if "Credential=OLD/" in world.seen[-1][0]["authorization"]:
            return refused("ExpiredToken", 403)
        return 200, {}, {"Messages": []}

    world = World(nursery, respond)
    async with direct.opened(HERE, found, [(1, 1)], world=world) as [call]:
        with pytest.raises(answers.ErrorAnswer):
            await call("receive_message")
        await trio.sleep(2)
        assert await call("receive_message") == {"Messages": []}


# Digests


MESSAGE = {
    "MessageId": "1",
    "ReceiptHandle": "h",
    "Body": "This is a test message",
    "MD5OfBody": "fafb00f5732ab283681e124bf8747ed1",
    "MessageAttributes": {
        "test_attribute_name_1": {"DataType": "String", "StringValue": "test_attribute_value_1"},
        "n": {"DataType": "Number", "StringValue": "5"},
        "b": {"DataType": "Binary", "BinaryValue": base64.b64encode(b"\x00\x01").decode()},
    },
}


def by_the_book(entry: dict[str, Any]) -> str:
    import hashlib

    made = b""
    for name, value in sorted(entry["MessageAttributes"].items()):
        binary = "BinaryValue" in value
        content = base64.b64decode(value["BinaryValue"]) if binary else value["StringValue"].encode()
        for part in (name.encode(), value["DataType"].encode()):
            made += len(part).to_bytes(4, "big") + part
        made += (b"\x02" if binary else b"\x01") + len(content).to_bytes(4, "big") + content
    return hashlib.md5(made).hexdigest()


@pytest.mark.expects_errors
def test_a_message_that_was_damaged_on_the_way_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    good = {**MESSAGE, "MD5OfMessageAttributes": by_the_book(MESSAGE)}
    assert len(received({"Messages": [good]})) == 1
    assert len(received({"Messages": [{**good, "MD5OfBody": None, "MD5OfMessageAttributes": None}]})) == 1
    assert not caplog.records
    other = {**good, "MessageId": "2", "ReceiptHandle": "i", "Body": "This is a test massage"}
    changed = {**MESSAGE["MessageAttributes"], "n": {"DataType": "Number", "StringValue": "6"}}  # type: ignore[dict-item]
    third = {**good, "MessageId": "3", "ReceiptHandle": "j", "MessageAttributes": changed}
    assert [one.message.id for one in received({"Messages": [other, good, third]})] == ["1"]
    assert "message 2 is left out" in caplog.text
    assert "MD5OfMessageAttributes" in caplog.text
    assert "massage" not in caplog.text


# Where it is not taken


NOT_DIRECT: dict[str, tuple[dict[str, str], str, str]] = {
    # The environment, the endpoint, and what the log says.
    "a proxy": ({"HTTP_PROXY": "http://127.0.0.1:9"}, "http://sqs.example.org", "an HTTP proxy"),
    "a path": ({}, "http://127.0.0.1:1/gateway", "an endpoint with a path"),
    "signature 4a": ({"AWS_AUTH_SCHEME_PREFERENCE": "sigv4a"}, "http://127.0.0.1:1", "signatures of another kind"),
}


@pytest.mark.parametrize("why", NOT_DIRECT)
async def test_auto_takes_the_sdk_where_the_direct_road_cannot_serve(
    why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment, endpoint, says = NOT_DIRECT[why]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO)
    settings = Settings(aws_endpoint=endpoint)
    async with aws_client.opened(settings, [Pool(1), Pool(1)]) as calls:
        assert len(calls) == 2
    assert caplog.text.count(f"the direct way does not do {says}") == 1
    with pytest.raises(QueueMisconfigured, match=says):
        async with aws_client.opened(settings.model_copy(update={"sqs_transport": "direct"}), [Pool(1)]):
            pass


async def test_auto_is_direct(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with aws_client.opened(Settings(aws_endpoint="http://127.0.0.1:1"), [Pool(1)]):
        pass
    assert "AWS SDK" not in caplog.text


@pytest.mark.parametrize(
    ("environment", "region", "url"),
    [
        ({}, "eu-central-1", "https://sqs.eu-central-1.amazonaws.com"),
        ({}, "cn-north-1", "https://sqs.cn-north-1.amazonaws.com.cn"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "us-east-1", "https://sqs-fips.us-east-1.amazonaws.com"),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "us-east-1", "https://sqs.us-east-1.api.aws"),
        (
            {"AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:4566"},
            "us-east-1",
            "https://sqs.us-east-1.amazonaws.com",
        ),  # asked for
    ],
)
def test_where_it_goes(environment: dict[str, str], region: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = handover(Settings(aws_endpoint="", aws_region=region))
    assert (found.url, found.region) == (url, region)


def test_whose_certificates_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(aws_endpoint="https://127.0.0.1:1")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert str(handover(settings).ca_bundle).endswith("cacert.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/requests.pem")
    assert handover(settings).ca_bundle == "/requests.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/aws.pem")
    assert handover(settings).ca_bundle == "/aws.pem"
    with pytest.raises(NotDirect):
        handover(Settings(aws_endpoint="http://127.0.0.1:1/x"))
