"""Connections to etcd: which endpoint answers, who we are to it, and what can be asked of it.

Nothing here may decide what a value causes or when to try again.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from svc.etcd.channel import (
    CHANNEL_OPTIONS,
    CHECK_ENDPOINT,
    NO_QUORUM,
    TOKEN_IS_OLD,
    EtcdError,
    Trouble,
    answer_to,
    details_of,
    etcdrpc,
    grpc,
    understood,
)
from svc.etcd.keys import Found, Held, News, Put, all_in, encoded, news_in, range_end
from svc.etcd.stream import Stream, watch_requests
from svc.etcd.tls import credentials
from svc.settings import Endpoint, Settings

T = TypeVar("T")

ONE_SHOT_TIMEOUT = 5.0
"""Seconds that `read`, `write` and `delete` may take in all."""

_ANSWER = 3.0
"""Seconds that an endpoint may take to connect, authenticate and answer the first read."""

_PASSING = ("leader changed", "no leader")
"""What a member says while its cluster elects a leader (api/v3rpc/rpctypes/error.go): a matter of seconds."""

_TRY_AGAIN = 0.2
"""Seconds before a one-shot begins anew at another endpoint."""

_STAGGER = 0.3
"""Seconds after which the next endpoint is tried beside one that has not answered yet."""

# The member ends a watch itself once it has no leader; without this it would keep it, silent (etcd's clientv3,
# WithRequireLeader).
_REQUIRE_LEADER = (("hasleader", "true"),)


async def one_shot(settings: Settings, key: str, on: "Callable[[Connection, Found], Awaitable[T]]") -> T:
    """`on` with a connection and what it answered to a read of the key. An endpoint that fails us in the middle (killed, or
    without its leader) is no answer: `on` begins anew at another, so it must be something that may be done twice."""
    endpoint, endpoints, failed = "", list(settings.etcd_endpoints), ""
    with trio.move_on_after(ONE_SHOT_TIMEOUT):
        while True:
            try:
                async with connected(settings, key, endpoints) as (connection, answer):
                    endpoint = connection.endpoint
                    return await on(connection, answer)
            except Trouble as trouble:
                failed = f"etcd {endpoint}: {trouble.said}. {trouble.remedy}"
                if trouble.denied or trouble.remedy not in (CHECK_ENDPOINT, NO_QUORUM):
                    raise EtcdError(failed) from None
            except EtcdError as error:
                # Nobody answers: that is told at once, unless a member says that it will pass, or did answer before.
                if not failed and not any(passing in str(error) for passing in _PASSING):
                    raise
                failed = str(error)
            endpoints.append(endpoints.pop(0))
            await trio.sleep(_TRY_AGAIN)
    failed = failed or f"etcd {endpoint or _listed(settings.etcd_endpoints)}: no full answer"
    raise EtcdError(
        f"{failed} (Tried for {ONE_SHOT_TIMEOUT:g} s; a change may have been made all the same. Check that etcd is well, then "
        "look at the key before you try again.)"
    )


@contextlib.asynccontextmanager
async def connected(
    settings: Settings, key: str, endpoints: Sequence[Endpoint]
) -> "AsyncIterator[tuple[Connection, Found]]":
    """A connection, and its answer to a first read of the key. Raises `EtcdError` when no endpoint gives one."""
    connection, answer = await _first_to_answer(settings, key, endpoints)
    try:
        yield connection, answer
    finally:
        connection.close()


async def _first_to_answer(settings: Settings, key: str, endpoints: Sequence[Endpoint]) -> "tuple[Connection, Found]":
    """Try the endpoints in their order, each a little after the one before it unless that failed sooner; the first
    answer wins (RFC 8305's way with addresses). One that swallows everything delays us by a fraction of a second, not
    by a timeout."""
    won: tuple[Connection, Found] | None = None
    troubles: dict[str, Trouble] = {}

    async def attempt(endpoint: Endpoint, settled: trio.Event) -> None:
        nonlocal won
        connection = Connection(settings, endpoint)
        try:
            answer = await connection.open(key)
            if won is None:
                won = connection, answer
                nursery.cancel_scope.cancel(reason="another endpoint has answered")
        except Trouble as trouble:
            troubles[connection.endpoint] = trouble
        finally:
            if won is None or won[0] is not connection:
                connection.close()
            settled.set()

    # However many there are, the last has its full time within ONE_SHOT_TIMEOUT.
    stagger = min(_STAGGER, (ONE_SHOT_TIMEOUT - _ANSWER) / 2 / len(endpoints))
    try:
        async with trio.open_nursery() as nursery:
            for endpoint in endpoints:
                settled = trio.Event()
                nursery.start_soon(attempt, endpoint, settled)
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


class Connection:
    """A gRPC channel to one endpoint, with the settings' credentials. Its methods raise `Trouble`."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        self.endpoint = _listed([endpoint])
        self._settings = settings
        self._tls = endpoint.tls or settings.etcd_ca_cert is not None
        self._channel: Any = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def open(self, key: str) -> Found:
        """Connect, authenticate, and read the key."""
        answer = None
        with trio.move_on_after(_ANSWER):
            self._channel = (
                grpc.secure_channel(self.endpoint, await credentials(self._settings), options=CHANNEL_OPTIONS)
                if self._tls
                else grpc.insecure_channel(self.endpoint, options=CHANNEL_OPTIONS)
            )
            self.keys = etcdrpc.KVStub(self._channel)
            self.leases = etcdrpc.LeaseStub(self._channel)
            self.watches = etcdrpc.WatchStub(self._channel)
            await self._authenticate()
            answer = await self.find([key])
        if answer is None:
            raise Trouble(f"no answer within {_ANSWER:g} s", CHECK_ENDPOINT)
        return answer

    def close(self) -> None:
        """Drop the connection; may be repeated, and does not wait."""
        if self._channel is not None:
            self._channel.close()

    async def find(self, names: Sequence[str], prefixes: Sequence[str] = (), *, serializable: bool = False) -> Found:
        """These keys, and all whose names begin so, as of one moment. `serializable`: by this member alone, which may be behind,
        but is cheap.

        By reads at one revision, not by a transaction of reads: etcd before 3.5.5 ends itself when the client of such a
        transaction gives up in the middle ("unexpected error during txn", etcd-io/etcd#14110; seen with 3.5.1)."""
        asked = [(encoded(name), b"") for name in names] + [(encoded(prefix), range_end(prefix)) for prefix in prefixes]
        keys = {name: Held() for name in names}
        revision = 0
        for key, end in asked:
            # What the first one is answered for, this member has: the others need not ask the cluster again.
            request = etcdrpc.RangeRequest(
                key=key, range_end=end, revision=revision, serializable=serializable or bool(revision)
            )
            answer = await self.call(self.keys.Range, request)
            revision = revision or _revision(answer)
            keys |= {
                name: held
                for name, held in all_in(answer.kvs).items()
                if name in keys or any(name.startswith(prefix) for prefix in prefixes)
            }
        return Found(keys, revision)

    async def change(self, put: Put, *, since: int) -> tuple[bool, Found]:
        """Write the key, or delete it, if it has not been written since its revision `since` (0: if it is not there);
        returns whether it was, and else what it holds. The revision is then the one at which that was done."""
        key = encoded(put.key)
        compare = etcdrpc.Compare(result=etcdrpc.Compare.EQUAL, target=etcdrpc.Compare.MOD, key=key, mod_revision=since)
        write = (
            etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))
            if put.value is None
            else etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=put.value, lease=put.lease))
        )
        look = etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key))
        request = etcdrpc.TxnRequest(compare=[compare], success=[write], failure=[look])
        answer = await self.call(self.keys.Txn, request)
        looked_at = all_in(pair for part in answer.responses for pair in part.response_range.kvs)
        return bool(answer.succeeded), Found({put.key: Held()} | looked_at, _revision(answer))

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Set the key, bound to the lease if there is one; returns the revision."""
        request = etcdrpc.PutRequest(key=encoded(key), value=value, lease=lease)
        return _revision(await self.call(self.keys.Put, request))

    async def delete(self, key: str) -> int:
        """Delete the key, if it is there; returns the revision."""
        request = etcdrpc.DeleteRangeRequest(key=encoded(key))
        return _revision(await self.call(self.keys.DeleteRange, request))

    async def grant(self, ttl: float) -> int:
        """A lease of so many seconds, rounded up to whole ones."""
        request = etcdrpc.LeaseGrantRequest(TTL=math.ceil(ttl))
        if (lease := int((await self.call(self.leases.LeaseGrant, request)).ID)) == 0:
            raise Trouble(
                "etcd has given a lease without a number", CHECK_ENDPOINT
            )  # bound to 0 a key would stay for good
        return lease

    async def keep_alive(self, lease: int) -> float:
        """Give a lease its full time again; returns that time in seconds, 0 when there is no such lease any more."""
        # A call of its own each time: etcd's gRPC proxy answers the first request of a call at once, and later ones when it is
        # time for its own renewal. It is held open until the answer is there: the proxy does not answer one that is half closed.
        asked = [etcdrpc.LeaseKeepAliveRequest(ID=lease)]
        for again in (False, True):
            metadata = self._metadata
            keep_alive = lambda requests, metadata=metadata: self.leases.LeaseKeepAlive(requests, metadata=metadata)  # noqa: E731
            async with Stream(keep_alive, asked, lambda answer: float(answer.TTL), self.trouble) as stream:
                answer = await stream.receive()
            if not isinstance(answer, Trouble):
                return max(answer, 0.0)  # the proxy says -1 for 0
            if again or not self._metadata or not any(text in answer.said for text in TOKEN_IS_OLD):
                raise answer
            await self._authenticate()
        raise AssertionError("not reached")

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete the keys bound to it."""
        await self.call(self.leases.LeaseRevoke, etcdrpc.LeaseRevokeRequest(ID=lease))

    async def time_to_live(self, lease: int) -> float:
        """Whole seconds that a lease has left."""
        life = await self.call(self.leases.LeaseTimeToLive, etcdrpc.LeaseTimeToLiveRequest(ID=lease))
        return float(max(life.TTL, 0))  # -1: it ran out this moment

    async def call(self, method: Any, request: Any) -> Any:
        """One unary call. No bound of its own: the caller has one."""
        try:
            return await answer_to(method, request, self._metadata)
        except grpc.RpcError as error:
            # A token has a life (300 s by default), ends with a restart of its member, and with any change of users or
            # roles.
            if not self._metadata or not any(text in details_of(error) for text in TOKEN_IS_OLD):
                raise self.trouble(error) from None
        await self._authenticate()
        try:
            return await answer_to(method, request, self._metadata)
        except grpc.RpcError as error:
            raise self.trouble(error) from None

    def watch(self, names: Sequence[str], revision: int, *, prefixes: Sequence[str] = ()) -> Stream[News]:
        """A watch on some keys, and on all whose names begin in some way, from one revision on."""
        metadata = (*self._metadata, *_REQUIRE_LEADER)
        return Stream(
            lambda requests: self.watches.Watch(requests, metadata=metadata),
            watch_requests(names, prefixes, revision),
            news_in,
            self.trouble,
        )

    def trouble(self, error: Any) -> Trouble:
        """What a gRPC error of this connection means."""
        return understood(error, self._secret())

    async def _authenticate(self) -> None:
        if self._settings.etcd_username is None:
            return
        request = etcdrpc.AuthenticateRequest(name=self._settings.etcd_username, password=self._secret())
        try:
            answer = await answer_to(etcdrpc.AuthStub(self._channel).Authenticate, request, ())
        except grpc.RpcError as error:
            raise self.trouble(error) from None
        # As plain metadata: gRPC sends call credentials over TLS only.
        self._metadata = (("token", answer.token),)

    def _secret(self) -> str:
        held = self._settings.etcd_password
        return held.get_secret_value() if held is not None else ""


def _revision(answer: Any) -> int:
    """Of the store, as it was answered. etcd counts from 1, and a watch begins at the one after it."""
    revision = int(answer.header.revision)
    if not 0 < revision < 2**62:
        raise Trouble(f"the answer is not etcd's: it is of revision {revision}", CHECK_ENDPOINT)
    return revision


async def within(seconds: float, call: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """`call`, or a `Trouble` when it takes longer."""
    with trio.move_on_after(seconds):
        return await call(*args, **options)
    raise Trouble(f"no answer within {seconds:g} s", CHECK_ENDPOINT)


def _listed(endpoints: Sequence[Endpoint]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, _ in endpoints)
