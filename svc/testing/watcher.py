"""The watcher of a simulated switch: learns of the keys as `svc.etcd.watcher.KeyWatcher` does, with the irregularities that the
switch is told."""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from svc.testing.switch import SimulatedSwitch


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
class Value:
    raw: bytes | None
    revision: int
    """At which it was written, or deleted."""


class SimulatedWatcher:
    """Watches a `SimulatedSwitch` as `svc.etcd.watcher.KeyWatcher` watches etcd. Make it inside `trio.run`."""

    def __init__(
        self,
        switch: "SimulatedSwitch",
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
        self._pending: list[tuple[float, int, str, Value]] = []  # due, tie-breaker, instance or "", value
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

    def _held(self, key: str | None) -> Value:
        return self._switch._keys.get(key) or Value(None, 0)

    def _read(self) -> None:
        self._look = False
        for key in self._tell:
            self._report(key, self._held(key))
        self._on_looked(trio.current_time(), True)

    def _notify(self, notice: Notice, key: str | None, held: Value) -> None:
        for _ in range(notice.copies):
            self._noticed += 1
            due = trio.current_time() + notice.delay
            heapq.heappush(self._pending, (due, self._noticed, key or "", held))
        self._changed.set()

    def _report(self, key: str | None, held: Value) -> None:
        self._reported[key] = held.revision
        self._tell[key](held.raw, held.revision)

    def _connect(self, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._since = trio.current_time()
            if not connected:
                self._last_error = "the simulated switch is out of reach"
