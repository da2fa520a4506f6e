"""The switch of an instance that runs by itself, without etcd: a value in memory and, where there is one, in a file.

It stands in for both sides of etcd: to the core it is the watcher (`watcher`), to the API the switchboard (`board`). The value is
that of the maintenance key (`switch_value.py`), and so is what follows from it. Revisions count its changes.

    memory   what was ordered last; off at the start
    file     what the file says: read again every `EVERY` seconds, and written by an order, so that both agree

A file that cannot be read changes nothing, as an etcd that is out of reach: the last known state stands, and at the start nothing
is received until it can be read. Where the file is and how it is read and written is not known here (`Store`).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from svc.maintenance.fleet import Fleet, Request
from svc.maintenance.orders import CannotWrite, NoSuchInstance, Order, OutOfReach
from svc.maintenance.registration import Entry, Registration
from svc.maintenance.switch_value import parse_switch
from svc.wakeup import WakeUp, next_tick

log = structlog.get_logger(__name__)

EVERY = 2.0
"""Seconds between two looks at the file, each of which costs a thread's hand-over (0.6 ms of CPU): it is there for people and for
ConfigMaps, which take a minute."""

PATIENCE = 5.0
"""Seconds that the file's disk may take; a mount whose server has gone takes for ever."""


class CannotRead(Exception):
    """The file says nothing. The text says why."""


class Store(Protocol):
    """A place outside of the process that holds the value. `switch_file.SwitchFile` is the real one."""

    @property
    def path(self) -> str: ...

    async def read(self) -> bytes | None:
        """What it holds, without blanks around it; None: it is not there. Raises `CannotRead`."""

    async def write(self, value: bytes | None) -> None:
        """Hold this, or nothing. All or nothing of it. Raises `CannotWrite`."""


@dataclass(frozen=True, slots=True)
class StandaloneSnapshot:
    """How the switch stands; the fields of `core.WatcherSnapshot`."""

    connected: bool
    """Whether the last look at the file has brought its value; always without a file."""
    endpoint: str | None
    """The file's path."""
    revision: int | None
    since: float
    """Trio time at which `connected` last changed."""
    last_error: str | None


class StandaloneSwitch:
    """`revision`: at which the counting begins; who counts on from a former process's would take its answers for ours. `wall`:
    Unix time in seconds; `date` writes it as RFC 3339. `clock` goes on while the machine sleeps: how long a maintenance lasts is
    measured by it. Make it inside `trio.run`."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        wall: Callable[[], float],
        date: Callable[[float], str],
        clock: Callable[[], float] = trio.current_time,
        revision: int = 1,
    ) -> None:
        self._store = store
        self._wall = wall
        self._date = date
        self._clock = clock
        self._value: bytes | None = None
        self._revision = revision
        self._is_known = False
        self._ends_at = math.inf
        self._connected = store is None
        self._since = trio.current_time()
        self._error: str | None = None
        self._one_at_a_time = trio.Lock()
        self._wake_up = WakeUp()
        self._asked_to_look = False
        self._on_value: Callable[[bytes | None, int], None] = lambda value, revision: None
        self._on_looked: Callable[[float, bool], None] = lambda began, answered: None

    def watcher(
        self,
        settings: object,
        on_value: Callable[[bytes | None, int], None],
        *,
        own_key: str | None = None,
        on_own_value: Callable[[bytes | None, int], None] = lambda value, revision: None,
        on_looked: Callable[[float, bool], None] = lambda began, answered: None,
    ) -> "StandaloneSwitch":
        """With the arguments of `etcd.KeyWatcher`. There is one switch, for all and for this instance alone."""
        self._on_value, self._on_looked = on_value, on_looked
        return self

    def board(self, describe: Callable[[], Registration]) -> "StandaloneBoard":
        """What the API asks and orders; `describe` says what this instance makes of it."""
        return StandaloneBoard(self, describe)

    # -- the watcher --

    def snapshot(self) -> StandaloneSnapshot:
        path = self._store.path if self._store is not None else None
        return StandaloneSnapshot(
            self._connected, path, self._revision if self._is_known else None, self._since, self._error
        )

    def look_again(self) -> None:
        self._asked_to_look = True
        self._wake_up.notify()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; calls `started()` after the first look. No trouble with the file ends it."""
        started = False
        while True:
            self._asked_to_look = False
            began = trio.current_time()
            answered = await self.look()
            self._on_looked(began, answered)
            if not started:
                task_status.started()
                started = True
            if self._clock() >= self._ends_at:
                await self._end()
            # Looked at again when the machine has slept: then it is told to look (the fence), and Trio's clock is behind.
            until = trio.current_time() + self._ends_at - self._clock()
            if self._store is not None:
                until = min(until, next_tick(EVERY))
            with trio.CancelScope(deadline=until):
                await self._wake_up.wait_until(lambda: self._asked_to_look)

    async def look(self) -> bool:
        """Take the value as it is now; False when it cannot be read."""
        async with self._one_at_a_time:
            return await self._look()

    async def _look(self) -> bool:
        if self._store is None:
            if not self._is_known:
                self._take(None)
            return True
        try:
            with trio.fail_after(PATIENCE):
                value = await self._store.read()
        except (CannotRead, trio.TooSlowError) as failure:
            said = str(failure) or f"it cannot be read within {PATIENCE:g} s"
            self._reads(f"{self._store.path}: {said}")
            return False
        self._reads(None)
        if value != self._value or not self._is_known:
            self._take(value)
        return True

    def _reads(self, error: str | None) -> None:
        if error is not None and (self._connected or error != self._error):
            stands = "the last known state stands" if self._is_known else "nothing is received until it can be"
            log.warning(f"the maintenance file cannot be read, {stands}", error=error)
        elif error is None and self._error is not None and not self._connected:
            log.info("the maintenance file can be read again")
        if self._connected != (error is None):
            self._connected, self._since = error is None, trio.current_time()
        self._error = error

    def _take(self, value: bytes | None) -> None:
        self._revision += self._is_known
        self._value, self._is_known = value, True
        ends = _ends(value)
        self._ends_at = math.inf if ends is None else self._clock() + max(0.0, ends - self._wall())
        self._on_value(value, self._revision)

    # -- orders --

    async def order(self, order: Order) -> Request:
        """Switch as ordered. Raises `NotYours` and `CannotWrite`."""
        async with self._one_at_a_time:
            await self._look()  # whose maintenance it is now
            order.check(self._value)
            await self._write(self._ordered(order))
            return Request(order.on, self._revision, quiet=order.quiet)

    def _ordered(self, order: Order) -> bytes | None:
        if not order.on:
            return None
        if order.seconds is None:
            return order.value(None)
        ends = self._wall() + order.seconds
        document = json.loads(order.value(self._date(ends)) or b"{}")
        return json.dumps({**document, "ends": round(ends, 3)}).encode()

    async def _write(self, value: bytes | None) -> None:
        if self._store is not None:
            try:
                with trio.fail_after(PATIENCE):
                    await self._store.write(value)
            except trio.TooSlowError:
                raise CannotWrite(f"{self._store.path} cannot be written within {PATIENCE:g} s") from None
            self._reads(None)
        self._take(value)
        self.look_again()  # it may end sooner than the next look would come

    async def _end(self) -> None:
        """The maintenance was asked for until now."""
        async with self._one_at_a_time:
            if not await self._look() or self._clock() < self._ends_at:
                return  # somebody has changed it
            self._ends_at = math.inf
            try:
                await self._write(None)
            except CannotWrite as failure:
                log.warning("maintenance should end now, and stays on: the file cannot be changed", error=str(failure))
            else:
                log.info("maintenance has ended by itself, as it was asked for")

    def fleet(self, described: Registration) -> Fleet:
        """This instance as a fleet of one. Raises `OutOfReach`: the value has not been read yet."""
        if not self._is_known:
            raise OutOfReach(self._error or "the maintenance file has not been read yet")
        left = max(0.0, self._ends_at - self._clock())
        return Fleet(
            value=self._value,
            mod_revision=self._revision,
            expires_in=None if math.isinf(left) else round(left, 3),
            own={},
            # An answer to a revision is written after it: what this instance says of itself is always of now.
            entries=(Entry(described.id, described, self._revision + 1),),
            revision=self._revision,
        )


class StandaloneBoard:
    """An `orders.Switchboard`."""

    def __init__(self, switch: StandaloneSwitch, describe: Callable[[], Registration]) -> None:
        self._switch = switch
        self._describe = describe

    async def look(self) -> Fleet:
        return self._switch.fleet(self._describe())

    async def ask(self, order: Order) -> Request:
        """Raises `CannotWrite` too."""
        id = self._describe().id
        if order.instance not in (None, id):
            raise NoSuchInstance(f"there is no fleet here, and this instance is {id}")
        return await self._switch.order(order)


def _ends(value: bytes | None) -> float | None:
    """Unix time at which the value is to be taken back, where an order has said so."""
    try:
        if not parse_switch(value).on:
            return None
        document = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    ends = document.get("ends") if isinstance(document, dict) else None
    if isinstance(ends, bool) or not isinstance(ends, int | float) or not 0 <= ends < 1e12:
        return None
    return float(ends)
