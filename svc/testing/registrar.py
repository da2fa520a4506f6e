"""The registrar of a simulated switch: keeps a registration as `svc.etcd.registration.Registrar` does in etcd."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from svc.maintenance.registration import Acknowledgement, Registration
from svc.settings import Settings
from svc.wakeup import WakeUp

if TYPE_CHECKING:
    from svc.testing.switch import SimulatedSwitch

AT_MOST_EVERY = 0.5
"""Seconds between two writes, as of the real registrar."""


class SimulatedRegistrar:
    """Keeps a registration in a `SimulatedSwitch` as `svc.etcd.registration.Registrar` does in etcd: each write is composed, and
    arrives a while later. Messages in flight and receives on the wire alone are no
    reason to write."""

    def __init__(
        self,
        switch: "SimulatedSwitch",
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

    def blocked(self) -> None:
        """Simulated loops are not."""

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
        now = replace(self._describe().acknowledgement, in_flight=0, receives=0)
        return now != self._said and trio.current_time() >= self._wrote_at + AT_MOST_EVERY

    def _next(self) -> float | None:
        if self._asked:
            return trio.current_time()
        if replace(self._describe().acknowledgement, in_flight=0, receives=0) != self._said:
            return self._wrote_at + AT_MOST_EVERY
        return None

    async def _write(self) -> None:
        told = self._describe()
        least, most = self._switch._write_seconds
        if most:
            await trio.sleep(self._switch._rng.uniform(least, most))
        self._switch._register(told)
        self._said = replace(told.acknowledgement, in_flight=0, receives=0)
        self._wrote_at = trio.current_time()
