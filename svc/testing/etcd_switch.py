"""A `SimulatedSwitch` whose watcher and registrar are the real ones, on an etcd in memory.

switch = EtcdSwitch(SimulatedEtcd(latency=(0, 0.2)))
async with SimulatedFleet(queue, switch) as start:
    await start(handle)
    switch.etcd.mute = True
"""

import random
from collections.abc import Callable

import trio

from svc.etcd.registration import Registrar
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.registration import Entry, Registration, entry, members, own_key, registrations
from svc.settings import Settings, load
from svc.testing.etcd import SimulatedEtcd
from svc.testing.switch import SimulatedSwitch
from svc.wakeup import WakeUp


class EtcdSwitch(SimulatedSwitch):
    """What is asked of it is asked of `etcd` itself, without a connection; its troubles are only between it and the instances."""

    def __init__(self, etcd: SimulatedEtcd, *, rng: random.Random | None = None) -> None:
        super().__init__()
        self.etcd = etcd
        self.changed = etcd.changed
        self._key = load({}).maintenance_key
        self._seeds = rng or random.Random(0)

    @property
    def value(self) -> bytes | None:
        held = self.etcd.look().get(self._key)
        return None if held is None else held.value

    @property
    def revision(self) -> int:
        return self.etcd.data().revision

    def set(self, value: bytes | str | None, *, instance: str | None = None) -> int:
        key = self._key if instance is None else own_key(self._key, instance)
        if value is None:
            return self.etcd.delete(key)
        return self.etcd.put(key, value.encode() if isinstance(value, str) else value)

    def mod_revision(self, instance: str | None = None) -> int:
        held = self.etcd.look().get(self._key if instance is None else own_key(self._key, instance))
        return 0 if held is None else held.mod_revision

    def entries(self) -> dict[str, Entry]:
        start = registrations(self._key)
        return {
            key.removeprefix(start): entry(key.removeprefix(start), held.value or b"", held.mod_revision)
            for key, held in self.etcd.look().items()
            if key.startswith(start)
        }

    def members(self) -> frozenset[str]:
        start = members(self._key)
        return frozenset(key.removeprefix(start) for key in self.etcd.below(start))

    def next_end(self) -> float:
        return self.etcd.next_end()

    def watcher(  # type: ignore[override]  # the real one, with the same arguments
        self, settings: Settings, on_value: Callable[[bytes | None, int], None], **options: object
    ) -> KeyWatcher:
        rng = random.Random(self._seeds.random())
        connect = self.etcd.client(str(options["own_key"]).rpartition("/")[2])  # the id of the instance
        return KeyWatcher(settings, on_value, **options, connect=connect, rng=rng)  # type: ignore[arg-type]

    def registrar(  # type: ignore[override]
        self,
        settings: Settings,
        describe: Callable[[], Registration],
        changed: WakeUp,
        on_settled: Callable[[float, bool], None],
        *,
        is_dead: Callable[[], bool] = lambda: False,
    ) -> "_Mortal":
        rng = random.Random(self._seeds.random())
        connect = self.etcd.client(describe().id)
        held = _Mortal(settings, describe, changed, on_settled, connect=connect, rng=rng)
        held.is_dead = is_dead
        return held


class _Mortal(Registrar):
    """Who was killed says no last word."""

    is_dead: Callable[[], bool]

    async def close(self) -> None:
        if not self.is_dead():
            await super().close()
        else:
            await trio.lowlevel.checkpoint()
