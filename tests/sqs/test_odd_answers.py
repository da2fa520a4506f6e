"""Odd answers over real connections, on every road to SQS that this Python has: what the libraries below make of them is a call's
failure too. (`test_answers.py` gives every odd answer to every call, in memory.)"""

import gc
import gzip
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from svc.cli.main import cli
from svc.consumer.queue import QueueError, QueueMisconfigured, QueueUnavailable
from svc.settings import Settings
from svc.sqs import creation
from svc.sqs import queue as sqs
from svc.sqs.aws_client import Road
from svc.sqs.queue import SqsQueue
from tests.border.odd import MESSAGE, ODD, POISON, said
from tests.roads import ROADS, SLICED
from tests.sqs.small_server import Server, answer

OK = b'{"Attributes": {"QueueArn": "a"}, "Messages": [], "Successful": [{"Id": "0"}], "MessageId": "1"}'


def head(*lines: bytes, length: int | None = len(OK)) -> bytes:
    fields = [*lines, *([] if length is None else [b"Content-Length: %d" % length]), b"Connection: close"]
    return b"\r\n".join([b"HTTP/1.1 200 OK", *fields, b"", b""])


WIRE = {
    "a status that is none": b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\n{}",
    "a status of five figures": b"HTTP/1.1 20000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "nothing but a line": b"\r\n\r\n",
    "zeros": bytes(100),
    "a header without a name": head(b": x") + OK,
    "a header that is a line of its own": head(b"x" * 100_000) + OK,
    "compressed and cut off": head(b"Content-Encoding: gzip", length=30) + gzip.compress(OK)[:30],
    "chunks that are none": head(b"Transfer-Encoding: chunked", length=None) + b"zz\r\n{}\r\n0\r\n\r\n",
    "chunks that end early": head(b"Transfer-Encoding: chunked", length=None) + b"ff\r\n{}",
    "shorter than it says": head(length=1000) + OK,
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\nConnection: close\r\n\r\n" + OK,
    "closed after the status": b"HTTP/1.1 200 OK\r\n",
}
"""Answers that are no HTTP, or not what they say."""

Use = Callable[[SqsQueue], Awaitable[object]]


def settings(url: str, road: Road, name: str = "q") -> Settings:
    return Settings(sqs_queue_url=f"{url}/000000000000/{name}", aws_endpoint=url, sqs_transport=road)


async def receive(queue: SqsQueue) -> object:
    return await queue.receive(limit=10, wait=1, visibility=30)


# httpcore2 leaves an answer that it cannot decode to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning", "ignore:.*PoolByteStream")
@pytest.mark.parametrize("road", SLICED)
async def test_odd_answers_over_the_wire(road: Road, nursery: trio.Nursery) -> None:
    now = b""
    server = Server(lambda operation, number: now)
    url = await server.start(nursery)
    wrong = []
    async with sqs.opened(settings(url, road), polls=1) as queue:

        async def ends_with(name: str, use: Use, kind: type[QueueError]) -> None:
            try:
                with trio.fail_after(9):
                    await use(queue)
            except QueueError as error:
                if not isinstance(error, kind):
                    wrong.append(f"{name}: {type(error).__name__}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
            else:
                wrong.append(f"{name}: taken for good")

        for name, (raw, kind) in ODD.items():
            now = raw.wire
            await ends_with(name, receive, kind)
            if raw.status < 500:  # those are asked for again, after a pause
                await ends_with(f"{name}, deleting", lambda queue: queue.delete(["x"]), kind)
        for name, now in WIRE.items():  # noqa: B007 - the server reads it
            await ends_with(name, receive, QueueUnavailable)
        now = answer({"Messages": [MESSAGE]})
        assert await receive(queue)  # the client is as good as before
    gc.collect()  # what is left to it complains here, and in no other test
    assert wrong == []


@pytest.mark.expects_errors
@pytest.mark.parametrize("road", ROADS)
async def test_a_poison_message_over_the_wire(road: Road, nursery: trio.Nursery) -> None:
    url = await Server(lambda operation, number: said({"Messages": [*POISON.values(), MESSAGE]}).wire).start(nursery)
    async with sqs.opened(settings(url, road), polls=1) as queue:
        [delivery] = await queue.receive(limit=10, wait=1, visibility=30)
    assert delivery.message.id == "good"


@pytest.mark.parametrize("road", SLICED)
async def test_init_says_what_it_met(road: Road, nursery: trio.Nursery) -> None:
    url = await Server(lambda operation, number: ODD["403 and a page in Latin-1"][0].wire).start(nursery)
    with pytest.raises(QueueUnavailable, match=r"looking for queue q: the answer is not SQS's \(HTTP 403"):
        await creation.create(settings(url, road))


@pytest.mark.parametrize("arguments", [["init"], ["dlq", "list"]], ids=" ".join)
async def test_a_command_ends_with_a_sentence(
    arguments: list[str], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await Server(lambda operation, number: ODD["200, nested"][0].wire).start(nursery)
    monkeypatch.setenv("SQS_QUEUE_URL", f"{url}/000000000000/q")
    monkeypatch.setenv("AWS_ENDPOINT", url)
    ended = await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, arguments))
    assert (ended.exit_code, type(ended.exception)) == (1, SystemExit)
    assert "the answer is not SQS's (it is no JSON object)" in ended.output
    assert "Traceback" not in ended.output


# What stands in the way of a connection


# The direct road is not taken where there is a proxy.
@pytest.mark.parametrize("road", [ROADS[1], *SLICED[2:]])
async def test_a_proxy_is_blamed_for_what_is_its_fault(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for proxy in ("http://user:secret@no-such-proxy.invalid:3128", f"http://127.0.0.1:{port}"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        async with sqs.opened(settings("http://sqs.invalid:4566", road), polls=1) as queue:
            with pytest.raises(QueueUnavailable, match="HTTP_PROXY") as caught:
                await receive(queue)
            assert "AWS_ENDPOINT" not in str(caught.value)
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("road", SLICED)
async def test_a_ca_bundle_that_is_none_is_named(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    for path in (tmp_path, text, tmp_path / "nowhere", text / "below"):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
        with pytest.raises(QueueMisconfigured, match=r"certificates for TLS cannot be read .*check AWS_CA_BUNDLE"):
            async with sqs.opened(settings("https://127.0.0.1:1", road), polls=1) as queue:
                await receive(queue)
