"""The maintenance key and the registrations of a fleet, in memory and in Trio's time: what etcd is in tests.

`watcher` and `registrar` stand in for the real ones, with the irregularities that they are told: notices that come late, twice or
never; times in which nothing can be reached; writes that take their time. Leases run out: who no longer keeps one alive, because
his process was killed, vanishes when it is over.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from svc.maintenance.fleet import Fleet, Request
from svc.maintenance.orders import NoSuchInstance, Order
from svc.maintenance.registration import Entry, Registration, entry, own_keys
from svc.settings import Settings
from svc.testing.registrar import SimulatedRegistrar
from svc.testing.watcher import Notice, Outage, SimulatedWatcher, Value
from svc.wakeup import WakeUp


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
        self._keys: dict[str | None, Value] = {None: Value(_raw(value), 1)}
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
        held = self._keys[instance] = Value(_raw(value), self._revision)
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

    def members(self) -> frozenset[str]:
        """The ids of those who have registered and have not taken their registration away."""
        return frozenset(self._registrations)

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
        return Fleet(held.raw, self.mod_revision(), None, own, entries, self._revision, tuple(sorted(self.members())))

    async def ask(self, order: Order) -> Request:
        """As `etcd_fleet.ask`; a maintenance does not end by itself here."""
        if order.instance is not None and order.on and not order.force and order.instance not in self.entries():
            raise NoSuchInstance(f"no instance {order.instance!r} is registered")
        held = self._keys.get(order.instance)
        order.check(held.raw if held is not None else None)
        until = None if order.seconds is None else f"{trio.current_time() + order.seconds:g}"
        revision = self.set(order.value(until), instance=order.instance)
        return Request(order.on, revision, order.instance, order.quiet)

    def watcher(
        self,
        settings: object,
        on_value: Callable[[bytes | None, int], None],
        *,
        own_key: str | None = None,
        on_own_value: Callable[[bytes | None, int], None] = lambda value, revision: None,
        on_looked: Callable[[float, bool], None] = lambda began, answered: None,
    ) -> SimulatedWatcher:
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
    ) -> SimulatedRegistrar:
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


def _raw(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
