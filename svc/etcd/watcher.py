"""The switch in etcd: watch one key for the service (`KeyWatcher`); read, write and delete it for the command line.

How a watch goes: connect to the first endpoint that answers, read the key, watch from the revision after that answer,
so that no change falls between. While it lasts, a cheap read every five seconds proves that etcd still answers,
because a watch on a frozen or cut-off etcd is silent for ever. Whatever goes wrong - connection, compaction, expired
token, a fresh data directory - has one answer: a new connection, and the same from the start. It is the latest value
that counts, so nothing is lost by that.

Nothing here may decide what a value causes.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from svc.backoff import backoff
from svc.etcd.connection import Connection, connected, one_shot, within
from svc.etcd.errors import EtcdError, Trouble
from svc.etcd.keys import LONGEST_LEASE, Found, Held
from svc.etcd.link import Connect, Link, Watch
from svc.etcd.tls import password_in_the_open
from svc.settings import Settings
from svc.wakeup import next_tick

__all__ = ["EtcdError", "EtcdSnapshot", "KeyState", "KeyWatcher", "delete", "read", "write"]

log = structlog.get_logger(__name__)

_PROBE_EVERY = 5.0
"""Seconds between two proofs that etcd still answers."""

_PROBE_TIMEOUT = 2.0
"""Seconds that such a proof may take. With the interval: a frozen etcd is noticed within 7 s."""

_PROBES_PER_OWN_KEY = 3
"""Every so many probes (15 s) our own key is read too: what the watch says of the two comes on one stream."""

_PROBES_PER_COMPARISON = 6
"""Every so many probes (30 s) the read is one that the whole cluster answers for, not only the member we are connected
to."""

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 2.0
"""Seconds before the first and between further attempts to connect. With `_ANSWER` this keeps the promise that a
change made meanwhile takes effect within 5 s of etcd's return."""


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


class KeyWatcher:
    """Watches `settings.maintenance_key` for ever, and besides it the key of this `instance` alone. Make it inside
    `trio.run`.

    `on_value` is called in the Trio thread with the key's value (None: there is no such key) and the revision at which
    it was written, or seen to be absent: after every (re)connection, at every change, and perhaps more often with the
    same value. It must not block; what it raises ends `run()`. Revisions go backwards when etcd comes back with older
    or no data. `on_own_value` is called in the same way for the other key, and before the `on_value` of the same read.

    `connect` opens connections; tests give one to an etcd in memory.

    `on_looked` is called with the Trio time at which an attempt to read the keys began that has just ended, and whether
    the whole cluster has answered (then it comes after the calls above) or no endpoint did.
    """

    def __init__(
        self,
        settings: Settings,
        on_value: Callable[[bytes | None, int], None],
        *,
        own_key: str | None = None,
        on_own_value: Callable[[bytes | None, int], None] = lambda value, revision: None,
        on_looked: Callable[[float, bool], None] = lambda began, answered: None,
        connect: Connect = connected,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._main = settings.maintenance_key
        self._own = own_key
        self._tell = {self._main: on_value}
        if own_key is not None:
            self._tell = {own_key: on_own_value, self._main: on_value}  # in the order of telling
        self._on_looked = on_looked
        self._connected = False
        self._endpoint: str | None = None
        self._revision: int | None = None
        self._since = trio.current_time()
        self._last_error: str | None = None
        self._told_lost = False
        self._told_denied = False
        self._failures = 0
        self._rng = rng or random.Random()
        # A fleet spreads over the members; each instance goes on from the one that it lost.
        self._endpoints = list(settings.etcd_endpoints)
        self._rng.shuffle(self._endpoints)
        # Of this connection, for each key: what the watch has brought us to, and the revision that was handed over last.
        self._watched: dict[str, Held] = {}
        self._offered: dict[str, int] = {}
        self._look = trio.Event()

    def snapshot(self) -> EtcdSnapshot:
        """How things stand now."""
        return EtcdSnapshot(self._connected, self._endpoint, self._revision, self._since, self._last_error)

    def look_again(self) -> None:
        """Read the keys now, and do not only wait for news of them. Does not wait."""
        self._look.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; calls `started()` after the first read. etcd's troubles never end it."""
        settings, started = self._settings, False
        if hosts := password_in_the_open(settings):
            log.warning(
                "the password for etcd goes over the network in clear text: write https:// before each of ETCD_ENDPOINTS",
                endpoint=", ".join(hosts),
            )
        while True:
            self._look = trio.Event()
            began = trio.current_time()
            try:
                async with self._connect(settings, self._main, self._endpoints) as (connection, answer):
                    found = await self._read_all(connection, answer)
                    self._watched, self._offered = {}, {}  # a store that was restored or wiped counts from anew
                    for key in [key for key in self._tell if key in found.keys]:
                        self._watched[key] = found.keys[key]
                        self._offer(key, found.keys[key], found.revision)
                    self._on_looked(began, True)
                    if not started:
                        task_status.started()
                        started = True
                    await self._follow(connection, found.revision + 1)
            except EtcdError as error:
                self._lost(None, str(error))
                self._on_looked(began, False)
            except Trouble as trouble:
                self._lost(self._endpoint, trouble.said)
            self._endpoints.append(self._endpoints.pop(0))
            self._failures += 1
            await trio.sleep(backoff(self._failures, first=_FIRST_DELAY, cap=_LONGEST_DELAY, rng=self._rng))

    async def _read_all(self, connection: Link, alone: Found) -> Found:
        """The keys as they are now; `alone` is what a first read of the maintenance key has found. Without our own one when
        etcd does not let us read that: the other is the one that matters."""
        if self._own is None:
            return alone
        try:
            return await within(_PROBE_TIMEOUT, connection.find, [self._own, self._main])
        except Trouble as trouble:
            if not trouble.denied:
                raise
            if not self._told_denied:
                self._told_denied = True
                log.warning(
                    "this instance cannot be switched by itself, only together with all",
                    maintenance_key=self._own,
                    error=str(trouble),
                )
            return alone

    async def _follow(self, connection: Link, revision: int) -> None:
        """Hand over changes from `revision` on, until something goes wrong: raises `Trouble`."""
        async with (
            connection.watch(list(self._watched), revision) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._prove_alive, connection, stream)
            trouble = await self._hand_over(connection, stream)
            nursery.cancel_scope.cancel(reason="the watch has ended")
        raise trouble  # out here, where no nursery wraps it

    async def _hand_over(self, connection: Link, stream: Watch) -> Trouble:
        while True:
            news = await stream.receive()
            if isinstance(news, Trouble):
                return news
            # Before `begins`: a watch that etcd refuses has both.
            if news.ended is not None:
                return Trouble(f"etcd ended the watch: {news.ended}", "")
            if news.begins:
                self._back(connection.endpoint)
            for change in news.changes:
                if change.key not in self._watched:
                    continue
                held = Held() if change.value is None else Held(change.value, change.revision)
                self._watched[change.key] = held
                if change.revision > self._offered[change.key]:  # else a probe was quicker, and knew more
                    self._offer(change.key, held, change.revision)

    async def _prove_alive(self, connection: Link, stream: Watch) -> None:
        """Read the keys again and again; tell `stream` when there is no answer, or when the watch has missed
        something."""
        missed = False
        for number in itertools.count(1):
            with trio.move_on_at(next_tick(_PROBE_EVERY)):
                await self._look.wait()
            asked, self._look = self._look.is_set(), trio.Event()
            alone = number % _PROBES_PER_COMPARISON != 0 and not asked
            names = list(self._watched)
            if alone and not missed and number % _PROBES_PER_OWN_KEY != 0:
                names = [self._main]
            began = trio.current_time()
            try:
                found = await within(_PROBE_TIMEOUT, connection.find, names, serializable=alone)
            except Trouble as trouble:
                stream.end(trouble)
                return
            self._failures = 0
            newer = [
                key
                for key, held in found.keys.items()
                if found.revision >= self._offered[key] and not _same(held, self._watched[key])
            ]
            for key in newer:
                self._offer(key, found.keys[key], found.revision)
            if not alone:
                self._on_looked(began, True)
            # Once is a change on its way to us. Twice running is a watch that is dead and does not know it.
            if newer and missed and not asked:
                stream.end(Trouble("the watch was alive but missed a change", ""))
                return
            missed = bool(newer)

    def _offer(self, key: str, held: Held, revision: int) -> None:
        """Hand over a key as it was at this revision of the store."""
        self._offered[key] = self._revision = revision
        self._tell[key](held.value, held.mod_revision or revision)

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

    async def on(connection: Connection, found: Found) -> KeyState:
        held, revision = found.keys[key], found.revision
        if held.value is None:
            return KeyState(None, revision, None, None)
        expires_in: float | None = None
        if held.lease:
            expires_in = await connection.time_to_live(held.lease)
        return KeyState(held.value, revision, held.mod_revision, expires_in)

    return await one_shot(settings, key, on)


async def write(settings: Settings, key: str, value: bytes, *, ttl: float | None = None) -> int:
    """Set the key; returns the revision. Takes 5 s at most. Raises `EtcdError`.

    With `ttl` etcd deletes the key by itself after so many seconds, rounded up to whole ones. It must be above 0
    (ValueError); etcd raises what is below its own minimum, about one and a half election timeouts, 2 s by default.
    Without `ttl` the key stays, whatever it was bound to before.
    """
    if ttl is not None and not 0 < ttl <= LONGEST_LEASE:
        raise ValueError(f"ttl={ttl!r} is not a time to live in seconds, above 0 and up to {LONGEST_LEASE}")

    async def on(connection: Connection, found: Found) -> int:
        lease = 0 if ttl is None else await connection.grant(ttl)
        return await connection.put(key, value, lease)

    return await one_shot(settings, key, on)


async def delete(settings: Settings, key: str) -> int:
    """Delete the key, if it is there; returns the revision. Takes 5 s at most. Raises `EtcdError`."""

    async def on(connection: Connection, found: Found) -> int:
        return await connection.delete(key)

    return await one_shot(settings, key, on)


def _same(one: Held, other: Held) -> bool:
    return (one.value, one.mod_revision) == (other.value, other.mod_revision)
