"""The connections to one endpoint of SQS: made, kept while they are idle, and dropped before they can do harm.

The connection that was used last is used first, so that as many stay as are needed and the others grow old. One that is idle is
dropped when it has been so for `IDLE_SECONDS` (or shorter, where the server says so), when something lies unread on it, and when
the name of the endpoint no longer leads to its address: a name that is used is looked up again every `LOOK_UP_SECONDS`, because
SQS's endpoints move. Nothing ticks while nothing is asked: what ages is looked after by a task that ends with the last idle
connection.

How many are open at once is up to the callers. TLS is Trio's: version 1.2 or later, the name of the host checked.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

import trio

from svc.sqs.background import background
from svc.sqs.connection import Answer, Connection, ConnectionBroke
from svc.sqs.tcp import TcpStream

CONNECT_SECONDS = 3.0
"""How long making a connection may take, the look-up and TLS's handshake included."""

IDLE_SECONDS = 12.0
"""How long a connection is kept when nothing is asked: what the SDK keeps it for."""

LOOK_UP_SECONDS = 60.0
"""How old what is known of the host's addresses may be, for the next call."""


class CannotConnect(Exception):
    """There is no connection to the endpoint: nothing was sent."""


class TlsFailed(CannotConnect):
    """There is one, and no TLS on it: a certificate that is not trusted, a server that does not speak it."""


class CertificatesUnreadable(Exception):
    """The file of certificate authorities cannot be used; `__cause__` is the `OSError` that says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect to."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)

    @property
    def is_a_name(self) -> bool:
        """Whether it has to be looked up."""
        try:
            ip_address(self.host.partition("%")[0])
        except ValueError:
            return True
        return False


class World(Protocol):
    """What a pool needs of the network: real sockets, or a test's."""

    async def connect(self, endpoint: Endpoint) -> Connection: ...

    async def addresses(self, endpoint: Endpoint) -> Sequence[str]: ...


class Network:
    """The real one. `ca_bundle`: a file of certificate authorities, for TLS."""

    def __init__(self, ca_bundle: str | None = None) -> None:
        self._ca_bundle = ca_bundle
        self._context: ssl.SSLContext | None = None
        self._reading = trio.Lock()

    async def connect(self, endpoint: Endpoint) -> Connection:
        # Before there is a connection: certificates that cannot be read are so whether anybody listens or not.
        context = await self._tls() if endpoint.tls else None
        try:
            with trio.fail_after(CONNECT_SECONDS):
                # Several addresses are tried side by side, each a quarter of a second after the one before (RFC 8305).
                tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
                if context is None:
                    plain = TcpStream(tcp)
                    return Connection(plain, plain.close, peer=plain.peer, is_readable=plain.is_readable)
                try:
                    secured = trio.SSLStream(tcp, context, server_hostname=endpoint.host, https_compatible=True)
                    await secured.do_handshake()
                except BaseException:
                    tcp.socket.close()
                    raise
                return Connection(secured, tcp.socket.close, peer=_peer(tcp.socket), is_readable=tcp.socket.is_readable)
        except trio.TooSlowError:
            raise CannotConnect("no connection in time") from None
        except trio.BrokenResourceError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise TlsFailed(_reason(error.__cause__)) from None
            raise TlsFailed("it hung up during the handshake") from None
        except ssl.SSLError as error:
            raise TlsFailed(_reason(error)) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
            raise CannotConnect(type(error).__name__) from None

    async def addresses(self, endpoint: Endpoint) -> Sequence[str]:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=trio.socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    async def _tls(self) -> ssl.SSLContext:
        async with self._reading:
            if self._context is None:
                self._context = await trio.to_thread.run_sync(_tls_context, self._ca_bundle)
        return self._context


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise CertificatesUnreadable from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: ssl.SSLError) -> str:
    """What TLS has against it, in its own words: of certificates and protocols, never of what was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).replace("_", " ").lower()


def _peer(socket: trio.socket.SocketType) -> str | None:
    try:
        return str(socket.getpeername()[0])
    except OSError:
        return None  # gone again already: the first request finds out


class Pool:
    """Made by `opened()`."""

    def __init__(self, endpoint: Endpoint, world: World, nursery: trio.Nursery) -> None:
        self._endpoint = endpoint
        self._world = world
        self._nursery = nursery
        self._idle: list[Connection] = []  # the one that was used last at the end
        self._is_dropping = False
        self._addresses: frozenset[str] | None = None  # None: any
        self._look_up_at = trio.current_time() if endpoint.is_a_name else float("inf")
        self._is_closed = False

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def exchange(self, request: bytes, *, repeatable: bool) -> Answer:
        """Send a request, on an idle connection or a new one, and wait for its answer.

        An idle connection that turns out to be closed when it is used, before one byte of an answer, is replaced by a new one
        and the request sent once more: if it is `repeatable`, or if it had not gone out as a whole, so that nobody can have
        acted on it. Raises `CannotConnect`, `CertificatesUnreadable`, `ConnectionBroke` and `NotAnAnswer`. Cancelled, it closes
        the connection: nothing that was asked on it can reach somebody else.
        """
        connection = self._take()
        if connection is not None:
            try:
                return await self._exchanged(connection, request)
            except ConnectionBroke as broke:
                if broke.answer_began or (broke.was_sent and not repeatable):
                    raise
        return await self._exchanged(await self._world.connect(self._endpoint), request)

    async def _exchanged(self, connection: Connection, request: bytes) -> Answer:
        answer = await connection.exchange(request)
        # No checkpoint from here on: what the answer brings is ours already.
        if connection.is_open:
            self._keep(connection)
        return answer

    def _take(self) -> Connection | None:
        now = trio.current_time()
        if now >= self._look_up_at and not self._is_closed:
            self._look_up_at = now + LOOK_UP_SECONDS
            self._nursery.start_soon(self._look_up)
        while self._idle:
            connection = self._idle.pop()
            if now < self._drop_at(connection) and connection.is_fresh():
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if self._is_closed or self._has_moved(connection):
            connection.close()
            return
        connection.idle_since = trio.current_time()
        self._idle.append(connection)
        if not self._is_dropping:
            self._is_dropping = True
            self._nursery.start_soon(self._drop_idle)

    def _has_moved(self, connection: Connection) -> bool:
        return self._addresses is not None and connection.peer not in self._addresses

    def _drop_at(self, connection: Connection) -> float:
        told = connection.idle_seconds
        # A second less than the server says: a request that meets its closing would be lost on the way.
        kept = IDLE_SECONDS if told is None else min(IDLE_SECONDS, told - 1)
        return connection.idle_since + kept

    async def _drop_idle(self) -> None:
        """Close what has been idle for too long; ends with the last of it."""
        try:
            while self._idle:
                await trio.sleep_until(min(map(self._drop_at, self._idle)))
                now = trio.current_time()
                self._drop(lambda connection: now >= self._drop_at(connection))  # noqa: B023 - called here and now
        finally:
            self._is_dropping = False

    def _drop(self, goes: Callable[[Connection], bool]) -> None:
        kept = []
        for connection in self._idle:
            if goes(connection):
                connection.close()
            else:
                kept.append(connection)
        self._idle = kept

    async def _look_up(self) -> None:
        """Ask where the endpoint is by now. While nobody knows, it is where it was."""
        try:
            with trio.move_on_after(CONNECT_SECONDS):
                self._addresses = frozenset(await self._world.addresses(self._endpoint))
                self._drop(self._has_moved)
        except (OSError, UnicodeError):
            pass

    def close(self) -> None:
        self._is_closed = True
        self._drop(lambda connection: True)


@asynccontextmanager
async def opened(endpoint: Endpoint, world: World) -> AsyncIterator[Pool]:
    """A pool, whose idle connections are closed at the end. An `Exception` raised inside comes out as it is, in no group."""
    async with background("the queue is closed") as nursery:
        pool = Pool(endpoint, world, nursery)
        try:
            yield pool
        finally:
            pool.close()
