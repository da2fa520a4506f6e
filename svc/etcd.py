"""The switch in etcd: watch one key for the service (`KeyWatcher`); read, write and delete it for the command line.

How a watch goes: connect to the first endpoint that answers, read the key, watch from the revision after that answer,
so that no change falls between. While it lasts, a cheap read every five seconds proves that etcd still answers,
because a watch on a frozen or cut-off etcd is silent for ever. Whatever goes wrong - connection, compaction, expired
token, a fresh data directory - has one answer: a new connection, and the same from the start. It is the latest value
that counts, so nothing is lost by that.

etcd3 lends its generated stubs only. Its client spins a core while etcd is away, does not come back by itself and
cannot use a password without TLS. gRPC's threads stay inside this file: unary calls are futures whose completion wakes
Trio, and the watch, which gRPC offers only as a blocking iterator, has one thread that hands over and does nothing
else.

Nothing here may decide what a value causes, or let a gRPC error, a foreign thread or a password out.
"""

import contextlib
import itertools
import math
import os
import queue
import random
import re
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog
import trio

from svc.retry import backoff
from svc.settings import Settings

# gRPC's core prints connection trouble to standard error by itself, past every logger. Read when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
try:
    with warnings.catch_warnings():
        # Some hundred of them, from generated code, whatever version of protobuf there is.
        warnings.simplefilter("ignore", DeprecationWarning)
        import grpc
        from etcd3 import etcdrpc
except TypeError as error:  # "Descriptors cannot be created directly"
    raise ImportError(
        "etcd3 needs protobuf's pure-Python implementation, and another one is loaded. Set the environment variable "
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python (or import svc before anything that imports google.protobuf)."
    ) from error

log = structlog.get_logger(__name__)

T = TypeVar("T")

ONE_SHOT_TIMEOUT = 5.0
"""Seconds that `read`, `write` and `delete` may take in all."""

_ANSWER = 3.0
"""Seconds that an endpoint may take to connect, authenticate and answer the first read."""

_STAGGER = 0.3
"""Seconds after which the next endpoint is tried beside one that has not answered yet."""

_PROBE_EVERY = 5.0
"""Seconds between two proofs that etcd still answers."""

_PROBE_TIMEOUT = 2.0
"""Seconds that such a proof may take. With the interval: a frozen etcd is noticed within 7 s."""

_PROBES_PER_COMPARISON = 6
"""Every so many probes (30 s) the read is one that the whole cluster answers for, not only the member we are connected
to."""

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 2.0
"""Seconds before the first and between further attempts to connect. With `_ANSWER` this keeps the promise that a
change made meanwhile takes effect within 5 s of etcd's return."""

_CHANNEL_OPTIONS = [
    # Pings notice a peer that has gone without a word. Not more often: etcd refuses what comes closer than 5 s
    # (--grpc-keepalive-min-time). The current core obeys ping_timeout_ms, older ones keepalive_timeout_ms.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Channels to one address share connections, and their back-off, unless told not to: a new channel would inherit the
    # trouble that the old one was closed for.
    ("grpc.use_local_subchannel_pool", 1),
    # Despite its name this also bounds one attempt to connect; the default is 20 s. A channel is given up after one
    # failure, so back-off within it hardly matters.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # etcd stands beside the service. gRPC would take http_proxy for it.
    ("grpc.enable_http_proxy", 0),
]

# The member ends a watch itself once it has no leader; without this it would keep it, silent (etcd's clientv3,
# WithRequireLeader).
_REQUIRE_LEADER = (("hasleader", "true"),)


class EtcdError(Exception):
    """etcd could not do what was asked. The text says which endpoints were tried, what each said, and what to do."""


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key as etcd holds it."""

    value: bytes | None
    """None when there is no such key."""
    revision: int
    """Revision of the whole store at which this was read."""
    mod_revision: int | None
    """Revision at which the key was last written; None when there is no such key."""
    expires_in: float | None
    """Seconds until etcd deletes the key by itself, in whole seconds; None when it does not."""


@dataclass(frozen=True, slots=True)
class EtcdSnapshot:
    """How the watcher stands with etcd."""

    connected: bool
    """Whether the key is being watched now. While it is not, the last value read stands."""
    endpoint: str | None
    """`host:port` that is, or was last, watched; None before the first connection."""
    revision: int | None
    """Latest revision of the store that was seen; None before the first read."""
    since: float
    """Trio time (seconds) at which `connected` last changed, or at which the watcher was made."""
    last_error: str | None
    """What went wrong last, also when it is over; None when nothing has. Holds no password."""


class _Trouble(Exception):
    """One endpoint failed us: what it said, and what an operator can do about it."""

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(said)
        self.said = said
        self.remedy = remedy


class KeyWatcher:
    """Watches `settings.maintenance_key` for ever. Make it inside `trio.run`.

    `on_value` is called in the Trio thread with the key's value (None: there is no such key) and the revision at which
    it was read or changed: after every (re)connection, at every change, and perhaps more often with the same value. It
    must not block; what it raises ends `run()`. Revisions go backwards when etcd comes back with older or no data.
    """

    def __init__(self, settings: Settings, on_value: Callable[[bytes | None, int], None]) -> None:
        self._settings = settings
        self._on_value = on_value
        self._connected = False
        self._endpoint: str | None = None
        self._revision: int | None = None
        self._since = trio.current_time()
        self._last_error: str | None = None
        self._told_lost = False
        self._failures = 0
        self._rng = random.Random()
        # A fleet spreads over the members; each instance goes on from the one that it lost.
        self._endpoints = list(settings.etcd_endpoints)
        self._rng.shuffle(self._endpoints)
        # Of this connection: the value that the watch has brought us to, and the revision that was handed over last.
        self._watched: bytes | None = None
        self._offered = 0

    def snapshot(self) -> EtcdSnapshot:
        """How things stand now."""
        return EtcdSnapshot(self._connected, self._endpoint, self._revision, self._since, self._last_error)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; calls `started()` after the first read. etcd's troubles never end it."""
        settings, started = self._settings, False
        while True:
            try:
                async with _connected(settings, settings.maintenance_key, self._endpoints) as (connection, answer):
                    self._watched = _value(answer)
                    self._offered = 0  # a store that was restored or wiped counts from anew
                    self._offer(self._watched, answer.header.revision)
                    if not started:
                        task_status.started()
                        started = True
                    await self._follow(connection, answer.header.revision + 1)
            except EtcdError as error:
                self._lost(None, str(error))
            except _Trouble as trouble:
                self._lost(self._endpoint, trouble.said)
            self._endpoints.append(self._endpoints.pop(0))
            self._failures += 1
            await trio.sleep(backoff(self._failures, first=_FIRST_DELAY, cap=_LONGEST_DELAY, rng=self._rng))

    async def _follow(self, connection: "_Connection", revision: int) -> None:
        """Hand over changes from `revision` on, until something goes wrong: raises `_Trouble`."""
        async with (
            _Stream(connection, self._settings.maintenance_key, revision) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._prove_alive, connection, stream)
            trouble = await self._hand_over(connection, stream)
            nursery.cancel_scope.cancel()
        raise trouble  # out here, where no nursery wraps it

    async def _hand_over(self, connection: "_Connection", stream: "_Stream") -> _Trouble:
        while True:
            news = await stream.receive()
            if isinstance(news, _Trouble):
                return news
            # Before `created`: a watch that etcd refuses has both.
            if news.canceled or news.compact_revision:
                reason = news.cancel_reason or f"compacted up to revision {news.compact_revision}"
                return _Trouble(f"etcd ended the watch: {reason}", "")
            if news.created:
                self._back(connection.endpoint)
            for event in news.events:
                self._watched = event.kv.value if event.type == event.PUT else None
                if event.kv.mod_revision > self._offered:  # else a probe was quicker, and knew more
                    self._offer(self._watched, event.kv.mod_revision)

    async def _prove_alive(self, connection: "_Connection", stream: "_Stream") -> None:
        """Read the key again and again; tell `stream` when there is no answer, or when the watch has missed
        something."""
        missed = False
        for number in itertools.count(1):
            await trio.sleep(_PROBE_EVERY)
            alone = number % _PROBES_PER_COMPARISON != 0
            answer = None
            try:
                with trio.move_on_after(_PROBE_TIMEOUT):
                    answer = await connection.read(self._settings.maintenance_key, serializable=alone)
            except _Trouble as trouble:
                stream.end(trouble)
                return
            if answer is None:
                stream.end(_Trouble(f"no answer within {_PROBE_TIMEOUT:g} s", _CHECK_ENDPOINT))
                return
            self._failures = 0
            newer = answer.header.revision >= self._offered and _value(answer) != self._watched
            if newer:
                self._offer(_value(answer), answer.header.revision)
                # Once is a change on its way to us. Twice running is a watch that is dead and does not know it.
                if missed:
                    stream.end(_Trouble("the watch was alive but missed a change", ""))
                    return
            missed = newer

    def _offer(self, value: bytes | None, revision: int) -> None:
        self._offered = self._revision = revision
        self._on_value(value, revision)

    def _back(self, endpoint: str) -> None:
        self._endpoint = endpoint
        if not self._connected:
            self._connected, self._since = True, trio.current_time()
            log.info("etcd connected", endpoint=endpoint, revision=self._revision)
        self._told_lost = False

    def _lost(self, endpoint: str | None, error: str) -> None:
        self._last_error = error
        if self._connected:
            self._connected, self._since = False, trio.current_time()
        if self._told_lost:
            log.debug("etcd attempt failed", error=error)
            return
        self._told_lost = True
        if self._revision is None:
            log.warning("etcd out of reach; the key has not been read yet", error=error)
        else:
            log.warning("etcd lost; the last known state stands", endpoint=endpoint, error=error)


async def read(settings: Settings, key: str) -> KeyState:
    """The key now, by a read that the whole cluster answers for. Takes 5 s at most. Raises `EtcdError`."""

    async def on(connection: _Connection, answer: Any) -> KeyState:
        if not answer.kvs:
            return KeyState(None, answer.header.revision, None, None)
        held = answer.kvs[0]
        expires_in: float | None = None
        if held.lease:
            request = etcdrpc.LeaseTimeToLiveRequest(ID=held.lease)
            life = await connection.call(connection.leases.LeaseTimeToLive, request)
            expires_in = float(max(life.TTL, 0))  # -1: it ran out this moment
        return KeyState(held.value, answer.header.revision, held.mod_revision, expires_in)

    return await _one_shot(settings, key, on)


async def write(settings: Settings, key: str, value: bytes, *, ttl: float | None = None) -> int:
    """Set the key; returns the revision. Takes 5 s at most. Raises `EtcdError`.

    With `ttl` etcd deletes the key by itself after so many seconds, rounded up to whole ones. It must be above 0
    (ValueError); etcd raises what is below its own minimum, about one and a half election timeouts, 2 s by default.
    Without `ttl` the key stays, whatever it was bound to before.
    """
    if ttl is not None and not 0 < ttl <= _LONGEST_LEASE:
        raise ValueError(f"ttl={ttl!r} is not a time to live in seconds, above 0 and up to {_LONGEST_LEASE}")

    async def on(connection: _Connection, answer: Any) -> int:
        lease = 0
        if ttl is not None:
            request = etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl))
            lease = (await connection.call(connection.leases.LeaseGrant, request)).ID
        put = etcdrpc.PutRequest(key=_encoded(key), value=value, lease=lease)
        return int((await connection.call(connection.keys.Put, put)).header.revision)

    return await _one_shot(settings, key, on)


async def delete(settings: Settings, key: str) -> int:
    """Delete the key, if it is there; returns the revision. Takes 5 s at most. Raises `EtcdError`."""

    async def on(connection: _Connection, answer: Any) -> int:
        request = etcdrpc.DeleteRangeRequest(key=_encoded(key))
        return int((await connection.call(connection.keys.DeleteRange, request)).header.revision)

    return await _one_shot(settings, key, on)


async def _one_shot(settings: Settings, key: str, on: "Callable[[_Connection, Any], Awaitable[T]]") -> T:
    """`on` with a connection and what it answered to a read of the key."""
    endpoint = ""
    with trio.move_on_after(ONE_SHOT_TIMEOUT):
        async with _connected(settings, key, settings.etcd_endpoints) as (connection, answer):
            endpoint = connection.endpoint
            try:
                return await on(connection, answer)
            except _Trouble as trouble:
                raise EtcdError(f"etcd {endpoint}: {trouble.said}. {trouble.remedy}") from None
    raise EtcdError(
        f"etcd {endpoint or _listed(settings.etcd_endpoints)}: no full answer within {ONE_SHOT_TIMEOUT:g} s; a change "
        "may have been made all the same. Check that etcd is well, then look at the key before you try again."
    )


@contextlib.asynccontextmanager
async def _connected(
    settings: Settings, key: str, endpoints: Sequence[tuple[str, int]]
) -> "AsyncIterator[tuple[_Connection, Any]]":
    """A connection, and its answer to a first read of the key. Raises `EtcdError` when no endpoint gives one."""
    connection, answer = await _first_to_answer(settings, key, endpoints)
    try:
        yield connection, answer
    finally:
        connection.close()


async def _first_to_answer(
    settings: Settings, key: str, endpoints: Sequence[tuple[str, int]]
) -> "tuple[_Connection, Any]":
    """Try the endpoints in their order, each a little after the one before it unless that failed sooner; the first
    answer wins (RFC 8305's way with addresses). One that swallows everything delays us by a fraction of a second, not
    by a timeout."""
    won: tuple[_Connection, Any] | None = None
    troubles: dict[str, _Trouble] = {}

    async def attempt(host: str, port: int, settled: trio.Event) -> None:
        nonlocal won
        connection = _Connection(settings, host, port)
        try:
            answer = await connection.open(key)
            if won is None:
                won = connection, answer
                nursery.cancel_scope.cancel()
        except _Trouble as trouble:
            troubles[connection.endpoint] = trouble
        finally:
            if won is None or won[0] is not connection:
                connection.close()
            settled.set()

    # However many there are, the last has its full time within ONE_SHOT_TIMEOUT.
    stagger = min(_STAGGER, (ONE_SHOT_TIMEOUT - _ANSWER) / 2 / len(endpoints))
    try:
        async with trio.open_nursery() as nursery:
            for host, port in endpoints:
                settled = trio.Event()
                nursery.start_soon(attempt, host, port, settled)
                with trio.move_on_after(stagger):
                    await settled.wait()
    except BaseException:
        if won is not None:
            won[0].close()
        raise
    if won is not None:
        return won
    said = "; ".join(f"{endpoint}: {trouble.said}" for endpoint, trouble in troubles.items())
    remedies = " ".join(dict.fromkeys(trouble.remedy for trouble in troubles.values()))
    raise EtcdError(f"etcd cannot be used ({said}). {remedies}")


class _Connection:
    """A gRPC channel to one endpoint, with the settings' credentials. Its methods raise `_Trouble`."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self.endpoint = _listed([(host, port)])
        self._settings = settings
        self._channel: Any = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def open(self, key: str) -> Any:
        """Connect, authenticate, and read the key."""
        answer = None
        with trio.move_on_after(_ANSWER):
            credentials = await self._tls()
            self._channel = (
                grpc.insecure_channel(self.endpoint, options=_CHANNEL_OPTIONS)
                if credentials is None
                else grpc.secure_channel(self.endpoint, credentials, options=_CHANNEL_OPTIONS)
            )
            self.keys = etcdrpc.KVStub(self._channel)
            self.leases = etcdrpc.LeaseStub(self._channel)
            self.watches = etcdrpc.WatchStub(self._channel)
            await self._authenticate()
            answer = await self.read(key)
        if answer is None:
            raise _Trouble(f"no answer within {_ANSWER:g} s", _CHECK_ENDPOINT)
        return answer

    def close(self) -> None:
        """Drop the connection; may be repeated, and does not wait."""
        if self._channel is not None:
            self._channel.close()

    async def read(self, key: str, *, serializable: bool = False) -> Any:
        """The answer to a read of the key. `serializable`: by this member alone, which may be behind, but is cheap."""
        return await self.call(self.keys.Range, etcdrpc.RangeRequest(key=_encoded(key), serializable=serializable))

    async def call(self, method: Any, request: Any) -> Any:
        """One unary call. No bound of its own: the caller has one."""
        try:
            return await _answer(method, request, self._metadata)
        except grpc.RpcError as error:
            # A token has a life (300 s by default), ends with a restart of its member, and with any change of users or
            # roles.
            if not self._metadata or not any(text in _details(error) for text in _TOKEN_IS_OLD):
                raise self.trouble(error) from None
        await self._authenticate()
        try:
            return await _answer(method, request, self._metadata)
        except grpc.RpcError as error:
            raise self.trouble(error) from None

    def watch(self, requests: Any) -> Any:
        """The raw watch stream: a blocking iterator that can be cancelled."""
        return self.watches.Watch(requests, metadata=(*self._metadata, *_REQUIRE_LEADER))

    def trouble(self, error: Any) -> _Trouble:
        """What a gRPC error of this connection means."""
        return _understood(error, self._secret())

    async def _authenticate(self) -> None:
        if self._settings.etcd_username is None:
            return
        request = etcdrpc.AuthenticateRequest(name=self._settings.etcd_username, password=self._secret())
        try:
            answer = await _answer(etcdrpc.AuthStub(self._channel).Authenticate, request, ())
        except grpc.RpcError as error:
            raise self.trouble(error) from None
        # As plain metadata: gRPC sends call credentials over TLS only.
        self._metadata = (("token", answer.token),)

    def _secret(self) -> str:
        held = self._settings.etcd_password
        return held.get_secret_value() if held is not None else ""

    async def _tls(self) -> Any:
        """Credentials of a TLS channel; None for plain text."""
        paths = [self._settings.etcd_ca_cert, self._settings.etcd_key, self._settings.etcd_cert]
        if not any(paths):
            return None
        try:
            # Anew each time: certificates are renewed under a running service.
            held = [
                await trio.to_thread.run_sync(Path(path).read_bytes, limiter=_files) if path else None for path in paths
            ]
        except OSError as error:
            raise _Trouble(
                f"cannot read {error.filename}: {error.strerror}", "Check ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."
            ) from None
        return grpc.ssl_channel_credentials(*held)


class _Stream:
    """A watch on one key from one revision on, as an async context manager. It owns the thread that gRPC's iterator
    needs."""

    def __init__(self, connection: _Connection, key: str, revision: int) -> None:
        self._send, self._receive = trio.open_memory_channel[Any](math.inf)
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._connection = connection
        # It must stay open: a request iterator that ends closes our half of the stream.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        create = etcdrpc.WatchCreateRequest(key=_encoded(key), start_revision=revision)
        self._requests.put(etcdrpc.WatchRequest(create_request=create))
        self._call: Any = None

    async def __aenter__(self) -> Self:
        self._call = self._connection.watch(iter(self._requests.get, None))
        threading.Thread(target=self._pump, name="etcd-watch", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        self._requests.put(None)
        # The cancelled call ends at once, and the thread with it; a bound, since nobody can promise that for foreign
        # code.
        with trio.move_on_after(1, shield=True):
            await self._ended.wait()

    async def receive(self) -> Any:
        """The next WatchResponse, or the `_Trouble` with which the stream ended."""
        return await self._receive.receive()

    def end(self, trouble: _Trouble) -> None:
        """Let `receive()` give this trouble next."""
        self._send.send_nowait(trouble)

    def _pump(self) -> None:
        """In the thread: hand each response over to Trio."""
        trouble = _Trouble("etcd ended the watch", "")
        try:
            for response in self._call:
                self._token.run_sync_soon(self._send.send_nowait, response)  # unbounded, never closed: it cannot raise
        except grpc.RpcError as error:
            trouble = self._connection.trouble(error)
        except trio.RunFinishedError:
            return
        except Exception as error:
            trouble = _Trouble(f"the watch broke: {error!r}", "")
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.end, trouble)
            self._token.run_sync_soon(self._ended.set)


async def _answer(method: Any, request: Any, metadata: tuple[tuple[str, str], ...]) -> Any:
    """A unary call as a future: no thread waits, and cancelling ends the call at once. Raises grpc.RpcError."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: object) -> None:  # in a thread of gRPC's
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future = method.future(request, metadata=metadata)
    future.add_done_callback(wake)
    try:
        await done.wait()
    finally:
        future.cancel()  # does nothing when it is done
    return future.result()


def _understood(error: Any, secret: str) -> _Trouble:
    """What a gRPC error says, in words for an operator, and what to do about it."""
    code, details = error.code(), _details(error)
    if secret:
        details = details.replace(secret, "********")
    # "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connect: Connection refused (111)"
    said = re.sub(r"^[A-Z]+: (?:ipv[46]:\S+: )?", "", details.rpartition("last error: ")[2]) or code.name
    for text, remedy in _REMEDIES:
        if text in details:
            return _Trouble(said, remedy)
    return _Trouble(said if code is grpc.StatusCode.UNAVAILABLE else f"{code.name}: {said}", _CHECK_ENDPOINT)


def _details(error: Any) -> str:
    return str(error.details() or "")


_CHECK_ENDPOINT = "Check ETCD_ENDPOINTS, and that etcd runs there and is healthy; if it wants TLS, set ETCD_CA_CERT."

# Not Trio's default one: whoever fills that must not delay the switch.
_files = trio.CapacityLimiter(1)

_TOKEN_IS_OLD = ("invalid auth token", "revision of auth store is old")

# etcd's own words (api/v3rpc/rpctypes/error.go) and those of gRPC's TLS.
_REMEDIES = (
    ("invalid user ID or password", "Check ETCD_USERNAME and ETCD_PASSWORD."),
    ("user name is empty", "etcd wants a user: set ETCD_USERNAME and ETCD_PASSWORD."),
    ("authentication is not enabled", "etcd knows no users: unset ETCD_USERNAME and ETCD_PASSWORD."),
    ("permission denied", "Grant the user a role that may read and write the key (etcdctl role grant-permission)."),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "Check ETCD_CA_CERT: its certificate is not of this authority, or not for this host.",
    ),
    ("andshake", "Check that etcd speaks TLS there, and ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."),
    ("no leader", "The etcd cluster has no quorum: bring its members back."),
)

_LONGEST_LEASE = 9_000_000_000
"""Seconds; etcd's own limit (server/lease/lessor.go, MaxLeaseTTL)."""


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _value(answer: Any) -> bytes | None:
    return answer.kvs[0].value if answer.kvs else None


def _listed(endpoints: Sequence[tuple[str, int]]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in endpoints)
