"""The maintenance key and the registrations of a fleet, in memory and in Trio's time: what etcd is in tests.

`watcher` and `registrar` stand in for the real ones, with the irregularities that they are told: notices that come late, twice or
never; times in which nothing can be reached; writes that take their time. Leases run out: who no longer keeps one alive, because
his process was killed, vanishes when it is over.
"""

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from svc.maintenance.fleet import Acknowledgement, Entry, Fleet, Registration, Request, entry, own_keys
from svc.maintenance.orders import NoSuchInstance, Order
from svc.settings import Settings
from svc.wakeup import WakeUp


@dataclass(frozen=True, slots=True)
class Notice:
    """How the watchers learn of one change of the key."""

    delay: float = 0.0
    """Seconds after the change. A long delay makes a later change overtake this one, also across a reconnection."""
    copies: int = 1
    """How often it arrives (at once); 0: it is lost, and the next re-read or reconnection makes up for it."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which the switch is out of reach. Changes within it are learnt from the read at its end."""

    start: float
    """Trio time, included."""
    end: float
    """Trio time, not included."""


@dataclass(frozen=True, slots=True)
class SwitchSnapshot:
    """How a watcher stands; the same fields as `svc.etcd.watcher.EtcdSnapshot`."""

    connected: bool
    endpoint: str | None
    revision: int | None
    since: float
    last_error: str | None


@dataclass(frozen=True, slots=True)
class _Value:
    raw: bytes | None
    revision: int
    """At which it was written, or deleted."""


class SimulatedSwitch:
    """The maintenance key, the keys of single instances, and the registrations, in memory.

    - `notices`: one for each change by `set()`, in order; after the last, changes arrive at once and once.
    - `outages`: when the switch cannot be reached; they must not overlap.
    - `reread`: every so many seconds a watcher reads the keys again, and reports what it had missed.
    - `ordered`: a notice that was overtaken is dropped, as etcd's watches do it; else it is told all the same.
    - `write_seconds`: how long a registration is on its way, from and to.
    """

    def __init__(
        self,
        value: bytes | str | None = None,
        *,
        notices: Sequence[Notice] = (),
        outages: Sequence[Outage] = (),
        reread: float = 30.0,
        ordered: bool = False,
        write_seconds: tuple[float, float] = (0.0, 0.0),
        rng: random.Random | None = None,
    ) -> None:
        self._revision = 1
        self._keys: dict[str | None, _Value] = {None: _Value(_raw(value), 1)}
        self._notices = list(notices)
        self._outages = sorted(outages, key=lambda outage: outage.start)
        self._reread = reread
        self._ordered = ordered
        self._write_seconds = write_seconds
        self._rng = rng or random.Random(0)
        self._watchers: list[SimulatedWatcher] = []
        self._registrations: dict[str, _Registered] = {}
        self.changed = WakeUp()
        """Rings when a key or a registration has changed. That a lease runs out is a matter of time: see `next_end`."""

    @property
    def value(self) -> bytes | None:
        """What the maintenance key holds now; None when there is no such key."""
        return self._keys[None].raw

    @property
    def revision(self) -> int:
        """Counted up by every `set()`, and by every change of a registration."""
        return self._revision

    def set(self, value: bytes | str | None, *, instance: str | None = None) -> int:
        """Write the key, or that of one instance alone; or delete it (None). Returns the revision."""
        self._revision += 1
        held = self._keys[instance] = _Value(_raw(value), self._revision)
        notice = self._notices.pop(0) if self._notices else Notice()
        for watcher in self._watchers:
            if watcher.snapshot().connected and instance in (None, watcher.instance):
                watcher._notify(notice, instance, held)
        self.changed.notify()
        return self._revision

    def mod_revision(self, instance: str | None = None) -> int:
        """Revision at which the key was written; 0: it is not there."""
        held = self._keys.get(instance)
        return held.revision if held is not None and held.raw is not None else 0

    # -- the fleet --

    def entries(self) -> dict[str, Entry]:
        """The registrations whose leases have not run out."""
        now = trio.current_time()
        return {
            id: entry(id, held.value, held.revision)
            for id, held in self._registrations.items()
            if self._lives(held, now)
        }

    def next_end(self) -> float:
        """Trio time at which the next lease runs out that nobody keeps alive; infinite when there is none."""
        now = trio.current_time()
        return min((held.ends for held in self._registrations.values() if held.ends > now), default=math.inf)

    def _lives(self, held: "_Registered", now: float) -> bool:
        return held.ends > now

    async def look(self) -> Fleet:
        """As `etcd_fleet.look`."""
        held = self._keys[None]
        own = {id: one.raw for id, one in self._keys.items() if id is not None and one.raw is not None}
        entries = tuple(sorted(self.entries().values(), key=lambda one: one.id))
        return Fleet(held.raw, self.mod_revision(), None, own, entries, self._revision)

    async def ask(self, order: Order) -> Request:
        """As `etcd_fleet.ask`; a maintenance does not end by itself here."""
        if order.instance is not None and order.on and not order.force and order.instance not in self.entries():
            raise NoSuchInstance(f"no instance {order.instance!r} is registered")
        held = self._keys.get(order.instance)
        order.check(held.raw if held is not None else None)
        until = None if order.seconds is None else f"{trio.current_time() + order.seconds:g}"
        return Request(order.on, self.set(order.value(until), instance=order.instance), order.instance)

    def watcher(
        self,
        settings: object,
        on_value: Callable[[bytes | None, int], None],
        *,
        own_key: str | None = None,
        on_own_value: Callable[[bytes | None, int], None] = lambda value, revision: None,
        on_looked: Callable[[float, bool], None] = lambda began, answered: None,
    ) -> "SimulatedWatcher":
        """Stands in for the class `svc.etcd.watcher.KeyWatcher`, with the same arguments; of `settings` nothing is looked at."""
        instance = None if own_key is None else own_key.rpartition(own_keys(""))[2]
        tell: dict[str | None, Callable[[bytes | None, int], None]] = {}
        if instance is not None:
            tell[instance] = on_own_value
        tell[None] = on_value
        return SimulatedWatcher(self, tell, on_looked)

    def registrar(
        self,
        settings: Settings,
        describe: Callable[[], Registration],
        changed: WakeUp,
        on_settled: Callable[[float, bool], None],
        *,
        is_dead: Callable[[], bool] = lambda: False,
    ) -> "SimulatedRegistrar":
        """Stands in for the class `svc.etcd.registration.Registrar`; `is_dead`: whether its process was killed."""
        return SimulatedRegistrar(self, settings, describe, changed, on_settled, is_dead)

    def _outage_at(self, time: float) -> Outage | None:
        return next((outage for outage in self._outages if outage.start <= time < outage.end), None)

    def _next_outage(self, time: float) -> float:
        return min((outage.start for outage in self._outages if outage.start > time), default=math.inf)

    def _register(self, told: Registration) -> None:
        self._revision += 1
        self._registrations[told.id] = _Registered(told.value(), self._revision)
        self.changed.notify()

    def _leave(self, id: str, ends: float) -> None:
        """Nobody keeps the lease alive any more."""
        if (held := self._registrations.get(id)) is not None:
            self._registrations[id] = replace(held, ends=ends)
            self.changed.notify()

    def _remove(self, id: str) -> None:
        if self._registrations.pop(id, None) is not None:
            self._revision += 1
            self.changed.notify()


@dataclass(frozen=True, slots=True)
class _Registered:
    value: bytes
    revision: int
    ends: float = math.inf
    """Trio time at which its lease runs out; infinite while it is kept alive."""


class SimulatedWatcher:
    """Watches a `SimulatedSwitch` as `svc.etcd.watcher.KeyWatcher` watches etcd. Make it inside `trio.run`."""

    def __init__(
        self,
        switch: SimulatedSwitch,
        tell: Mapping[str | None, Callable[[bytes | None, int], None]],
        on_looked: Callable[[float, bool], None],
    ) -> None:
        self._switch = switch
        self._tell = tell
        self._on_looked = on_looked
        self.instance = next((instance for instance in tell if instance is not None), None)
        self._connected = False
        self._since = trio.current_time()
        self._reported: dict[str | None, int] = {}
        self._last_error: str | None = None
        self._pending: list[tuple[float, int, str, _Value]] = []  # due, tie-breaker, instance or "", value
        self._noticed = 0
        self._look = False
        self._changed = trio.Event()

    def snapshot(self) -> SwitchSnapshot:
        """How the watcher stands now."""
        return SwitchSnapshot(
            self._connected, "simulated:2379", self._reported.get(None), self._since, self._last_error
        )

    def look_again(self) -> None:
        """Read the keys now. Does not wait."""
        self._look = True
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch for ever; `started()` after the first read."""
        self._switch._watchers.append(self)
        started = False
        try:
            while True:
                while (outage := self._switch._outage_at(trio.current_time())) is not None:
                    self._connect(False)
                    self._on_looked(trio.current_time(), False)
                    self._look = False
                    self._changed = trio.Event()
                    with trio.move_on_at(outage.end):
                        await self._changed.wait()
                self._connect(True)
                self._read()
                if not started:
                    task_status.started()
                    started = True
                await self._watch(self._switch._next_outage(trio.current_time()))
        finally:
            self._switch._watchers.remove(self)
            self._connect(False)

    async def _watch(self, until: float) -> None:
        reread = trio.current_time() + self._switch._reread
        while (now := trio.current_time()) < until:
            while self._pending and self._pending[0][0] <= now:
                _, _, instance, held = heapq.heappop(self._pending)
                key = instance or None
                if not (self._switch._ordered and held.revision <= self._reported.get(key, 0)):
                    self._report(key, held)
            if now >= reread:
                reread = now + self._switch._reread
                for key in self._tell:
                    if self._reported[key] != self._held(key).revision:
                        self._report(key, self._held(key))
            if self._look:
                self._read()
            self._changed = trio.Event()
            due = self._pending[0][0] if self._pending else math.inf
            with trio.move_on_at(min(until, reread, due)):
                await self._changed.wait()

    def _held(self, key: str | None) -> _Value:
        return self._switch._keys.get(key) or _Value(None, 0)

    def _read(self) -> None:
        self._look = False
        for key in self._tell:
            self._report(key, self._held(key))
        self._on_looked(trio.current_time(), True)

    def _notify(self, notice: Notice, key: str | None, held: _Value) -> None:
        for _ in range(notice.copies):
            self._noticed += 1
            due = trio.current_time() + notice.delay
            heapq.heappush(self._pending, (due, self._noticed, key or "", held))
        self._changed.set()

    def _report(self, key: str | None, held: _Value) -> None:
        self._reported[key] = held.revision
        self._tell[key](held.raw, held.revision)

    def _connect(self, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._since = trio.current_time()
            if not connected:
                self._last_error = "the simulated switch is out of reach"


AT_MOST_EVERY = 0.5
"""Seconds between two writes, as of the real registrar."""


class SimulatedRegistrar:
    """Keeps a registration in a `SimulatedSwitch` as `svc.etcd.registration.Registrar` does in etcd: each write is composed, and
    arrives a while later. The messages in flight alone are no reason to write."""

    def __init__(
        self,
        switch: SimulatedSwitch,
        settings: Settings,
        describe: Callable[[], Registration],
        changed: WakeUp,
        on_settled: Callable[[float, bool], None],
        is_dead: Callable[[], bool],
    ) -> None:
        self._switch = switch
        self._ttl = settings.instance_ttl
        self._describe = describe
        self._changed = changed
        self._on_settled = on_settled
        self._is_dead = is_dead
        self._said: Acknowledgement | None = None
        self._wrote_at = -math.inf
        self._asked = False

    def look_again(self) -> None:
        """Confirm the registration now. Does not wait."""
        self._asked = True
        self._changed.notify()

    async def run(self) -> None:
        """Keep the registration until cancelled."""
        try:
            while True:
                began, self._asked = trio.current_time(), False
                if (outage := self._switch._outage_at(began)) is not None:
                    self._on_settled(began, False)
                    with trio.move_on_at(outage.end):
                        await self._changed.wait_until(lambda: self._asked)
                    continue
                if self._is_due():
                    await self._write()
                self._on_settled(began, True)
                await self._changed.wait(self._next)
        finally:
            self._switch._leave(self._describe().id, trio.current_time() + self._ttl)

    async def close(self) -> None:
        """Say the last word and take the registration away; not when the process was killed, nor out of reach."""
        if self._is_dead() or self._switch._outage_at(trio.current_time()) is not None:
            return
        self._switch._register(self._describe())
        self._switch._remove(self._describe().id)

    def _is_due(self) -> bool:
        now = replace(self._describe().acknowledgement, in_flight=0)
        return now != self._said and trio.current_time() >= self._wrote_at + AT_MOST_EVERY

    def _next(self) -> float | None:
        if self._asked:
            return trio.current_time()
        if replace(self._describe().acknowledgement, in_flight=0) != self._said:
            return self._wrote_at + AT_MOST_EVERY
        return None

    async def _write(self) -> None:
        told = self._describe()
        least, most = self._switch._write_seconds
        if most:
            await trio.sleep(self._switch._rng.uniform(least, most))
        self._switch._register(told)
        self._said = replace(told.acknowledgement, in_flight=0)
        self._wrote_at = trio.current_time()


def _raw(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
