"""Every signature is botocore's own, to the letter; and what a client sends carries one."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings
from svc.sqs import queue as sqs
from svc.sqs.signing import Form, Signer, can_sign
from tests.roads import SLICED

HEADERS = {
    "X-Amz-Target": "AmazonSQS.ReceiveMessage",
    "Content-Type": "application/x-amz-json-1.0",
    "X-Amzn-Query-Mode": "true",
    "User-Agent": "svc/1",
    "amz-sdk-invocation-id": "f00",
}


def by_botocore(headers: dict[str, str], body: bytes, url: str, keys: Any, region: str) -> dict[str, str]:
    """The headers that botocore adds to those of `headers` that we sign too (it signs more than AWS asks for)."""
    signed = {name: value for name, value in headers.items() if name.lower().startswith(("x-amz-", "content-type"))}
    request = AWSRequest("POST", url, signed, data=body)
    SigV4Auth(keys, "sqs", region).add_auth(request)
    return {name: value for name, value in request.headers.items() if name not in signed}


@pytest.mark.parametrize(
    "url",
    ["https://sqs.eu-central-1.amazonaws.com", "https://SQS.example.org:443/", "http://localhost:4566", "http://[::1]:4566/",
     "https://sqs.example.org:80"],
)  # fmt: skip
@pytest.mark.parametrize("token", [None, "a//token=="])
@pytest.mark.parametrize("body", [b"{}", '{"MessageBody": "ü\\u0000"}'.encode(), b"x" * 100_000], ids=len)
def test_it_is_botocores(url: str, token: str | None, body: bytes) -> None:
    signer = Signer(url)
    for secret in ("secret", "other/+ secret"):
        for region in ("eu-central-1", "us-gov-west-1"):
            keys = Credentials("AKIDEXAMPLE", secret, token)
            theirs = by_botocore(HEADERS, body, url, keys, region)
            now = datetime.strptime(theirs["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            ours = signer.headers(HEADERS.items(), body, keys=keys, region=region, service="sqs", now=now)
            assert ours == theirs


def test_blanks_in_a_value_are_folded_as_the_rules_say() -> None:
    keys = Credentials("AKIDEXAMPLE", "secret")
    headers = {"X-Amz-Target": "  AmazonSQS.Send   Message ", "Content-Type": "a/b"}
    theirs = by_botocore(headers, b"", "http://x", keys, "us-east-1")
    now = datetime.strptime(theirs["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert (
        Signer("http://x").headers(headers.items(), b"", keys=keys, region="us-east-1", service="sqs", now=now)
        == theirs
    )


def test_the_key_is_made_anew_each_day() -> None:
    signer, keys = Signer("http://x"), Credentials("AKIDEXAMPLE", "secret")

    def signature(day: int, signer: Signer) -> str:
        now = datetime(2026, 1, day, 12, tzinfo=UTC)
        return signer.headers([], b"", keys=keys, region="r", service="sqs", now=now)["Authorization"]

    first = signature(1, signer)
    assert signature(2, signer) == signature(2, Signer("http://x")) != first
    assert signature(1, signer) == first


def test_a_form_signs_what_changed_and_nothing_else() -> None:
    url, sent = "https://sqs.eu-central-1.amazonaws.com", [("X-Amz-Target", "AmazonSQS.ReceiveMessage")]
    form = Form(url, sent, region="r", service="sqs")
    one, other = Credentials("AKID", "secret"), Credentials("AKID", "another", "token")
    seen = []
    for keys, second, body in [
        (one, 0, b"a"), (one, 0, b"a"), (one, 0, b"b"), (one, 0, b"a"), (one, 1, b"a"), (other, 1, b"a"),
        (other, 86_400, b"a"), (one, 86_400, b"a"), (one, 0, b"a"),
    ]:  # fmt: skip
        lines = dict(line.split(": ", 1) for line in form.lines(body, keys=keys, second=second).splitlines())
        now = datetime.fromtimestamp(second, UTC)
        assert lines == Signer(url).headers(sent, body, keys=keys, region="r", service="sqs", now=now)
        seen.append(lines["Authorization"])
    assert seen[0] == seen[1] == seen[3] == seen[8]
    assert len(set(seen)) == 6


def test_what_is_left_to_botocore() -> None:
    assert can_sign("https://sqs.us-east-1.amazonaws.com")
    assert can_sign("http://localhost:4566/")
    assert not can_sign("http://gateway/sqs")
    assert not can_sign("http://gateway/?a=b")


def test_no_key_shows() -> None:
    signer = Signer("http://x")
    signer.headers(
        [], b"", keys=Credentials("AKID", "verysecret"), region="r", service="sqs", now=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert "verysecret" not in repr(signer._scope)


@pytest.mark.parametrize("road", SLICED)
@pytest.mark.parametrize("path", ["", "/behind/a gateway"])
@pytest.mark.parametrize("token", [None, "session-token"])
async def test_what_a_client_sends_is_signed(
    road: str, path: str, token: str | None, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    seen: list[tuple[dict[str, str], bytes]] = []

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        async with stream:
            async for some in stream:
                received += some
                head, _, body = received.partition(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
                lower = {name.lower(): value for name, value in headers.items()}
                if len(body) < int(lower.get("content-length", 1 << 30)):
                    continue
                seen.append((lower, body))
                received = b""
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + b'{"Attributes":{"QueueArn":"a"}}'
                )

    [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    here = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    url = f"{here}{path.replace(' ', '%20')}"
    settings = Settings(sqs_queue_url=f"{here}/000000000000/q", aws_endpoint=url, sqs_transport=road)
    if road == "direct" and path:
        with pytest.raises(QueueMisconfigured, match="an endpoint with a path"):
            async with sqs.opened(settings, polls=1):
                pass
        return
    async with sqs.opened(settings, polls=1) as queue:
        await queue.attributes()
    ((headers, body),) = seen
    assert headers.get("x-amz-security-token") == token
    listed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-date", "x-amz-target", *(["x-amz-security-token"] if token else [])} <= set(listed)
    assert ("x-amzn-query-mode" in listed) == bool(path)  # botocore signs it, we do not: this shows who has signed
    # Botocore's signature of what has arrived, of the headers that are listed.
    request = AWSRequest("POST", url + ("" if path else "/"), {name: headers[name] for name in listed}, data=body)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(Credentials("test", "test", token), "sqs", "us-east-1")
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    assert headers["authorization"].endswith(f"Signature={signature}")
