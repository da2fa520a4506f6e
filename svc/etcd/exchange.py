"""One request and its answer on an HTTP/2 connection, piece by piece as both sides have room.

Nothing here may know what gRPC or etcd is.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, Self

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from svc.etcd.errors import CHECK_ENDPOINT, Trouble
from svc.wakeup import WakeUp

_Headers = Mapping[str, str]


class Connection(Protocol):
    """What an exchange stands on: `http2.Http2`."""

    changed: WakeUp
    """Notified when there may be more room."""

    def room(self, id: int) -> int: ...

    def send(self, id: int, data: bytes, *, last: bool) -> None: ...

    def read_by_us(self, id: int, length: int) -> None: ...

    def leave(self, id: int, *, finished: bool) -> None: ...


class Exchange:
    """One request and its answer. Ends as an async context manager, or by `leave`: what is not over then is reset."""

    def __init__(self, connection: "Connection", id: int, *, lasts: bool = False) -> None:
        self.lasts = lasts
        """It has no end of its own."""
        self.headers: _Headers = {}
        """Of the answer; empty until it has begun."""
        self.trailers: _Headers = {}
        self.over = False
        """The answer is complete."""
        self._id = id
        self._connection = connection
        self._unread = bytearray()  # one, whatever it comes in: a frame of one byte takes no more room than that
        self.owed = 0
        """Bytes of the other side's window that are unread."""
        self._trouble: Trouble | None = None
        self._changed = WakeUp()
        self._sent_all = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """It is not needed any more: what is not over is reset. Once only."""
        self._connection.leave(self._id, finished=self.over and self._sent_all)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the request's body, as the other side has room for it. Returns early when the answer is complete, or the
        exchange has failed: `receive` tells."""
        rest = memoryview(data)
        while not self.stopped():
            room = self._connection.room(self._id)
            piece, rest = rest[:room], rest[room:]
            if piece or not rest:
                self._sent_all = last and not rest
                self._connection.send(self._id, bytes(piece), last=self._sent_all)
                if not rest:
                    return
            else:
                await self._connection.changed.wait_until(lambda: self.stopped() or self._connection.room(self._id) > 0)

    async def receive(self) -> bytes | bytearray | None:
        """What has come of the answer's body; None: it is complete. Raises `Trouble`."""
        await self._changed.wait_until(lambda: self.owed > 0 or self.stopped())
        if self.owed:
            data, self._unread = self._unread, bytearray()
            owed, self.owed = self.owed, 0
            self._connection.read_by_us(self._id, owed)
            return data
        if self._trouble is not None:
            raise again(self._trouble)
        return None

    def fail(self, trouble: Trouble) -> None:
        """Let `receive` raise this, after what there is."""
        if not self.stopped():
            self._trouble = trouble
            self._changed.notify()

    def stopped(self) -> bool:
        return self.over or self._trouble is not None

    def told(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self.headers = _readable(event.headers or ())
        elif isinstance(event, TrailersReceived):
            self.trailers = _readable(event.headers or ())
        elif isinstance(event, DataReceived):
            self._unread += event.data or b""
            self.owed += event.flow_controlled_length or 0
        elif isinstance(event, StreamEnded):
            self.over = True
        elif isinstance(event, StreamReset):
            self.fail(Trouble(f"the call was reset ({named(event.error_code)})", CHECK_ENDPOINT))
        self._changed.notify()


def _readable(headers: Iterable[tuple[bytes, bytes]]) -> _Headers:
    return {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in headers}


def named(code: object) -> str:
    return next((known.name for known in ErrorCodes if known == code), f"error {code}")


def again(trouble: Trouble) -> Trouble:
    """The same, to be raised once more: an error collects the places where it was raised."""
    return Trouble(trouble.said, trouble.remedy, denied=trouble.denied, refused=trouble.refused)
