"""Carries the API over TCP: hypercorn's HTTP/1.1 protocol, with our own hand on each connection.

Why not `hypercorn.trio.serve`: there an exception in one connection ends the whole service, and there are many ways to cause one
from outside: DATA after an HTTP/2 answer (KeyError), an HTTP/2 CONNECT or a path that is not ASCII, one byte after a WebSocket
handshake, a bad chunk while an answer is under way (BusyResourceError). It also sends without a bound, so that a client which
does not read holds up the shutdown for ever (STACK 1.4). Here

- a connection that fails is closed and logged, and nothing else happens;
- there is HTTP/1.1 only: upgrades to HTTP/2 and WebSocket are ignored, as RFC 9110 (7.8) allows;
- every wait for a client has a bound: for a request `keep_alive`, for reading an answer `SEND_TIMEOUT`, for going away `LINGER`
  (bodies: `BODY_TIMEOUT` of `app.py`);
- there is a bound to the number of connections, and running out of file descriptors is survived (connection_limit.py);
- what is no HTTP gets the API's form of errors too.

Nothing here knows a route. hypercorn's classes are used below their public surface: `tests/api/test_hostile_http.py` holds them.
"""

import json
import logging
import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr, repr_socket_addr

from svc.api.connection_limit import ConnectionLimit
from svc.settings import printable

log = structlog.get_logger(__name__)

KEEP_ALIVE = 5.0
"""Seconds that a connection may be open without a complete request head."""

SEND_TIMEOUT = 10.0
"""Seconds that a client may take to read an answer."""

LINGER = 1.0
"""Seconds that a client gets to read the last answer and go, when the server closes: a socket closed with unread input is reset,
and the reset can overtake the answer (RFC 9112, 9.6)."""

GRACE = 3.0
"""Seconds that requests under way get when the server stops."""

SEND_BUFFER = 131_072
"""Bytes that the kernel keeps for a client that does not read. Left alone it grows to megabytes, which a hundred stalled readers
of the page's feed would hold for many minutes; and `SEND_TIMEOUT` only begins when it is full."""

MAX_CONNECTIONS = 500
"""Connections at once, if `HTTP_MAX_CONNECTIONS` says nothing else."""

SMALL_BODY = 65_536
"""Bytes; of requests with more than that only so many are taken at once."""

BACKLOG = 128
"""Connections that may wait to be accepted."""

LONGEST_TARGET, LONGEST_HEADERS = 8192, 16_384
"""Bytes of a URL, and of all headers together."""

WANT_BODY = "svc.want_body"
"""Under this name the `state` of an ASGI scope holds what to await before the body is read."""

_ABSOLUTE = re.compile(rb"https?://[^/?#]*(.*)", re.IGNORECASE)


class CannotListen(OSError):
    """The address cannot be had. The text says which, why, and what to do."""


async def serve(
    app: ASGIFramework,
    host: str,
    port: int,
    stop: trio.Event,
    *,
    max_connections: int = MAX_CONNECTIONS,
    keep_alive: float = KEEP_ALIVE,
    send_timeout: float = SEND_TIMEOUT,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then give requests under way `GRACE` seconds. Starts with the URL. Raises `CannotListen` (in
    groups)."""
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = keep_alive
    wrapped, state, context = ASGIWrapper(app), LifespanState(), WorkerContext(None)
    listener = _listen(host, port)
    limit = ConnectionLimit(max_connections)

    async def carry(connection: _Connection) -> None:
        try:
            await connection.run()
        except* Exception as group:
            log.warning("a connection was given up", error=repr(_first(group)))
        finally:
            limit.discard(connection)

    async with trio.open_nursery() as life:
        lifespan = Lifespan(wrapped, config, state)
        await life.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            try:

                def accepted(stream: trio.SocketStream) -> None:
                    connection = _Connection(wrapped, config, context, state, stream, send_timeout, limit)
                    limit.add(connection)
                    connections.start_soon(carry, connection)

                async with listener, trio.open_nursery() as listening:
                    address = listener.socket
                    task_status.started(f"http://{repr_socket_addr(address.family, address.getsockname())}")
                    listening.start_soon(limit.accept, listener, accepted)
                    await stop.wait()
                    listening.cancel_scope.cancel(reason="the server stops")
                await context.terminated.set()
                with trio.move_on_after(GRACE):
                    await limit.wait_empty()
            finally:
                connections.cancel_scope.cancel(reason="the server has stopped")
                # Wakes those who send too; they are shielded from the cancellation.
                limit.close_all()
        await lifespan.wait_for_shutdown()
        life.cancel_scope.cancel(reason="the server has stopped")


def _listen(host: str, port: int) -> trio.SocketListener:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = (
        family is socket.AF_INET6 and not host.strip(":0") and socket.has_dualstack_ipv6()
    )  # `::`, however it is written
    try:
        held = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise CannotListen(
            f"cannot listen on {printable(where)}: {why}; set HTTP_HOST and HTTP_PORT to an address that is free here "
            "(HTTP_PORT=0: any port)"
        ) from None
    held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # those accepted inherit it
    held.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(held))


class _Connection:
    """One connection, from its acceptance to its end."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        stream: trio.SocketStream,
        send_timeout: float,
        limit: ConnectionLimit,
    ) -> None:
        self._app, self._config, self._context, self._state = app, config, context, state
        self._stream = stream
        self._send_timeout = send_timeout
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._idle = TrioSingleTask()
        self._closing = False
        self._protocol: _Http1
        self._begun = False
        self._since = trio.current_time()
        self._blocked_since: float | None = None
        self._limit = limit
        self.large = False

    @property
    def waiting_since(self) -> float | None:
        """Since when it waits for its client; None while it is our turn."""
        if self._blocked_since is not None or not self._begun:
            return self._blocked_since
        return self._since if self._protocol.connection.their_state in (h11.IDLE, h11.SEND_BODY) else None

    def give_up(self, why: str) -> None:
        """Closes the socket, which wakes whoever reads from it or writes to it."""
        self._stream.socket.close()

    def may_ask(self, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether there is room for this request."""
        if not target.startswith(b"/health") and not self._limit.has_room(self):
            return False
        large = any(
            name == b"transfer-encoding" or (name == b"content-length" and int(value) > SMALL_BODY)
            for name, value in headers
        )
        if large and not self._limit.takes_large():
            return False
        self.large = large
        return True

    async def run(self) -> None:
        try:
            held = self._stream.socket
            client = parse_socket_addr(held.family, held.getpeername())
            server = parse_socket_addr(held.family, held.getsockname())
            async with TaskGroup() as self._tasks:
                self._protocol = _Http1(
                    self._app,
                    self._config,
                    self._context,
                    self._tasks,
                    ConnectionState(self._state.copy() | {WANT_BODY: self._want_body}),
                    False,
                    client,
                    server,
                    self._send,
                )
                self._protocol.may_ask, self._begun = self.may_ask, True
                await self._idle.restart(self._tasks, self._end_when_idle)
                with self._reading:
                    await self._read()
                await self._protocol.handle(Closed())
                await self._idle.stop()
        except OSError:
            pass  # the client has gone
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _want_body(self) -> None:
        await self._protocol.want_body()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not self._closing:
                await self._protocol.handle(RawData(bytes(data)))
            if not data:
                return

    async def _send(self, event: Event) -> None:
        """What the protocol wants done."""
        match event:
            case RawData(data=data):
                await self._send_data(data)
            case Closed():
                await self._close()
            case Updated(idle=True):
                self._since, self.large = trio.current_time(), False
                await self._idle.restart(self._tasks, self._end_when_idle)
            case Updated(idle=False):
                await self._idle.stop()

    async def _send_data(self, data: bytes) -> None:
        async with self._sending:
            # Shielded: half an answer is none, and a request's end cancels the task that sends it.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._send_timeout) as patience:
                self._blocked_since = trio.current_time()
                try:
                    await self._stream.send_all(data)
                    self._blocked_since = None
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        if patience.cancelled_caught:
            log.info("a client did not read its answer and was given up", seconds=self._send_timeout)
        self._closing = True
        await trio.aclose_forcefully(self._stream)
        await self._protocol.handle(Closed())

    async def _close(self) -> None:
        """The last answer is sent: say so, and drop what still comes, until the client goes or `LINGER` is over."""
        self._closing = True
        async with self._sending:
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._reading.cancel(reason="the client has gone")
        self._reading.deadline = trio.current_time() + (0.1 if self._context.terminated.is_set() else LINGER)
        await self._protocol.handle(Closed())

    async def _end_when_idle(self) -> None:
        with trio.move_on_after(self._config.keep_alive_timeout):
            await self._context.terminated.wait()
        self._reading.cancel(reason="idle for too long, or the server stops")


class _NotServed(Exception):
    """The request is HTTP, but of a kind that is not served here."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Http1Connection(h11.Connection):
    """hypercorn answers `Expect: 100-continue` by itself when it reads this, before anybody has looked at the request."""

    they_are_waiting_for_100_continue = False


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1, without the ways out of it."""

    may_ask: Callable[[bytes, Iterable[tuple[bytes, bytes]]], bool]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = _Http1Connection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def want_body(self) -> None:
        """The application wants the body: say so to a client that waits for that with it (`Expect: 100-continue`). Who is refused
        without a look at the body is not asked for it."""
        assert isinstance(self.connection, h11.Connection)
        if self.connection.client_is_waiting_for_100_continue:
            await self._send_h11_event(
                h11.InformationalResponse(status_code=100, headers=self.config.response_headers("h11"))
            )

    async def handle(self, event: Event) -> None:
        try:
            await super().handle(event)
        except _NotServed as error:
            await self._send_error_response(error.status)
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """Where hypercorn changes to HTTP/2."""
        if event.http_version not in (b"1.0", b"1.1"):
            raise _NotServed(505)

    async def _create_stream(self, request: h11.Request) -> None:
        """Where hypercorn changes to WebSocket, for a request with the header Upgrade."""
        target = request.target
        # h11 bounds what has not come completely; what comes at once may be longer.
        if len(target) > LONGEST_TARGET:
            raise _NotServed(414)
        if sum(len(name) + len(value) for name, value in request.headers) > LONGEST_HEADERS:
            raise _NotServed(431)
        if absolute := _ABSOLUTE.fullmatch(target):
            target = absolute[1] if absolute[1].startswith(b"/") else b"/" + absolute[1]
        if not target.startswith(b"/") and target != b"*":
            raise _NotServed(400)
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            raise _NotServed(400)  # which of the two counts is what request smuggling is about (RFC 9112, 6.3)
        if not self.may_ask(target, request.headers):
            raise _NotServed(503)
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
        )

    async def _send_error_response(self, status_code: int) -> None:
        """Answers what is no proper HTTP. Nothing, when the answer to it has begun already."""
        if self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        text = {
            414: f"the URL is longer than {LONGEST_TARGET} bytes",
            431: "the request line and headers are too large",
            503: "there are too many connections or large requests at once; try again in a second",
            501: "this transfer encoding is not known here; send the body as it is, or chunked",
            505: "this service speaks HTTP/1.1",
        }.get(status_code, "this is not a proper HTTP/1.1 request")
        body = {"error": HTTPStatus(status_code).phrase, "message": text, "code": status_code}
        data = json.dumps(body).encode() + b"\n"
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(data)),
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if status_code == 503 else []),
            *self.config.response_headers("h11"),
        ]
        # All at once: between two sends a request under way could begin its own answer.
        events = (h11.Response(headers=headers, status_code=status_code), h11.Data(data=data), h11.EndOfMessage())
        await self.send(RawData(b"".join(self.connection.send(event) or b"" for event in events)))


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner
