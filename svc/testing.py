"""What tests of the service and of processors are made of: the queue and the maintenance switch, in memory and in
Trio's time.

    async def test_a_stranded_message(autojump_clock):
        queue = SimulatedQueue(faults=[Fault("timeout-after", "receive", nth=1)])
        queue.put("hello")
        with pytest.raises(QueueTimeout):
            await queue.receive(limit=10, wait=20, visibility=30)
        assert queue.stranded == ["simulated-1"]

`SimulatedQueue` behaves as AWS documents SQS, with the faults that it is told; `SimulatedSwitch` is the key in etcd,
with the irregularities of watching that it is told. Both are deterministic. This is no mock: it checks nothing, it only
remembers.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from svc import simulated_history as history
from svc.simulated_faults import Call, CallKind, Fault, Faults, What, random_faults
from svc.simulated_queue import SimulatedQueue
from svc.simulated_script import ScriptedQueue
from svc.simulated_server import EPOCH
from svc.simulated_timeline import Timeline

if TYPE_CHECKING:
    from svc.simulated_fleet import SimulatedFleet
    from svc.simulated_service import SimulatedService

__all__ = [
    "EPOCH",
    "Call",
    "CallKind",
    "Fault",
    "Faults",
    "Notice",
    "Outage",
    "ScriptedQueue",
    "SimulatedFleet",
    "SimulatedQueue",
    "SimulatedService",
    "SimulatedSwitch",
    "SimulatedWatcher",
    "SwitchSnapshot",
    "Timeline",
    "What",
    "history",
    "random_faults",
]


def __getattr__(name: str) -> object:
    """The service is found on first use: it is made of nearly everything, and of this module too."""
    if name == "SimulatedFleet":
        from svc.simulated_fleet import SimulatedFleet

        return SimulatedFleet
    if name == "SimulatedService":
        from svc.simulated_service import SimulatedService

        return SimulatedService
    raise AttributeError(f"module 'svc.testing' has no attribute {name!r}")


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
    """How a watcher stands; the same fields as `svc.etcd.EtcdSnapshot`."""

    connected: bool
    endpoint: str | None
    revision: int | None
    since: float
    last_error: str | None


class SimulatedSwitch:
    """The maintenance key, in memory.

    - `notices`: one for each change by `set()`, in order; after the last, changes arrive at once and once.
    - `outages`: when the switch cannot be reached; they must not overlap.
    - `reread`: every so many seconds a watcher reads the key again, and reports what it had missed.
    """

    def __init__(
        self,
        value: bytes | str | None = None,
        *,
        notices: Sequence[Notice] = (),
        outages: Sequence[Outage] = (),
        reread: float = 30.0,
    ) -> None:
        self._value = _raw(value)
        self._revision = 1
        self._notices = list(notices)
        self._outages = sorted(outages, key=lambda outage: outage.start)
        self._reread = reread
        self._watchers: list[SimulatedWatcher] = []

    @property
    def value(self) -> bytes | None:
        """What the key holds now; None when there is no such key."""
        return self._value

    @property
    def revision(self) -> int:
        """Counted up by every `set()`."""
        return self._revision

    def set(self, value: bytes | str | None) -> None:
        """Write the key, or delete it (None)."""
        self._value = _raw(value)
        self._revision += 1
        notice = self._notices.pop(0) if self._notices else Notice()
        for watcher in self._watchers:
            if watcher.snapshot().connected:
                watcher._notify(notice, self._value, self._revision)

    def watcher(
        self,
        settings: object,
        on_value: Callable[[bytes | None, int], None],
        *,
        own_key: str | None = None,
        on_own_value: Callable[[bytes | None, int], None] = lambda value, revision: None,
        on_looked: Callable[[float], None] = lambda began: None,
    ) -> "SimulatedWatcher":
        """Stands in for the class `svc.etcd.KeyWatcher`, with the same arguments; `settings` is not looked at."""
        return SimulatedWatcher(self, on_value, on_looked)

    def _outage_at(self, time: float) -> Outage | None:
        return next((outage for outage in self._outages if outage.start <= time < outage.end), None)

    def _next_outage(self, time: float) -> float:
        return min((outage.start for outage in self._outages if outage.start > time), default=math.inf)


class SimulatedWatcher:
    """Watches a `SimulatedSwitch` as `svc.etcd.KeyWatcher` watches etcd. Make it inside `trio.run`."""

    def __init__(
        self,
        switch: SimulatedSwitch,
        on_value: Callable[[bytes | None, int], None],
        on_looked: Callable[[float], None] = lambda began: None,
    ) -> None:
        self._switch = switch
        self._on_value = on_value
        self._on_looked = on_looked
        self._look = False
        self._connected = False
        self._since = trio.current_time()
        self._revision: int | None = None
        self._last_error: str | None = None
        self._pending: list[tuple[float, int, int, bytes | None]] = []  # due, tie-breaker, revision, value
        self._noticed = 0
        self._changed = trio.Event()

    def snapshot(self) -> SwitchSnapshot:
        """How the watcher stands now."""
        return SwitchSnapshot(self._connected, "simulated:2379", self._revision, self._since, self._last_error)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch for ever; `started()` after the first read."""
        self._switch._watchers.append(self)
        started = False
        try:
            while True:
                while (outage := self._switch._outage_at(trio.current_time())) is not None:
                    self._connect(False)
                    self._on_looked(trio.current_time())
                    await trio.sleep_until(outage.end)
                self._connect(True)
                self._read()
                if not started:
                    task_status.started()
                    started = True
                await self._watch(self._switch._next_outage(trio.current_time()))
        finally:
            self._switch._watchers.remove(self)
            self._connect(False)

    def look_again(self) -> None:
        """Read the key now. Does not wait."""
        self._look = True
        self._changed.set()

    def _read(self) -> None:
        self._look = False
        self._report(self._switch.value, self._switch.revision)
        self._on_looked(trio.current_time())

    async def _watch(self, until: float) -> None:
        reread = trio.current_time() + self._switch._reread
        while (now := trio.current_time()) < until:
            while self._pending and self._pending[0][0] <= now:
                _, _, revision, value = heapq.heappop(self._pending)
                self._report(value, revision)
            if now >= reread:
                reread = now + self._switch._reread
                if self._revision != self._switch.revision:
                    self._report(self._switch.value, self._switch.revision)
            if self._look:
                self._read()
            self._changed = trio.Event()
            due = self._pending[0][0] if self._pending else math.inf
            with trio.move_on_at(min(until, reread, due)):
                await self._changed.wait()

    def _notify(self, notice: Notice, value: bytes | None, revision: int) -> None:
        for _ in range(notice.copies):
            self._noticed += 1
            due = trio.current_time() + notice.delay
            heapq.heappush(self._pending, (due, self._noticed, revision, value))
        self._changed.set()

    def _report(self, value: bytes | None, revision: int) -> None:
        self._revision = revision
        self._on_value(value, revision)

    def _connect(self, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            self._since = trio.current_time()
            if not connected:
                self._last_error = "the simulated switch is out of reach"


def _raw(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
