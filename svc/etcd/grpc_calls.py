"""gRPC on an HTTP/2 connection: messages in their frames, and the status at the end of a call.

What is no gRPC is a `Trouble`, as is every status but OK. Nothing here may know what etcd's messages say.
"""

import collections
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from urllib.parse import unquote

from svc.etcd.errors import CHECK_ENDPOINT, Trouble, trouble_of
from svc.etcd.exchange import Exchange
from svc.etcd.http2 import Http2
from svc.settings import printable

LARGEST = 64 * 1024 * 1024
"""Bytes of one answer: a fleet of some thousand instances fits."""

_LONGEST_WORDS = 1000
"""Characters of what a status says."""

_HEADERS = (("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "svc"))


class Call:
    """A call that is open. `call` and `begun` make one."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._unread = bytearray()
        self._looked = False

    async def send(self, message: bytes, *, last: bool = False) -> None:
        """A message; `last`: our half of the call ends with it."""
        await self._exchange.send(struct.pack(">?L", False, len(message)) + message, last=last)

    async def receive(self) -> bytes | None:
        """The next message; None: the call has ended well. Raises `Trouble`."""
        while True:
            if (message := self._message()) is not None:
                return message
            data = await self._exchange.receive()
            self._look()
            if data is None:
                self._end()
                return None
            self._unread += data

    def end(self, trouble: Trouble) -> None:
        """Let `receive` raise this next, after what has come already."""
        self._exchange.fail(trouble)

    def leave(self) -> None:
        """It is not needed any more. Once only."""
        self._exchange.leave()

    def _message(self) -> bytes | None:
        """One that has come whole."""
        if len(self._unread) < 5:
            return None
        flag, length = struct.unpack_from(">BL", self._unread)
        if flag:
            raise Trouble("the answer is compressed, which was not asked for", CHECK_ENDPOINT)
        if length > LARGEST:
            raise Trouble(f"the answer has {length} bytes; more than {LARGEST} are not read", CHECK_ENDPOINT)
        if len(self._unread) < 5 + length:
            return None
        message = bytes(memoryview(self._unread)[5 : 5 + length])
        del self._unread[: 5 + length]
        return message

    def _look(self) -> None:
        """Whether this is gRPC at all."""
        headers = self._exchange.headers
        if self._looked or "grpc-status" in headers:
            return
        self._looked = True
        if (status := headers.get(":status")) != "200":
            raise Trouble(f"the answer has HTTP status {printable(str(status))}", CHECK_ENDPOINT)
        if not (kind := headers.get("content-type", "")).startswith("application/grpc"):
            raise Trouble(f"the answer is not gRPC but {printable(kind[:100]) or 'of no type'}", CHECK_ENDPOINT)

    def _end(self) -> None:
        told = {**self._exchange.headers, **self._exchange.trailers}
        status, message = told.get("grpc-status", ""), told.get("grpc-message", "")
        if not status.isascii() or not status.isdecimal() or len(status) > 9:
            raise Trouble("the answer ends without a status", CHECK_ENDPOINT)
        if int(status):
            raise trouble_of(int(status), printable(unquote(message, errors="replace")[:_LONGEST_WORDS]))
        if self._unread:
            raise Trouble("the answer ends in the middle of a message", CHECK_ENDPOINT)


async def begun(connection: Http2, path: str, metadata: Sequence[tuple[str, str]], *, lasts: bool) -> Call:
    """A call, until its `leave`. `lasts`: as of `call`. Raises `Trouble`."""
    return Call(await connection.open(path, [*_HEADERS, *metadata], lasts=lasts))


@contextlib.asynccontextmanager
async def call(
    connection: Http2, path: str, metadata: Sequence[tuple[str, str]], *, lasts: bool = False
) -> AsyncIterator[Call]:
    """A call, for as long as the block lasts. `lasts`: it is a watch, which has no end of its own. Raises `Trouble`."""
    async with await connection.open(path, [*_HEADERS, *metadata], lasts=lasts) as exchange:
        yield Call(exchange)


async def unary(
    connection: Http2, path: str, metadata: Sequence[tuple[str, str]], requests: Sequence[bytes]
) -> list[bytes]:
    """Calls of one request and one answer each, sent together as far as the other side takes them. Raises `Trouble`. When that is
    cancelled, the calls end at once, and the connection goes on."""
    async with contextlib.AsyncExitStack() as stack:
        calls: collections.deque[Call] = collections.deque()
        answers = []
        for request in requests:
            while (
                calls and not connection.takes_one_more()
            ):  # the place may be one of ours: it is free when the answer is read
                answers.append(await _only(calls.popleft()))
            calls.append(await stack.enter_async_context(call(connection, path, metadata)))
            await calls[-1].send(request, last=True)
        return answers + [await _only(made) for made in calls]


async def _only(made: Call) -> bytes:
    answer = await made.receive()
    if answer is None:
        raise Trouble("the answer holds no message", CHECK_ENDPOINT)
    if await made.receive() is not None:
        raise Trouble("the answer holds more than one message", CHECK_ENDPOINT)
    return answer
