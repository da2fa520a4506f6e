"""One HTTP/2 connection on any of Trio's streams: requests with bodies both ways, flow control, pings.

The protocol is the library h2's; this file moves the bytes and says when the other side counts as gone. `Http2.run` does it, in a
nursery of whoever opened the connection: one task reads, one writes, one pings. Callers never touch the stream, so a call that is
cancelled cannot leave half a frame behind: it is reset, and the connection goes on.

Whatever the other side sends, it comes out as the `Trouble` of the calls that are open, and of every later one. When it says a
goodbye without an error, the calls that it has taken are finished; only a watch ends at once, as it would never be.

Nothing here may know what gRPC or etcd is.
"""

import contextlib
from collections.abc import Sequence

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, RemoteSettingsChanged, WindowUpdated
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings

from svc.etcd.errors import CHECK_ENDPOINT, Trouble
from svc.etcd.exchange import Exchange, again, named
from svc.etcd.frames import Frames, Goodbye
from svc.etcd.tls import tls_trouble
from svc.settings import printable
from svc.wakeup import WakeUp

PING_AFTER = 10.0
"""Seconds without a byte from the other side, and with a call open, after which it is asked for a sign of life. etcd hangs up on
whoever pings more often than every 5 s (--grpc-keepalive-min-time), or while nothing is open."""

PING_ANSWER = 5.0
"""Seconds that the sign may take."""

_TICK = 1.0
"""Seconds between two looks for it."""

_WINDOW, _ALL_WINDOWS = 1 << 20, 1 << 24
"""Bytes that a call, and all together, may have sent us without our having read them: some calls that nobody reads do not stop
the others."""

_CHUNK = 1 << 16
_MOST_UNSENT = 1 << 20
"""Bytes waiting to be written beyond which nothing more is read, and no more of a body taken: who does not read our answers to
pings and settings does not get to send more of them."""

_LONGEST_HEADERS = 1 << 16


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = 1024
    """How many calls that are over it keeps in mind; h2 itself keeps 65,536, some megabytes after some hours."""


class Http2:
    """A connection on `stream`, which it owns from here on. Make it inside `trio.run`, and start `run` in a nursery."""

    def __init__(self, stream: trio.abc.Stream, *, authority: str, scheme: str) -> None:
        self.trouble: Trouble | None = None
        """Why it has ended; None: it lives."""
        self._goodbye: Trouble | None = None
        """Why no call begins any more, while those that are open are finished."""
        self._stream = stream
        self._constant = [(":method", "POST"), (":scheme", scheme), (":authority", authority)]
        self._h2 = _H2(H2Configuration(client_side=True, header_encoding=None))
        self._h2.local_settings = H2Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: 100,
                SettingCodes.MAX_HEADER_LIST_SIZE: _LONGEST_HEADERS,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_ALL_WINDOWS - self._h2.inbound_flow_control_window)
        self._exchanges: dict[int, Exchange] = {}
        self._unsent = bytearray(self._h2.data_to_send())
        self.changed = WakeUp()
        self._outgoing, self._written = WakeUp(), WakeUp()
        self._heard_at = trio.current_time()
        self._settled = False
        self._frames = Frames(self._exchanges.__contains__)
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Move the bytes until the connection ends, by trouble or by `close`; then the stream is closed."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._ping)
                    await self._read()
        finally:
            self._fail(Trouble("the connection was closed", ""))
            await trio.aclose_forcefully(self._stream)

    def close(self) -> None:
        """End the connection. Does not wait; may be repeated."""
        self._fail(Trouble("the connection was closed", ""))

    async def settled(self) -> None:
        """Wait for the other side's settings: it speaks HTTP/2. Raises `Trouble`."""
        await self.changed.wait_until(lambda: self.trouble is not None or self._settled)
        if self.trouble is not None:
            raise again(self.trouble)

    @property
    def places(self) -> int:
        """How many calls the other side takes at a time."""
        return int(self._h2.remote_settings.max_concurrent_streams)

    def takes_one_more(self) -> bool:
        """Whether a call may begin now."""
        # None before its settings have come: they say how many, and that this is HTTP/2 at all, before a password goes there.
        return self._settled and self._h2.open_outbound_streams < self.places

    async def open(self, path: str, headers: Sequence[tuple[str, str]], *, lasts: bool = False) -> Exchange:
        """Begin a request, as soon as the other side takes one more. `lasts`: it is a watch, which has no end of its own. Raises
        `Trouble`."""
        await self.changed.wait_until(lambda: self._refusal() is not None or self.takes_one_more())
        if (refusal := self._refusal()) is not None:
            raise again(refusal)
        if not self._exchanges:
            self._heard_at = max(self._heard_at, trio.current_time() - PING_AFTER / 2)
        try:
            id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(id, [*self._constant, (":path", path), *headers])
        except H2Error as error:
            self._fail(trouble := Trouble(f"the request cannot be sent: {error}", CHECK_ENDPOINT))
            raise trouble from None
        self._exchanges[id] = exchange = Exchange(self, id, lasts=lasts)
        self._flush()
        return exchange

    # -- for exchanges --

    def room(self, id: int) -> int:
        """How many bytes may be sent now."""
        if len(self._unsent) >= _MOST_UNSENT:
            return 0
        return max(0, min(_CHUNK, self._h2.max_outbound_frame_size, self._h2.local_flow_control_window(id)))

    def send(self, id: int, data: bytes, *, last: bool) -> None:
        self._h2.send_data(id, data, end_stream=last)
        self._flush()

    def read_by_us(self, id: int, length: int) -> None:
        if self.trouble is None and length:
            self._h2.acknowledge_received_data(length, id)
            self._flush()

    def leave(self, id: int, *, finished: bool) -> None:
        exchange = self._exchanges.pop(id)
        if self.trouble is not None:
            return
        self.read_by_us(id, exchange.owed)
        if not finished:
            self._frames.given_up()
            with contextlib.suppress(H2Error):  # the other side was quicker
                self._h2.reset_stream(id, ErrorCodes.CANCEL)
        self._flush()
        self.changed.notify()
        self._end_when_left()

    # -- the tasks --

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(_CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                return self._fail(broken(error))
            if not data:
                return self._fail(Trouble("the connection was closed by the other side", CHECK_ENDPOINT))
            self._heard_at = trio.current_time()
            self._frames.add(data)
            if not self._settled and (other := self._frames.what_else()) is not None:
                return self._fail(Trouble(other, CHECK_ENDPOINT))
            try:
                self._take()
            except Trouble as trouble:
                return self._fail(trouble)
            except Exception as error:  # whatever foreign code makes of foreign bytes
                return self._fail(
                    Trouble(f"the answer is not HTTP/2 as it should be ({_brief(error)})", CHECK_ENDPOINT)
                )
            self._flush()
            await self._written.wait_until(lambda: len(self._unsent) < _MOST_UNSENT)

    def _take(self) -> None:
        for frame in self._frames.come(self._h2.max_inbound_frame_size):
            if isinstance(frame, Goodbye):
                self._bidden(frame)
            else:
                for event in self._h2.receive_data(frame):
                    self._told(event)
            if self.trouble is not None:
                return

    def _bidden(self, goodbye: Goodbye) -> None:
        why = printable(goodbye.why[:100].decode("latin-1"))
        said = f"the other side ends the connection ({', '.join(filter(None, (named(goodbye.code), why)))})"
        trouble = Trouble(said, CHECK_ENDPOINT)
        if goodbye.code != ErrorCodes.NO_ERROR:
            self._fail(trouble)
            return
        self._goodbye = self._goodbye or trouble
        for id, exchange in self._exchanges.items():
            if exchange.lasts or id > goodbye.last:
                exchange.fail(trouble)
        self.changed.notify()
        self._end_when_left()

    def _told(self, event: Event) -> None:
        if isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._settled = self._settled or isinstance(event, RemoteSettingsChanged)
            self.changed.notify()
        elif (exchange := self._exchanges.get(getattr(event, "stream_id", 0))) is not None:
            exchange.told(event)
            if exchange.stopped():
                self.changed.notify()

    async def _write(self) -> None:
        while True:
            await self._outgoing.wait_until(lambda: bool(self._unsent))
            data, self._unsent = self._unsent, bytearray()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                # What the other side has said before it hung up is worth more: the reader finds it, and the end.
                with trio.move_on_after(_TICK):
                    await trio.sleep_forever()
                return self._fail(broken(error))
            self._written.notify()
            self.changed.notify()

    async def _ping(self) -> None:
        while True:
            due = self._heard_at + PING_AFTER
            if trio.current_time() < due:
                await trio.sleep_until(due)
                continue
            if not self._exchanges:
                await trio.sleep(PING_AFTER / 2)
                continue
            asked_at, left = trio.current_time(), PING_ANSWER
            self._h2.ping(b"svc-ping")
            self._flush()
            while self._heard_at < asked_at:
                if left <= 0:
                    return self._fail(Trouble(f"no answer to a ping within {PING_ANSWER:g} s", CHECK_ENDPOINT))
                before = trio.current_time()
                await trio.sleep(_TICK)
                # A tick that took much longer is one in which this process did not run: the sign may lie in the socket.
                if trio.current_time() - before < 2 * _TICK:
                    left -= _TICK

    def _refusal(self) -> Trouble | None:
        """Why no call can begin, however long it waits."""
        if (ended := self.trouble or self._goodbye) is not None:
            return ended
        if self._exchanges and not self.takes_one_more() and all(held.lasts for held in self._exchanges.values()):
            said = f"the other side limits calls at a time to {self.places}, and a watch holds the last place"
            return Trouble(said, CHECK_ENDPOINT)
        return None

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._unsent += data
            self._outgoing.notify()

    def _end_when_left(self) -> None:
        if self._goodbye is not None and all(held.stopped() for held in self._exchanges.values()):
            self._fail(self._goodbye)

    def _fail(self, trouble: Trouble) -> None:
        """The connection is over."""
        if self.trouble is None:
            self.trouble = trouble = self._goodbye or trouble
            for exchange in self._exchanges.values():
                exchange.fail(trouble)
            self.changed.notify()
            self._scope.cancel(reason="the connection has ended")


def broken(error: BaseException) -> Trouble:
    """What a stream's error says."""
    cause = error.__cause__
    if (trouble := tls_trouble(cause)) is not None:
        return trouble
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause or error) or "it broke"
    return Trouble(f"the connection broke: {printable(said)}", CHECK_ENDPOINT)


def _brief(error: Exception) -> str:
    return printable(str(error)[:200]) or type(error).__name__
