"""A TCP proxy whose line can be broken: between the service and SQS (`SqsProxy`, which reads the requests), and between the
service and etcd (`Proxy`, bytes only). Loopback, in the test's own Trio run.

The state of the line is a level: a change counts for the connections that there are and for those to come, at once.

    proxy.hang(); …; proxy.heal()

Every attempt to reach the other side is counted (`attempts`), so that a hot loop during an outage shows. Nothing here judges.
"""

import contextlib
import json
import math
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from time import time
from typing import Any

import trio

from svc.devstack.child import free_ports
from tests.border.odd import said

CHUNK = 65_536


@dataclass(eq=False)
class Link:
    """One connection: the client's side, and ours to the server."""

    client: trio.SocketStream
    server: trio.SocketStream | None = None
    deaf: bool = False
    """Half-open: the server has gone and nobody has told the client."""


def reset(stream: trio.SocketStream | None) -> None:
    """RST instead of FIN: what a crashed or restarted host, or a firewall, answers."""
    if stream is not None and stream.socket.fileno() != -1:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()


class Proxy:
    """A line to `host:port` over a port of its own. Runs inside `running()`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        (self.port,) = free_ports(1)
        self.endpoint = f"127.0.0.1:{self.port}"
        self.attempts: list[tuple[float, str]] = []
        """Wall time and name of each attempt of the client to get something: a connection here, a call in `SqsProxy`."""
        self._links: set[Link] = set()
        self._listening: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._healed = trio.Event()
        self.heal_line()

    # -- the state of the line --

    def heal_line(self) -> None:
        self._hung = False
        self._at_accept: Callable[[Link], None] | None = None
        self.latency = 0.0
        self.bytes_per_second = math.inf
        self.refused = False
        self._healed.set()

    async def heal(self) -> None:
        """Everything passes again. Connections that were made deaf stay so."""
        refused = self.refused
        self.heal_line()
        if refused:
            await self._listen()

    def refuse(self) -> None:
        """Nothing listens any more, and what was connected is reset: the process behind the port has died."""
        self.refused = True
        assert self._listening is not None
        self._listening.cancel()
        self._each(self._reset_link)

    def reset(self) -> None:
        """Every connection is reset, old and new."""
        self._at_accept = self._reset_link
        self._each(self._reset_link)

    def cut(self) -> None:
        """Every connection is closed (FIN), old and new, in the middle of whatever it carries."""
        self._at_accept = self._cut_link
        self._each(self._cut_link)

    def hang(self) -> None:
        """Connections are accepted and kept, and carry nothing in either direction, until the line is healed: a partition."""
        self._hung = True
        self._healed = trio.Event()

    def half_open(self) -> None:
        """The server's side of every connection that there is goes away, and the client is not told; new ones pass."""
        for link in self._links:
            link.deaf = True
            reset(link.server)

    def slow(self, seconds: float) -> None:
        """Everything takes so much longer, each way."""
        self.latency = seconds

    def throttle(self, bytes_per_second: float) -> None:
        """Each connection carries no more than this."""
        self.bytes_per_second = bytes_per_second

    @property
    def connections(self) -> int:
        return len(self._links)

    def calls(self, since: float, until: float) -> Counter[str]:
        return Counter(name for at, name in self.attempts if since <= at <= until)

    # -- running --

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        async with trio.open_nursery() as self._nursery:
            await self._listen()
            try:
                yield self
            finally:
                self._nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        assert self._nursery is not None
        self._listening = trio.CancelScope()
        await self._nursery.start(self._accept, self._listening)

    async def _accept(self, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(100)
        sock = trio.socket.from_stdlib_socket(listener)
        task_status.started()
        assert self._nursery is not None
        with scope, sock:
            while True:
                one, _ = await sock.accept()
                self._nursery.start_soon(self._serve, Link(trio.SocketStream(one)))

    async def _serve(self, link: Link) -> None:
        self._note_connection()
        if self._at_accept is not None:
            self._at_accept(link)
            return
        self._links.add(link)
        try:
            await self._carry(link)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            if link.deaf:
                await self._stay_deaf(link)
            # A server that resets the line, or is not there, is no more polite to the client.
            reset(link.client)
        finally:
            self._links.discard(link)
            link.client.socket.close()
            reset(link.server)

    def _note_connection(self) -> None:
        self.attempts.append((time(), "connect"))

    async def _carry(self, link: Link) -> None:
        await self._passes(link, 0)
        link.server = trio.SocketStream(await self._connect())
        async with trio.open_nursery() as nursery:

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                while data := await source.receive_some(CHUNK):
                    await self._passes(link, len(data))
                    await sink.send_all(data)
                nursery.cancel_scope.cancel()  # neither HTTP nor gRPC goes on when one side has closed

            nursery.start_soon(pump, link.client, link.server)
            nursery.start_soon(pump, link.server, link.client)

    async def _connect(self) -> trio.socket.SocketType:
        sock = trio.socket.socket()
        try:
            await sock.connect(self._target)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _passes(self, link: Link, length: int) -> None:
        """Returns when so many bytes may go on."""
        while self._hung:
            await self._healed.wait()
        wait = self.latency + length / self.bytes_per_second
        if wait:
            await trio.sleep(wait)
        while self._hung:
            await self._healed.wait()
        if link.deaf:
            raise trio.ClosedResourceError

    async def _stay_deaf(self, link: Link) -> None:
        """Swallow what the client says, and tell it nothing, until it goes."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await link.client.receive_some(CHUNK):
                pass

    def _each(self, end: Callable[[Link], None]) -> None:
        for link in list(self._links):
            end(link)

    def _reset_link(self, link: Link) -> None:
        reset(link.client)
        reset(link.server)

    def _cut_link(self, link: Link) -> None:
        link.client.socket.close()
        reset(link.server)


@dataclass(frozen=True)
class Answer:
    """An error that the proxy answers in SQS's place."""

    status: int
    code: str
    text: str = "as told by the test"
    raw: bytes | None = None
    """Instead of SQS's form of errors: this body, as text/html."""

    def http(self) -> bytes:
        body = self.raw if self.raw is not None else json.dumps({"__type": self.code, "message": self.text}).encode()
        kind = "text/html" if self.raw is not None else "application/x-amz-json-1.0"
        return (
            f"HTTP/1.1 {self.status} told\r\nContent-Type: {kind}\r\nx-amzn-RequestId: 0\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class SqsProxy(Proxy):
    """Knows the requests: counts them by action, answers errors in SQS's place, and can keep SQS's answers from arriving."""

    def __init__(self, url: str) -> None:
        super().__init__(url.rpartition("/")[2])
        self.url = f"http://{self.endpoint}"
        self.requests: list[tuple[float, str]] = []

    def heal_line(self) -> None:
        super().heal_line()
        self._answer: Answer | None = None
        self._answered: frozenset[str] | None = None
        self._lost: frozenset[str] = frozenset()
        self._odd: Iterator[bytes | None] = repeat(None)
        self._rewritten: dict[str, Callable[[Any], Any]] = {}

    def odd(self, answers: Sequence[bytes]) -> None:
        """Answer every second request with the next of these, without asking SQS."""
        self._odd = chain.from_iterable((None, answer) for answer in cycle(answers))

    def rewrite(self, action: str, change: Callable[[Any], Any]) -> None:
        """SQS acts; the JSON of its answer to this action is changed on the way."""
        self._rewritten[action] = change

    def answer(self, answer: Answer, *actions: str) -> None:
        """Answer so (to these actions only, if any are named) without asking SQS."""
        self._answer, self._answered = answer, frozenset(actions) or None

    def lose_answers(self, *actions: str) -> None:
        """SQS acts; its answer to these actions does not arrive: the connection is reset instead."""
        self._lost = frozenset(actions)

    def calls(self, since: float, until: float) -> Counter[str]:
        """Requests by action; where connections are ended before one can be read, the connections."""
        made = Counter(name for at, name in self.requests if since <= at <= until)
        return made or super().calls(since, until)

    async def _carry(self, link: Link) -> None:
        while request := await _message(link.client):
            head, body = request
            found = re.search(rb"x-amz-target:\s*\S*?(\w+)\r\n", head, re.I)
            action = found[1].decode() if found else "?"
            self.requests.append((time(), action))
            await self._passes(link, len(head) + len(body))
            if self._answer is not None and (self._answered is None or action in self._answered):
                await link.client.send_all(self._answer.http())
                continue
            if (odd := next(self._odd)) is not None:
                await link.client.send_all(odd)
                continue
            answer = await self._ask(link, head, body)
            if action in self._lost:
                return
            if action in self._rewritten and answer.startswith(b"HTTP/1.1 200"):
                changed = self._rewritten[action](json.loads(answer.partition(b"\r\n\r\n")[2] or b"{}"))
                answer = said(changed).wire
            await self._passes(link, len(answer))
            await link.client.send_all(answer)

    async def _ask(self, link: Link, head: bytes, body: bytes) -> bytes:
        """Each request over a connection of its own: what the server does with its connections is not what is tested."""
        link.server = trio.SocketStream(await self._connect())
        try:
            head = re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.I)
            await link.server.send_all(head[:-2] + b"Connection: close\r\n\r\n" + body)
            answer = bytearray()
            while data := await link.server.receive_some(CHUNK):
                answer += data
        finally:
            if not link.deaf:
                link.server.socket.close()
        first, _, rest = bytes(answer).partition(b"\r\n\r\n")
        if not rest and not first:
            raise trio.BrokenResourceError("the server closed the connection without an answer")
        lines = [
            line
            for line in first.split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"content-length:", b"transfer-encoding:"))
        ]
        lines[0] = lines[0].replace(b"HTTP/1.0", b"HTTP/1.1")
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(rest)]) + b"\r\n\r\n" + rest


async def _message(stream: trio.SocketStream) -> tuple[bytes, bytes] | None:
    """The next request, head (with its blank line) and body; None when the client has gone."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        more = await stream.receive_some(CHUNK)
        if not more:
            return None
        data += more
    head, body = bytes(data[: end + 4]), data[end + 4 :]
    found = re.search(rb"content-length:\s*(\d+)", head, re.I)
    length = int(found[1]) if found else 0
    while len(body) < length:
        more = await stream.receive_some(CHUNK)
        if not more:
            return None
        body += more
    return head, bytes(body)
