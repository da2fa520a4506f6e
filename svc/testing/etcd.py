"""An etcd in memory and in Trio's time, for the real `KeyWatcher` and `Registrar`: they are given its `connect`.

    etcd = SimulatedEtcd()
    watcher = KeyWatcher(settings, on_value, connect=etcd.connect)
    etcd.put(settings.maintenance_key, b"on")

Keys, revisions, leases that run out, watches, conditional writes, as etcd has them; and its troubles: it is away (connections
break, new ones are refused), it is mute (what is asked is not answered, watches are silent), a permission is missing, a member
answers from behind, it comes back with older data, so that revisions go backwards.
"""

import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import trio

from svc.etcd.errors import EtcdError, Trouble
from svc.etcd.keys import Change, Found, Held, News, Put
from svc.etcd.link import Connect
from svc.settings import Endpoint, Settings
from svc.wakeup import WakeUp


@dataclass(frozen=True)
class Data:
    """All that it holds, at one moment; given back to it, it is restored from a backup."""

    keys: dict[str, Held]
    revision: int
    at: float
    """Trio time."""


@dataclass
class SimulatedEtcd:
    """Change its fields at any time."""

    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds that a call takes, from and to."""
    lag: float = 0.0
    """Seconds by which a member that answers alone (serializable reads) is behind."""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    denied: set[str] = field(default_factory=set)
    """How the names of the keys begin that may not be read or written."""
    mute: bool = False
    """Nothing is answered, and nothing is told."""
    cut_off: set[str] = field(default_factory=set)
    """The same for these clients alone; `client()` gives them their names."""
    calls: int = 0
    """As the real connection makes them: a read of two keys is two."""
    lapsed: int = 0
    """Leases that have run out."""

    def __post_init__(self) -> None:
        self.changed = WakeUp()
        self._away = False
        self._life = 0
        self._keys: dict[str, Held] = {}
        self._revision = 1
        self._history: list[Change] = []
        self._past: list[Data] = []
        self._leases: dict[int, tuple[float, float]] = {}
        self._next_lease = 1

    # -- what happens to it --

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write a key, as somebody else does; returns the revision."""
        self.look()
        self._remember()
        self._revision += 1
        self._keys[key] = Held(value, self._revision, lease)
        return self._tell(Change(key, value, self._revision))

    def delete(self, *keys: str) -> int:
        """Delete keys, as somebody else does; returns the revision."""
        self.look()
        there = [key for key in keys if key in self._keys]
        if there:
            self._remember()
            self._revision += 1
        for key in there:
            del self._keys[key]
            self._tell(Change(key, None, self._revision))
        return self._revision

    def go(self) -> None:
        """It is away: connections break, and there are no new ones. Leases do not run meanwhile."""
        self._away = True
        self._life += 1
        self.changed.notify()

    def come_back(self, data: Data | None = None) -> None:
        """It is there again, as it was, or with older data. Each lease has its full time (as after an election)."""
        now = trio.current_time()
        self._leases = {lease: (ttl, now + ttl) for lease, (ttl, _) in self._leases.items()}
        if data is not None:
            self._keys, self._revision = dict(data.keys), data.revision
            held = {one.lease for one in self._keys.values()}
            self._leases = {lease: times for lease, times in self._leases.items() if lease in held}
            self._history, self._past = [], []
        self._away, self._life = False, self._life + 1
        self.changed.notify()

    def data(self) -> Data:
        """A backup."""
        self.look()
        return Data(dict(self._keys), self._revision, trio.current_time())

    def expire(self, lease: int) -> None:
        """A lease runs out now."""
        if self._leases.pop(lease, None) is not None:
            self.lapsed += 1
        self.delete(*[key for key, held in self._keys.items() if held.lease == lease])

    def look(self) -> dict[str, Held]:
        """All keys as they are now: leases that have run out have ended."""
        now = trio.current_time()
        over = {lease for lease, (_, ends) in self._leases.items() if ends <= now and not self._away}
        for lease in over:
            del self._leases[lease]
        self.lapsed += len(over)
        if over:
            self.delete(*[key for key, held in self._keys.items() if held.lease in over])
        return self._keys

    def below(self, prefix: str) -> dict[str, bytes]:
        """The keys whose names begin so, and what they hold."""
        return {key: held.value or b"" for key, held in self.look().items() if key.startswith(prefix)}

    # -- what its clients see --

    @asynccontextmanager
    async def connect(
        self, settings: Settings, key: str, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[tuple["SimulatedConnection", Found]]:
        """In the place of `svc.etcd.connection.connected`."""
        async with self._connected(key, "") as held:
            yield held

    def client(self, name: str) -> Connect:
        """`connect` for a client of this name."""
        return lambda settings, key, endpoints: self._connected(key, name)

    @asynccontextmanager
    async def _connected(self, key: str, client: str) -> AsyncIterator[tuple["SimulatedConnection", Found]]:
        connection = SimulatedConnection(self, self._life, client)
        found, said = None, "no answer within 3 s"
        with trio.move_on_after(3):
            try:
                found = await connection.find([key])
            except Trouble as trouble:
                said = trouble.said
        if found is None:
            raise EtcdError(f"etcd cannot be used (simulated: {said})")
        yield connection, found

    def is_mute(self, client: str) -> bool:
        """Whether this client hears nothing."""
        return self.mute or client in self.cut_off

    def _remember(self) -> None:
        self._past.append(Data(dict(self._keys), self._revision, trio.current_time()))

    def _tell(self, change: Change) -> int:
        self._history.append(change)
        self.changed.notify()
        return self._revision

    def _behind(self) -> tuple[dict[str, Held], int]:
        """As a member sees it that is `lag` behind."""
        since = trio.current_time() - self.lag
        # Each stands for the time until the change after it.
        then = next((data for data in self._past if data.at > since), None)
        return (self._keys, self._revision) if then is None else (then.keys, then.revision)

    def next_end(self) -> float:
        """Trio time at which the next lease runs out; infinite when there is none, or while etcd is away."""
        return math.inf if self._away else min((ends for _, ends in self._leases.values()), default=math.inf)


class SimulatedConnection:
    """In the place of `svc.etcd.connection.Connection`."""

    def __init__(self, etcd: SimulatedEtcd, life: int, client: str) -> None:
        self.endpoint = "simulated:2379"
        self._etcd = etcd
        self._life = life
        self._client = client

    async def find(self, names: Sequence[str], prefixes: Sequence[str] = (), *, serializable: bool = False) -> Found:
        await self._call(*names, *prefixes)
        keys, revision = (self._etcd._keys, self._etcd._revision)
        if serializable and self._etcd.lag:
            keys, revision = self._etcd._behind()
        wanted = {name: held for name, held in keys.items() if name in names or name.startswith(tuple(prefixes))}
        return Found({name: Held() for name in names} | wanted, revision)

    async def change(self, put: Put, *, since: int) -> tuple[bool, Found]:
        await self._call(put.key)
        held = self._etcd._keys.get(put.key, Held())
        if held.mod_revision != since:
            return False, Found({put.key: held}, self._etcd._revision)
        revision = self._etcd.delete(put.key) if put.value is None else await self._write(put.key, put.value, put.lease)
        return True, Found({put.key: Held()}, revision)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        await self._call(key)
        return await self._write(key, value, lease)

    async def _write(self, key: str, value: bytes, lease: int) -> int:
        if lease and lease not in self._etcd._leases:
            raise Trouble("NOT_FOUND: etcdserver: requested lease not found", "")
        return self._etcd.put(key, value, lease)

    async def grant(self, ttl: float) -> int:
        await self._call()
        lease = self._etcd._next_lease
        self._etcd._next_lease += 1
        self._etcd._leases[lease] = (math.ceil(ttl), trio.current_time() + math.ceil(ttl))
        return lease

    async def keep_alive(self, lease: int) -> float:
        await self._call()
        if lease not in self._etcd._leases:
            return 0
        ttl, _ = self._etcd._leases[lease]
        self._etcd._leases[lease] = (ttl, trio.current_time() + ttl)
        return ttl

    async def revoke(self, lease: int) -> None:
        await self._call()
        self._etcd.expire(lease)
        self._etcd.lapsed -= 1

    def watch(self, names: Sequence[str], revision: int, *, prefixes: Sequence[str] = ()) -> "SimulatedWatch":
        return SimulatedWatch(self._etcd, self._life, self._client, names, prefixes, revision)

    async def _call(self, *names: str) -> None:
        """A call goes to etcd, and an answer comes back; raises `Trouble`."""
        etcd = self._etcd
        etcd.calls += max(1, len(names))
        await trio.sleep(etcd.rng.uniform(*etcd.latency) if etcd.latency[1] else 0)
        while etcd.is_mute(self._client) and not etcd._away:
            await etcd.changed.wait(lambda: trio.current_time() + 0.5)
        if etcd._away or etcd._life != self._life:
            raise Trouble("Socket closed", "")
        etcd.look()
        if any(name.startswith(prefix) for name in names for prefix in etcd.denied):
            raise Trouble("etcdserver: permission denied", "Grant the user a role.", denied=True)


class SimulatedWatch:
    """In the place of `svc.etcd.stream.Stream`."""

    def __init__(
        self, etcd: SimulatedEtcd, life: int, client: str, names: Sequence[str], prefixes: Sequence[str], revision: int
    ) -> None:
        self._etcd, self._life, self._client = etcd, life, client
        self._names, self._prefixes = names, tuple(prefixes)
        self._next = revision
        self._begun = False
        self._trouble: Trouble | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def end(self, trouble: Trouble) -> None:
        self._trouble = trouble
        self._etcd.changed.notify()

    async def receive(self) -> News | Trouble:
        found: News | Trouble | None = None
        while found is None:
            await trio.lowlevel.checkpoint()

            def look() -> float:
                nonlocal found
                found = self._news()
                return trio.current_time() if found is not None else self._until()

            await self._etcd.changed.wait(look)
        return found

    def _until(self) -> float:
        return math.inf if self._etcd.is_mute(self._client) else self._etcd.next_end()

    def _news(self) -> News | Trouble | None:
        etcd = self._etcd
        if self._trouble is not None:
            return self._trouble
        if etcd._life != self._life:
            return Trouble("Socket closed", "")
        if etcd.is_mute(self._client):
            return None
        etcd.look()
        begins, self._begun = not self._begun, True
        changes = tuple(
            change for change in etcd._history if change.revision >= self._next and self._is_ours(change.key)
        )
        if not changes and not begins:
            return None
        self._next = max([self._next, *(change.revision + 1 for change in changes)])
        return News(changes, begins)

    def _is_ours(self, key: str) -> bool:
        return key in self._names or (bool(self._prefixes) and key.startswith(self._prefixes))
