"""One HTTP/1.1 connection to SQS: bytes of a request out, one whole answer in.

Answers are parsed by `httptools` (llhttp, the parser of Node.js): an answer of ten messages costs it 4 µs where h11 takes 130.
What llhttp calls wrong is wrong: two lengths, a length and chunks, bare line feeds.

A connection is good for another request only if its last answer was whole, said nothing against it, and nothing lies unread
behind it. Whatever else happens (an error, a cancellation at any moment, bytes nobody asked for) closes it at once; nobody has to
clean up. Every answer is bounded: head, body, and body after decompression.

Knows HTTP and nothing of SQS. Never logs, never retries, has no clock: whoever calls bounds the time.
"""

import zlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

import httptools
import trio

MAX_HEAD = 65_536
"""Bytes of everything before a body, interim answers included."""

MAX_BODY = 72 * 1_048_576
"""Bytes of a body: ten messages of 1 MiB, each byte of which JSON may write as six (`\\u0041`), and room for their handles."""

_READ = 65_536

_MAX_MEMBERS = 16
"""Of a compressed body; servers make one. Each costs a copy of what follows it: thousands would hold up the process."""


class Stream(Protocol):
    """What a connection needs of a `trio.abc.Stream`."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


class ConnectionBroke(Exception):
    """The connection ended before the answer was whole."""

    def __init__(self, *, was_sent: bool, answer_began: bool) -> None:
        super().__init__("the connection ended before the answer was complete")
        self.was_sent = was_sent
        """All of the request was handed over; False: the server cannot have acted on it."""
        self.answer_began = answer_began


class NotAnAnswer(Exception):
    """What came is not an answer in HTTP, or is larger than any answer of SQS. The text says which, without quoting it."""


class Answer:
    """A whole answer. Header names are lower case; the values of a repeated one are joined with commas."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1").strip()

    def texts(self) -> Mapping[str, str]:
        """All headers as text."""
        return {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in self.headers.items()}


class Connection:
    """`close` lets go of the stream at once, and may be called twice; `peer` is the address at its other end, where it has one.
    `is_readable` tells without waiting whether something lies unread (the end of the stream too)."""

    def __init__(
        self,
        stream: Stream,
        close: Callable[[], None],
        *,
        peer: str | None = None,
        is_readable: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stream = stream
        self._close = close
        self.peer = peer
        self.idle_since = 0.0
        """Kept by the pool."""
        self.idle_seconds: float | None = None
        """How long the server keeps it when nothing is asked, if it says so (`Keep-Alive: timeout=…`)."""
        self._is_readable = is_readable
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._status = 0
        self._has_head = False
        self._is_whole = False
        self._is_reusable = False
        self._has_more = False
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self._close()

    def is_fresh(self) -> bool:
        """Whether the next request may go out on it."""
        return self.is_open and not self._is_readable()

    async def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for its answer. Afterwards `is_open` tells whether another one may follow. Raises
        `ConnectionBroke` and `NotAnAnswer`."""
        self._headers, self._body = {}, []
        self._has_head = self._is_whole = self._is_reusable = self._has_more = False
        with _Closing(self):
            was_sent = False
            try:
                await self._stream.send_all(request)
                was_sent = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it may have answered all the same, before it hung up
            await self._read(was_sent)
            # A request that was cut off leaves the connection in an unknown state.
            if not (was_sent and self._is_reusable and not self._has_more):
                self.close()
            return Answer(self._status, self._headers, self._decoded())

    async def _read(self, was_sent: bool) -> None:
        received = 0
        while not self._has_all():
            try:
                data = await self._stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise ConnectionBroke(was_sent=was_sent, answer_began=received > 0) from None
            if not data:
                if self._ends_with_the_stream():
                    return
                raise ConnectionBroke(was_sent=was_sent, answer_began=received > 0)
            received += len(data)
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                if self._has_all():  # what follows it is wrong, which only says that this connection is used up
                    self._has_more = True
                    return
                raise NotAnAnswer("what came is not HTTP/1.1") from None
            if received > MAX_HEAD and not self._has_head:
                raise NotAnAnswer(f"its head is larger than {MAX_HEAD} bytes")
            if received > MAX_BODY:
                raise NotAnAnswer(f"it is larger than {MAX_BODY} bytes")

    def _has_all(self) -> bool:
        return self._is_whole

    def _ends_with_the_stream(self) -> bool:
        """Whether the end of the stream is the end of this answer, which has neither length nor chunks."""
        return (
            self._has_head
            and b"content-length" not in self._headers
            and b"chunked" not in self._headers.get(b"transfer-encoding", b"").lower()
        )

    def _decoded(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if b"content-encoding" not in self._headers:
            return body
        encoding = self._headers[b"content-encoding"].strip().lower()
        if encoding in (b"", b"identity"):
            return body
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            return _decompressed(body)
        raise NotAnAnswer("its Content-Encoding is one that was not asked for")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._has_more = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return  # a trailer, or of what follows the answer
        name = name.lower()
        known = self._headers.get(name)
        self._headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        if self._is_whole:
            return
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._has_head = True
        elif self._status != 101:  # which llhttp raises for: nothing here was upgraded
            self._headers = {}

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._has_head and not self._is_whole:
            self._is_whole = True
            self._is_reusable = self._parser.should_keep_alive()
            if (told := self._headers.get(b"keep-alive")) is not None:
                self.idle_seconds = _seconds_kept(told)


class _Closing:
    """Closes the connection if the block is left by an exception, whatever it is."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._connection.close()


def _seconds_kept(told: bytes) -> float | None:
    for part in told.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name.strip().lower() == b"timeout" and value.strip().isdigit() and len(value) < 9:
            return float(value)
    return None


def _decompressed(body: bytes) -> bytes:
    """gzip (of one or several members) or zlib, told by its first bytes, or bare deflate."""
    form = 47 if body[:1] in (b"\x1f", b"\x78") else -15
    parts: list[bytes] = []
    left = MAX_BODY
    try:
        while body:
            if len(parts) == _MAX_MEMBERS:
                raise NotAnAnswer(f"its compressed body has more than {_MAX_MEMBERS} members")
            decompressor = zlib.decompressobj(form)
            parts.append(decompressor.decompress(body, left))
            left -= len(parts[-1])
            if decompressor.unconsumed_tail or left <= 0:
                raise NotAnAnswer(f"it is larger than {MAX_BODY} bytes when it is decompressed")
            if not decompressor.eof:
                raise NotAnAnswer("its compressed body is cut off")
            body = decompressor.unused_data
    except zlib.error:
        raise NotAnAnswer("its compressed body cannot be read") from None
    return b"".join(parts)
