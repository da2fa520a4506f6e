"""Real instances of the service as child processes, and what is needed to watch them: logs, API, the queue itself."""

import json
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio

from svc.devstack.stack import Moto
from svc.settings import load
from svc.sqs import creation
from svc.sqs import queue as sqs
from svc.sqs.queue import SqsQueue
from tests import preloaded

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP: one of their own would read the system's authorities, 45 ms for each client."""


def http_client(url: str = "", *, timeout: float = 10) -> httpx.AsyncClient:
    """A client of an instance's API."""
    return httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False, verify=NO_TLS)


class Instance:
    """`python -m svc run` in a process of its own. `prefix` is a command that runs it (`prlimit …`)."""

    def __init__(self, environ: dict[str, str], *, prefix: Sequence[str] = ()) -> None:
        self.logs: list[dict[str, Any]] = []
        self.output: list[str] = []
        environ = {**os.environ, "HTTP_PORT": "0", **environ, "LOG_FORMAT": "json"}
        reads, writes = os.pipe()
        self._told = os.fdopen(reads)
        with os.fdopen(writes, "wb") as stderr:
            if prefix:
                command = [*prefix, *preloaded.SVC, "run"]
                self._process: preloaded.Process = subprocess.Popen(
                    command, env=environ, stdout=subprocess.DEVNULL, stderr=stderr
                )
            else:
                self._process = preloaded.popen(["run"], env=environ, stdout=subprocess.DEVNULL, stderr=stderr)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        for line in self._told:
            self.output.append(line)
            if line.startswith("{"):
                self.logs.append(json.loads(line))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def logged(self, event: str, *, within: float = 20, **fields: object) -> dict[str, Any]:
        """The first log line of this event with these fields."""
        with trio.fail_after(within):
            while True:
                for line in list(self.logs):
                    if line["event"] == event and all(line.get(name) == value for name, value in fields.items()):
                        return line
                assert self._process.poll() is None or self._reader.is_alive(), "".join(self.output)
                await trio.sleep(0.02)

    async def logged_like(self, words: str, *, within: float = 20) -> dict[str, Any]:
        """The first log line whose event holds these words."""
        with trio.fail_after(within):
            while True:
                for line in list(self.logs):
                    if words in line["event"]:
                        return line
                await trio.sleep(0.02)

    async def started(self) -> str:
        """The API's URL, once the service serves and has read the key."""
        self.url = str(
            (await self.logged("started", within=120))["api"]
        )  # a busy machine takes many times the usual second
        return self.url

    async def exit_code(self, *, within: float = 40) -> int:
        with trio.fail_after(within):
            while self._process.poll() is None:
                await trio.sleep(0.02)
        self._reader.join(5)
        return self._process.wait()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        self._told.close()

    async def get(self, path: str) -> httpx.Response:
        async with http_client(self.url) as client:
            return await client.get(path)

    async def status(self) -> str:
        return str((await self.get("/health")).json()["status"])

    async def reaches(self, status: str, *, within: float = 20) -> dict[str, Any]:
        """Wait for a status of /health; returns its body."""
        with trio.fail_after(within):
            while True:
                body: dict[str, Any] = (await self.get("/health")).json()
                if body["status"] == status:
                    return body
                await trio.sleep(0.05)

    async def ready(self, *, within: float = 20) -> None:
        """Wait until a receive has been answered: so it is registered and has read the key, too."""
        with trio.fail_after(within):
            while (await self.get("/health/ready")).status_code != 200:
                await trio.sleep(0.05)

    async def figure(self, name: str, value: object, *, within: float = 20) -> dict[str, Any]:
        """Wait until a figure of the statistics has this value; returns them all."""
        with trio.fail_after(within):
            while (figures := await self.statistics()).get(name) != value:
                await trio.sleep(0.02)
        return figures

    async def statistics(self) -> dict[str, Any]:
        """The `sqs` part of /messages/stats, in maintenance too; checked to add up."""
        figures: dict[str, Any] = (await self.get("/messages/stats")).json()["sqs"]
        ends = ("processed", "failed", "released", "rejected", "lost", "in_flight")
        assert figures["messages_received"] == sum(figures[f"messages_{end}"] for end in ends), figures
        return figures


@dataclass
class Stand:
    """A queue, a maintenance key and a record file of their own, and the instances that use them."""

    environ: dict[str, str]
    queue: SqsQueue
    record: Path
    instances: list[Instance] = field(default_factory=list)

    async def start(self, *, prefix: Sequence[str] = (), **environ: str) -> Instance:
        instance = Instance({**self.environ, **environ}, prefix=prefix)
        self.instances.append(instance)
        await instance.started()
        return instance

    def events(self) -> list[dict[str, Any]]:
        """What the processors wrote down, of all instances, in order."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def succeeded(self) -> list[str]:
        return [event["body"] for event in self.events() if event["event"] == "succeeded"]

    def check_no_double_processing(self) -> None:
        """No message was ever in two runs at the same time."""
        running: set[str] = set()
        for event in self.events():
            if event["event"] == "began":
                assert event["id"] not in running, f"{event['body']} was processed twice at the same time"
                running.add(event["id"])
            else:
                running.discard(event["id"])

    async def send(self, bodies: Iterator[str] | list[str]) -> None:
        for body in bodies:
            await self.queue.send(body)

    async def depth(self) -> tuple[int, int]:
        """Messages visible and in flight, as the queue says."""
        attributes = await self.queue.attributes()
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        )

    async def empty(self, *, within: float = 30) -> None:
        """Wait until the queue has nothing left, visible or in flight."""
        with trio.fail_after(within):
            while await self.depth() != (0, 0):
                await trio.sleep(0.1)

    async def until(self, satisfied: Any, *, within: float = 30) -> None:
        """Wait for something that other processes bring about."""
        with trio.fail_after(within):
            while not satisfied():
                await trio.sleep(0.02)


@asynccontextmanager
async def stand(
    moto: Moto, etcd_endpoint: str, queue_name: str, key: str, record: Path, **environ: str
) -> AsyncIterator[Stand]:
    """Everything of its own; leaves no instance behind."""
    base = {
        "SQS_QUEUE_URL": moto.queue_url(queue_name),
        "SQS_DLQ_NAME": f"{queue_name}-dlq",
        "AWS_ENDPOINT": moto.url,
        "ETCD_ENDPOINTS": etcd_endpoint,
        "MAINTENANCE_KEY": key,
        "MESSAGE_PROCESSOR": "tests.recording:handle",
        "RECORD_FILE": str(record),
        "WORK_SECONDS": "1",
        "SQS_WAIT_TIME_SECONDS": "1",  # a drain lasts as long as a poll that brings nothing; who means 20 s says so
        "PYTHONPATH": str(Path(__file__).parent.parent),
        **environ,
    }
    settings = load(base)
    await creation.create(settings)
    async with sqs.opened(settings, polls=1) as queue:
        held = Stand(base, queue, record)
        try:
            yield held
        finally:
            for instance in held.instances:
                instance.end()


@dataclass
class Call:
    """One request of a service to SQS."""

    began: float
    """Wall time at which it arrived at the relay."""
    action: str
    ended: float | None = None
    """Wall time at which its answer was sent on; None while it is on the wire."""


@dataclass
class Calls:
    """What one service asked of SQS, and what SQS has handed to it: seen from outside, whatever the service says itself."""

    url: str
    calls: list[Call] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    """Receipt handle → message id: received and neither deleted nor given back so far."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, action: str) -> list[float]:
        """Wall times at which requests of this action arrived."""
        return [call.began for call in list(self.calls) if call.action == action]

    def under_way(self, action: str) -> int:
        return sum(call.action == action and call.ended is None for call in list(self.calls))

    def begin(self, action: str) -> Call:
        call = Call(time(), action)
        self.calls.append(call)
        return call

    def note(self, action: str, asked: bytes, answered: bytes, status: int) -> None:
        """Keep `held` by a request and its answer, before the service has seen the answer."""
        if status != 200:
            return
        with self._lock:
            if action == "ReceiveMessage":
                for message in json.loads(answered).get("Messages") or ():
                    self.held[message["ReceiptHandle"]] = message["MessageId"]
            elif action in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
                refused = {entry["Id"] for entry in json.loads(answered).get("Failed") or ()}
                for entry in json.loads(asked)["Entries"]:
                    if entry["Id"] not in refused and not entry.get("VisibilityTimeout"):
                        self.held.pop(entry["ReceiptHandle"], None)


@contextmanager
def recorded(endpoint: str) -> Iterator[Calls]:
    """An HTTP relay before an SQS endpoint that writes down every call."""
    target = urlsplit(endpoint)
    assert target.hostname is not None

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            action = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            call = calls.begin(action)
            try:
                self._relay(action)
            finally:
                call.ended = time()

        def _relay(self, action: str) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            upstream = HTTPConnection(str(target.hostname), target.port, timeout=40)
            upstream.request("POST", self.path, body, {**self.headers, "Connection": "close"})
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            calls.note(action, body, content, answer.status)
            self.send_response(answer.status)
            for name in ("Content-Type", "x-amzn-RequestId", "x-amzn-query-error"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a service that was killed or cut off in the middle of an answer

    server = Server(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    calls = Calls(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
