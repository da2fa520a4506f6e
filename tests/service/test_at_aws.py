"""`svc run` with nothing but the URL of a queue at AWS and a processor: a real process, which looks the host up, checks its
certificate, and signs; behind that host stands a relay to moto, which verifies every signature with botocore's own code."""

import json
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from svc.devstack.stack import Moto
from svc.settings import load
from svc.sqs import creation
from svc.sqs import queue as sqs
from tests.aws_services import ASSUMED, KEY, SECRET, Aws
from tests.live import Instance
from tests.sqs.test_tls import certificate

REGION = "eu-central-1"
HOST, STS = f"sqs.{REGION}.amazonaws.com", f"sts.{REGION}.amazonaws.com"


@dataclass
class AtAws:
    """What stood at AWS has seen."""

    port: int = 0
    names: set[str] = field(default_factory=set)
    """For which hosts a certificate was asked."""
    verified: list[tuple[str, str]] = field(default_factory=list)
    """Host and action of the requests whose signature holds."""
    refused: list[str] = field(default_factory=list)

    def actions(self, host: str) -> set[str]:
        return {action for at, action in list(self.verified) if at == host}


def signature_holds(host: str, path: str, headers: dict[str, str], body: bytes) -> bool:
    """As botocore signs this request with the secret that the service was given."""
    authorization = headers["authorization"]
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
    service = host.partition(".")[0]
    if scope[0] != KEY or scope[2:] != [REGION, service, "aws4_request"]:
        return False
    signed = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    if not {"host", "x-amz-date"} <= set(signed):
        return False
    again = AWSRequest("POST", f"https://{host}{path}", {name: headers[name] for name in signed}, data=body)
    again.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(Credentials(KEY, SECRET), service, REGION)
    expected = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
    return authorization.endswith(f"Signature={expected}")


@contextmanager
def at_aws(context: ssl.SSLContext, moto: Moto) -> Iterator[AtAws]:
    behind = urlsplit(moto.url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            action = headers.get("x-amz-target", "AWS.sts").rpartition(".")[2]
            if not signature_holds(headers["host"], self.path, headers, body):
                seen.refused.append(f"{headers['host']} {action}")
                self._answer(403, b"{}", "application/x-amz-json-1.0")
                return
            seen.verified.append((headers["host"], action))
            if headers["host"] != HOST:
                inner = f"<GetCallerIdentityResult><Arn>{ASSUMED}</Arn></GetCallerIdentityResult>"
                self._answer(
                    200, Aws.xml(f"<GetCallerIdentityResponse>{inner}</GetCallerIdentityResponse>"), "text/xml"
                )
                return
            upstream = HTTPConnection(str(behind.hostname), behind.port, timeout=40)
            upstream.request("POST", self.path, body, {**self.headers, "Connection": "close"})
            answer = upstream.getresponse()
            self._answer(answer.status, answer.read(), answer.headers["Content-Type"])
            upstream.close()

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: object, client_address: object) -> None:
            assert not isinstance(request, tuple)
            with context.wrap_socket(request, server_side=True) as encrypted:  # type: ignore[arg-type]
                super().finish_request(encrypted, client_address)

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away

    def named(_: object, name: str | None, __: object) -> None:
        seen.names.add(name or "")

    context.sni_callback = named
    server = Server(("127.0.0.1", 0), Handler)
    seen = AtAws(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@asynccontextmanager
async def connect_proxy(port: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """What `HTTPS_PROXY` names: whatever is asked for, it leads to this port. Its URL, and the lines that asked."""
    asked: list[bytes] = []

    async def carry(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := await stream.receive_some()):
            head += more
        asked.append(head.partition(b"\r\n")[0])
        far = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
            try:
                async for some in source:
                    await target.send_all(bytes(some))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            both.cancel()

        with trio.CancelScope() as both:
            async with stream, far, trio.open_nursery() as carrying:
                carrying.start_soon(pump, stream, far)
                await pump(far, stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, carry, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", asked
        nursery.cancel_scope.cancel()


@pytest.fixture
async def behind(moto: Moto, queue_name: str) -> AsyncIterator[tuple[str, sqs.SqsQueue]]:
    """The URL at AWS, and the queue as it is reached past it."""
    url = f"{moto.url}/123456789012/{queue_name}"
    settings = load({"SQS_QUEUE_URL": url, "AWS_ENDPOINT": moto.url, "AWS_REGION": REGION})
    await creation.create(settings)
    async with sqs.opened(settings, polls=1) as queue:
        yield f"https://{HOST}/123456789012/{queue_name}", queue


async def processes_one(service: Instance, queue: sqs.SqsQueue) -> None:
    await service.started()
    await queue.send("from somebody")
    await service.figure("messages_processed", 1, within=40)
    service.signal(15)
    assert await service.exit_code() == 0


def only(url: str, authority: Path) -> dict[str, str]:
    """The queue, the processor, keys and whom to trust; that there is no etcd, and (for a quick end) short polls."""
    return {
        "SQS_QUEUE_URL": url, "MESSAGE_PROCESSOR": "svc.processors:simulated", "SIMULATED_WORK_SECONDS": "0",
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_CA_BUNDLE": str(authority), "ETCD_ENDPOINTS": "off",
        "SQS_WAIT_TIME_SECONDS": "1",
    }  # fmt: skip


async def test_nothing_but_the_queues_url(moto: Moto, behind: tuple[str, sqs.SqsQueue], tmp_path: Path) -> None:
    url, queue = behind
    authority, context = certificate(tmp_path, HOST, STS)
    with at_aws(context, moto) as seen:
        service = Instance(
            {**only(url, authority), "NAMED_HOSTS": f"{HOST}={seen.port},{STS}={seen.port}"},
            prefix=[sys.executable, "-m", "tests.named_hosts"],
        )
        try:
            await processes_one(service, queue)
        finally:
            service.end()
    assert (seen.refused, seen.names) == ([], {HOST, STS})
    assert {"ReceiveMessage", "DeleteMessageBatch", "GetQueueAttributes"} <= seen.actions(HOST)
    assert [line["event"] for line in service.logs if "AWS knows us as" in line["event"]] == [
        f"AWS knows us as {ASSUMED} (credentials: the environment (AWS_ACCESS_KEY_ID))"
    ]
    assert SECRET not in "".join(service.output)


@pytest.mark.slow
async def test_a_name_and_a_region_behind_a_proxy(moto: Moto, behind: tuple[str, sqs.SqsQueue], tmp_path: Path) -> None:
    url, queue = behind
    authority, context = certificate(tmp_path, HOST, STS)
    with at_aws(context, moto) as seen:
        async with connect_proxy(seen.port) as (proxy, asked):
            named = {"SQS_QUEUE_URL": url.rpartition("/")[2], "AWS_DEFAULT_REGION": REGION, "HTTPS_PROXY": proxy}
            service = Instance({**only(url, authority), **named})
            try:
                await processes_one(service, queue)
            finally:
                service.end()
    assert (seen.refused, seen.names) == ([], {HOST, STS})
    assert {"GetQueueUrl", "ReceiveMessage"} <= seen.actions(HOST)
    assert {line.split(b" ")[1] for line in asked} == {f"{HOST}:443".encode(), f"{STS}:443".encode()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [(HOST,), ("sqs.eu-west-1.amazonaws.com",)], ids=["another authority", "another host"]
)
async def test_who_is_not_aws_gets_no_request(
    moto: Moto, behind: tuple[str, sqs.SqsQueue], tmp_path: Path, names: tuple[str, ...]
) -> None:
    url, _ = behind
    authority, context = certificate(tmp_path, *names)
    if names == (HOST,):
        authority, _ = certificate(tmp_path, HOST, days=2)
    with at_aws(context, moto) as seen:
        service = Instance(
            {**only(url, authority), "NAMED_HOSTS": f"{HOST}={seen.port}"},
            prefix=[sys.executable, "-m", "tests.named_hosts"],
        )
        try:
            await service.started()
            body = await service.reaches("unhealthy")
            assert "certificate" in body["queue_error"], json.dumps(body)
        finally:
            service.end()
    assert (seen.verified, seen.refused) == ([], [])
