"""A schedule's etcd: the real `KeyWatcher` and `Registrar` of every instance, on an etcd in memory that is in trouble.

Leases lapse, two instances have one id, etcd is away, mute, or cut off from one of them, a member answers from behind,
permissions are missing, registrations are deleted, and the store is restored from a backup, so that its revisions go back. At
the calm all is put right.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import trio

from svc.maintenance.registration import members, registrations
from svc.settings import load
from svc.testing.etcd import SimulatedEtcd
from svc.testing.etcd_switch import EtcdSwitch

KEY = load({}).maintenance_key

What = Literal["cut off", "away", "mute", "lapse", "deleted", "denied", "all denied", "restored"]

PUT_RIGHT = 60.0
"""Seconds from the end of all troubles within which every instance knows the switch again and is registered."""

LAST_WORD = 1.5
"""Seconds that an instance takes at most to take its registration away."""


@dataclass(frozen=True)
class EtcdTrouble:
    at: float
    what: What
    lasts: float = 1.0
    """Seconds; nothing to `lapse` and `deleted`."""
    instance: int = 0
    """Whose: of `cut off` and `lapse`."""


@dataclass(frozen=True)
class EtcdSetup:
    ttl: int = 10
    """INSTANCE_TTL."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds that a call takes, from-to."""
    lag: float = 0.0
    """Seconds by which a member that answers alone is behind."""
    troubles: tuple[EtcdTrouble, ...] = ()
    twin: bool = False
    """The second instance has the id of the first."""

    @property
    def ends(self) -> float:
        """When all is put right at the latest."""
        return max((trouble.at + trouble.lasts for trouble in self.troubles), default=0.0)


def random_etcd(rng: random.Random, span: int, lives: int, asks: Sequence[float]) -> EtcdSetup:
    """Draw one. Half of the troubles begin shortly before somebody asks."""
    whats = get_args(What)
    troubles = [
        EtcdTrouble(
            rng.randrange(10 * span) / 10
            if rng.random() < 0.5
            else round(max(0.0, rng.choice(asks) - rng.choice((0.1, 0.5, 2.0, 6.0, 11.0))), 1),
            rng.choice(whats),
            rng.choice((0.5, 3.0, 8.0, 20.0)),
            rng.randrange(lives),
        )
        for _ in range(rng.choice((0, 1, 2, 2, 3)))
    ]
    return EtcdSetup(
        ttl=rng.choice((5, 10)),
        latency=(0.0, rng.choice((0.0, 0.0, 0.2, 1.0))),
        lag=rng.choice((0.0, 0.0, 5.0)),
        troubles=tuple(sorted(troubles, key=lambda trouble: trouble.at)),
        twin=lives > 1 and rng.random() < 0.2,
    )


class Troubles:
    """Brings them about. `alive`: the ids of the instances that live; `on_restored` is told when the revisions have gone back."""

    def __init__(
        self, setup: EtcdSetup, seed: int, *, alive: Callable[[], set[str]], on_restored: Callable[[], None]
    ) -> None:
        self.etcd = SimulatedEtcd(latency=setup.latency, lag=setup.lag, rng=random.Random(f"etcd calls {seed}"))
        self.switch = EtcdSwitch(self.etcd, rng=random.Random(f"etcd clients {seed}"))
        self.switch.set("off")
        self._alive = alive
        self._on_restored = on_restored
        self._away = 0
        self._over = False

    async def bring(self, trouble: EtcdTrouble, name: str) -> None:
        """One of them, from its begin to its end; `name` is the id of the instance."""
        etcd = self.etcd
        match trouble.what:
            case "lapse":
                for key, held in list(etcd.look().items()):
                    if key == registrations(KEY) + name:
                        etcd.expire(held.lease)
            case "deleted":
                etcd.delete(*etcd.below(registrations(KEY)))
            case "cut off":
                etcd.cut_off.add(name)
                await trio.sleep(trouble.lasts)
                etcd.cut_off.discard(name)
            case "mute":
                etcd.mute = True
                await trio.sleep(trouble.lasts)
                etcd.mute = False
            case "denied" | "all denied":
                denied = registrations(KEY) if trouble.what == "denied" else KEY
                etcd.denied.add(denied)
                await trio.sleep(trouble.lasts)
                etcd.denied.discard(denied)
            case "away":
                await self._go_for(trouble.lasts)
            case "restored":
                backup = etcd.data()
                await trio.sleep(trouble.lasts)
                belonged = {key.removeprefix(members(KEY)) for key in backup.keys if key.startswith(members(KEY))}
                # Of who came after the backup the restored store knows nothing, and nor does whoever asks it in that moment.
                if self._over or not self._alive() <= {name.partition("~")[0] for name in belonged}:
                    return
                if not self._away:
                    etcd.go()
                    etcd.come_back(backup)
                    self._on_restored()
        etcd.changed.notify()

    async def _go_for(self, seconds: float) -> None:
        self._away += 1
        self.etcd.go()
        await trio.sleep(seconds)
        self._away -= 1
        if not self._away:
            self.etcd.come_back()

    def put_right(self) -> None:
        """No trouble any more."""
        self._over = True
        assert not self._away
        self.etcd.mute, self.etcd.lag = False, 0.0
        self.etcd.denied.clear()
        self.etcd.cut_off.clear()
        self.etcd.changed.notify()
