"""Connections to etcd: which endpoint answers, who we are to it, and what can be asked of it.

Nothing here may decide what a value causes or when to try again.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from svc.etcd import messages
from svc.etcd.errors import CHECK_ENDPOINT, NO_QUORUM, TOKEN_IS_OLD, EtcdError, Trouble
from svc.etcd.grpc_calls import Call, begun, unary
from svc.etcd.grpc_calls import call as grpc_call
from svc.etcd.http2 import Http2
from svc.etcd.keys import Found, Held, News, Put, all_in, encoded, news_in, range_end
from svc.etcd.reach import listed, reach
from svc.etcd.renewals import Renewals
from svc.etcd.stream import Stream, watch_requests
from svc.settings import Endpoint, Settings, printable

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

_STOOD_STILL = 0.5
"""Seconds by which a time limit is noticed too late when this process, or its event loop, did not run."""

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
    failed = failed or f"etcd {endpoint or listed(settings.etcd_endpoints)}: no full answer"
    raise EtcdError(
        f"{failed} (Tried for {ONE_SHOT_TIMEOUT:g} s; a change may have been made all the same. Check that etcd is well, then "
        "look at the key before you try again.)"
    )


@contextlib.asynccontextmanager
async def connected(
    settings: Settings, key: str, endpoints: Sequence[Endpoint]
) -> "AsyncIterator[tuple[Connection, Found]]":
    """A connection, and its answer to a first read of the key. Raises `EtcdError` when no endpoint gives one."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:  # in which connections move their bytes
        try:
            connection, answer = await _first_to_answer(settings, key, endpoints, nursery)
            try:
                yield connection, answer
            finally:
                connection.close()
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel(reason="the connection is not needed any more")
    if failure is not None:
        raise failure  # out here, where no nursery wraps it


async def _first_to_answer(
    settings: Settings, key: str, endpoints: Sequence[Endpoint], theirs: trio.Nursery
) -> "tuple[Connection, Found]":
    """Try the endpoints in their order, each a little after the one before it unless that failed sooner; the first
    answer wins (RFC 8305's way with addresses). One that swallows everything delays us by a fraction of a second, not
    by a timeout."""
    won: tuple[Connection, Found] | None = None
    troubles: dict[str, Trouble] = {}

    async def attempt(endpoint: Endpoint, settled: trio.Event) -> None:
        nonlocal won
        connection = Connection(settings, endpoint)
        try:
            answer = await connection.open(key, theirs)
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
    """A connection to one endpoint, with the settings' credentials. Its methods raise `Trouble`."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        self.endpoint = listed([endpoint])
        self._settings = settings
        self._to = endpoint
        self._http2: Http2 | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._renewals = Renewals(self._begin_renewing)

    async def open(self, key: str, nursery: trio.Nursery) -> Found:
        """Connect, authenticate, and read the key. The connection moves its bytes in the nursery, until `close`."""
        self._nursery = nursery
        with trio.move_on_after(_ANSWER):
            self._http2 = await reach(self._settings, self._to, self.endpoint, nursery)
            await self._authenticate()
            return await self.find([key])
        raise Trouble(f"no answer within {_ANSWER:g} s", CHECK_ENDPOINT)

    def close(self) -> None:
        """Drop the connection; may be repeated, and does not wait."""
        if self._http2 is not None:
            self._http2.close()

    async def find(self, names: Sequence[str], prefixes: Sequence[str] = (), *, serializable: bool = False) -> Found:
        """These keys, and all whose names begin so, as of one moment. `serializable`: by this member alone, which may be behind,
        but is cheap.

        By reads at one revision, not by a transaction of reads: etcd before 3.5.5 ends itself when the client of such a
        transaction gives up in the middle ("unexpected error during txn", etcd-io/etcd#14110; seen with 3.5.1)."""
        keys = {name: Held() for name in names}
        # Names are asked for together, which wakes an idle process up once, and again if the store changed between them.
        answers = await self._ranges([(encoded(name), b"") for name in names], serializable=serializable)
        revision = _revision(answers[0]) if answers else 0
        for number, name in enumerate(names):
            if _revision(answers[number]) != revision:
                (answers[number],) = await self._ranges([(encoded(name), b"")], revision, serializable=True)
        for prefix in prefixes:
            # What the first one is answered for, this member has: the others need not ask the cluster again.
            asked = [(encoded(prefix), range_end(prefix))]
            answers += await self._ranges(asked, revision, serializable=serializable or bool(revision))
            revision = revision or _revision(answers[0])
        for answer in answers:
            for name, held in all_in(answer.kvs).items():
                if name in keys or any(name.startswith(prefix) for prefix in prefixes):
                    keys[name] = held
        return Found(keys, revision)

    async def _ranges(
        self, asked: Sequence[tuple[bytes, bytes]], revision: int = 0, *, serializable: bool
    ) -> list[Any]:
        """Each from a key up to an end (empty: that key alone), all at this revision (0: the latest, which may differ)."""
        how = {"revision": revision, "serializable": serializable}
        requests = [messages.RangeRequest(key=key, range_end=end, **how) for key, end in asked]
        return await self._calls("KV/Range", requests)

    async def change(self, put: Put, *, since: int) -> tuple[bool, Found]:
        """Write the key, or delete it, if it has not been written since its revision `since` (0: if it is not there);
        returns whether it was, and else what it holds. The revision is then the one at which that was done."""
        key = encoded(put.key)
        compare = messages.Compare(result=messages.EQUAL, target=messages.MOD, key=key, mod_revision=since)
        write = (
            messages.RequestOp(request_delete_range=messages.DeleteRangeRequest(key=key))
            if put.value is None
            else messages.RequestOp(request_put=messages.PutRequest(key=key, value=put.value, lease=put.lease))
        )
        look = messages.RequestOp(request_range=messages.RangeRequest(key=key))
        request = messages.TxnRequest(compare=[compare], success=[write], failure=[look])
        answer = await self.call("KV/Txn", request)
        looked_at = all_in(pair for part in answer.responses for pair in part.response_range.kvs)
        return bool(answer.succeeded), Found({put.key: Held()} | looked_at, _revision(answer))

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Set the key, bound to the lease if there is one; returns the revision."""
        request = messages.PutRequest(key=encoded(key), value=value, lease=lease)
        return _revision(await self.call("KV/Put", request))

    async def delete(self, key: str) -> int:
        """Delete the key, if it is there; returns the revision."""
        request = messages.DeleteRangeRequest(key=encoded(key))
        return _revision(await self.call("KV/DeleteRange", request))

    async def grant(self, ttl: float) -> int:
        """A lease of so many seconds, rounded up to whole ones."""
        request = messages.LeaseGrantRequest(TTL=math.ceil(ttl))
        if (lease := int((await self.call("Lease/LeaseGrant", request)).ID)) == 0:
            raise Trouble(
                "etcd has given a lease without a number", CHECK_ENDPOINT
            )  # bound to 0 a key would stay for good
        return lease

    async def keep_alive(self, lease: int) -> float:
        """Give a lease its full time again; returns that time in seconds, 0 when there is no such lease any more."""
        return await self._with_a_token(lambda: self._renewals.renew(lease))

    async def _begin_renewing(self) -> tuple[Call, bool]:
        # One that stays open must leave places for a watch and for the other calls.
        stays = self._open.places > 2
        return await begun(self._open, _path("Lease/LeaseKeepAlive"), self._metadata, lasts=stays), stays

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete the keys bound to it."""
        await self.call("Lease/LeaseRevoke", messages.LeaseRevokeRequest(ID=lease))

    async def time_to_live(self, lease: int) -> float:
        """Whole seconds that a lease has left."""
        life = await self.call("Lease/LeaseTimeToLive", messages.LeaseTimeToLiveRequest(ID=lease))
        return float(max(life.TTL, 0))  # -1: it ran out this moment

    async def call(self, method: str, request: Any) -> Any:
        """One unary call. No bound of its own: the caller has one."""
        (answer,) = await self._calls(method, [request])
        return answer

    async def _calls(self, method: str, requests: Sequence[Any]) -> list[Any]:
        """Unary calls that are sent together."""
        sent = [request.SerializeToString() for request in requests]
        answers = await self._with_a_token(lambda: unary(self._open, _path(method), self._metadata, sent))
        return [messages.read(method.partition("/")[2] + "Response", answer) for answer in answers]

    def watch(self, names: Sequence[str], revision: int, *, prefixes: Sequence[str] = ()) -> Stream[News]:
        """A watch on some keys, and on all whose names begin in some way, from one revision on."""
        return Stream(
            self._watching(),
            watch_requests(names, prefixes, revision),
            lambda answer: news_in(messages.read("WatchResponse", answer)),
            self._hidden,
        )

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[Call]:
        """A watch, for as long as the block lasts: where one call is taken at a time, on a connection of its own."""
        alone = self._open.places < 2
        http2 = await reach(self._settings, self._to, self.endpoint, self._nursery) if alone else self._open
        try:
            metadata = (*self._metadata, *_REQUIRE_LEADER)
            async with grpc_call(http2, _path("Watch/Watch"), metadata, lasts=True) as watching:
                yield watching
        finally:
            if alone:
                http2.close()

    async def _with_a_token(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, with a new token if ours is not good any more: it has a life (300 s by default), ends with a
        restart of its member, and with any change of users or roles."""
        try:
            return await ask()
        except Trouble as trouble:
            if not self._metadata or not any(text in trouble.said for text in TOKEN_IS_OLD):
                raise self._hidden(trouble) from None
        await self._authenticate()
        try:
            return await ask()
        except Trouble as trouble:
            raise self._hidden(trouble) from None

    def _hidden(self, trouble: Trouble) -> Trouble:
        """The same without the password, which somebody may have said back to us."""
        said = trouble.said
        for secret in filter(None, (self._secret(), printable(self._secret()))):
            said = said.replace(secret, "********")
        return Trouble(said, trouble.remedy, denied=trouble.denied, refused=trouble.refused)

    def _secret(self) -> str:
        held = self._settings.etcd_password
        return held.get_secret_value() if held is not None else ""

    @property
    def _open(self) -> Http2:
        assert self._http2 is not None, "open() comes first"
        return self._http2

    async def _authenticate(self) -> None:
        if self._settings.etcd_username is None:
            return
        request = messages.AuthenticateRequest(
            name=encoded(self._settings.etcd_username), password=encoded(self._secret())
        )
        try:
            (answer,) = await unary(self._open, _path("Auth/Authenticate"), (), [request.SerializeToString()])
        except Trouble as trouble:
            raise self._hidden(trouble) from None
        self._metadata = (("token", messages.read("AuthenticateResponse", answer).token),)


def _path(method: str) -> str:
    return f"/etcdserverpb.{method}"


def _revision(answer: Any) -> int:
    """Of the store, as it was answered. etcd counts from 1, and a watch begins at the one after it."""
    revision = int(answer.header.revision)
    if not 0 < revision < 2**62:
        raise Trouble(f"the answer is not etcd's: it is of revision {revision}", CHECK_ENDPOINT)
    return revision


async def within(seconds: float, call: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """`call`, or a `Trouble` when it takes longer. When it was we who stood still meanwhile, it is asked once more: the answer
    may lie in the socket, and says nothing about the other side that it was not read."""
    for _ in range(2):
        began = trio.current_time()
        with trio.move_on_after(seconds):
            return await call(*args, **options)
        if trio.current_time() < began + seconds + _STOOD_STILL:
            break
    raise Trouble(f"no answer within {seconds:g} s", CHECK_ENDPOINT)
