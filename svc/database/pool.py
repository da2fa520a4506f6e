"""The pools of connections, and how each colour of processor borrows from them.

    Trio          connection()           the pool of threads' connections; calls run in threads (`trio_connection.py`)
    plain def     sync_connection()      the same pool, in the processor's own thread
    asyncio       asyncio_connection()   a second pool, on the loop that asks for it

Pooling, checks before a connection is lent and most figures are psycopg_pool's. What it does not do is done here: the pools are
opened and closed as maintenance and the database's own absence ask for it (`open`, `close`), and nobody waits longer than
`DATABASE_TIMEOUT`. While there is no pool, whoever asks waits for it that long, and gets `DatabaseAway`.
"""

import asyncio
import contextlib
import contextvars
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import psycopg
import psycopg_pool
import structlog
import trio
from psycopg.pq import TransactionStatus

from svc.database.checking import check, check_async
from svc.database.conninfo import connect, conninfo, place
from svc.database.farewell import Farewell, Raw, cancel_either, in_loop, wait_ended
from svc.database.figures import Closed, PoolStatistics
from svc.database.read_only import TAKES_NO_WRITES, ReadOnly, takes_no_writes
from svc.database.trio_connection import PATIENCE, Connection, in_thread
from svc.settings import Settings
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

LENT_GRACE = 1.0
"""Seconds that connections still lent out have to come back when the pools are closed, before they are ended."""

SyncPool: TypeAlias = psycopg_pool.ConnectionPool[psycopg.Connection[Any]]
AsyncPool: TypeAlias = psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Any]]


_FULL = ("too many clients already", "remaining connection slots")
"""What PostgreSQL says when there are more connections than it takes (SQLSTATE 53300, which libpq does not hand on)."""


class DatabaseAway(psycopg.OperationalError):
    """There is no connection to be had: the database is away, or the service has let go of it for maintenance."""


class Database:
    """The database of `DATABASE_URL`. Made within a Trio run, by the service or by the fixture `svc_database`."""

    def __init__(self, settings: Settings, application_name: str) -> None:
        self.place = place(settings)
        """In words, without user and password."""
        self.timeout = settings.database_timeout
        """Seconds that anybody waits for a connection."""
        self.changed = WakeUp()
        """Notified when the pools have been opened or closed."""
        self.away: str = "not connected yet"
        """Why there is no pool, while there is none."""
        self._settings = settings
        self._application_name = settings.database_application_name or application_name
        self.for_asyncio = False
        """The processor runs on asyncio: of the connections all but one are for its loop. To be set before `open`."""
        self.for_writing = False
        """A server that takes no writes counts as away: a processor has wanted to write."""
        self.read_only = ReadOnly()
        self._places = trio.CapacityLimiter(settings.database_max_connections)
        # Holders of a place use one thread each; a few open and close; and those that nobody waits for any more end soon.
        self._limiter = trio.CapacityLimiter(2 * settings.database_max_connections + 8)
        self._pool: SyncPool | None = None
        self._async_pool: AsyncPool | None = None
        self._async_loop: asyncio.AbstractEventLoop | None = None
        self._async_most = 0
        self._counted = Counter[str]()  # of pools that are closed
        self._waits = self._refused = 0
        self._wait_seconds = 0.0
        self._lock = threading.Lock()
        self._is_open = threading.Event()
        self._held: weakref.WeakSet[Raw] = weakref.WeakSet()
        self._trio_thread = threading.get_ident()

    @property
    def is_open(self) -> bool:
        return self._pool is not None

    # -- what the handler calls, on Trio --

    async def open(self, least: int, most: int) -> None:
        """Have pools of so many connections. Raises `psycopg.Error` if the database does not take a connection within `timeout`
        (`OSError`, when the password's file is gone); then there is no pool."""
        if self.is_open:
            raise RuntimeError("it is open")
        pool = await in_thread(lambda: self._open(least, most), self._limiter)
        self._pool, self._async_most = pool, max(1, most - 1)
        self._is_open.set()
        self.changed.notify()

    def _open(self, least: int, most: int) -> SyncPool:
        # The first by hand: psycopg_pool would try in the background, and tell the reason to the log only.
        first = connect(self._conninfo(), self.timeout)
        refuses = takes_no_writes(first)
        self._ended_by_us(first)
        if self.for_writing and refuses:
            raise DatabaseAway(TAKES_NO_WRITES)
        self.read_only.seen = False
        if self.for_asyncio:
            least, most = min(least, 1), 1
        pool: SyncPool = psycopg_pool.ConnectionPool(
            self._conninfo,
            min_size=least,
            max_size=most,
            open=False,
            configure=self._note,
            check=lambda raw: check(raw, self.timeout / 2),
            kwargs={"connect_timeout": max(2, round(self.timeout))},
            name="svc",
            timeout=self.timeout,
            reconnect_timeout=self.timeout,
        )
        pool.open(wait=least > 0, timeout=self.timeout)
        return pool

    def _ended_by_us(self, raw: "psycopg.Connection[Any]") -> None:
        farewell = Farewell(raw)
        raw.close()
        wait_ended([farewell], PATIENCE)
        farewell.forget()

    def _conninfo(self) -> str:
        return conninfo(self._settings, self._application_name)

    def _note(self, raw: "psycopg.Connection[Any]") -> None:
        """Every new connection comes by here."""
        self.read_only.look_at(raw)
        with self._lock:
            self._held.add(raw)

    async def _note_async(self, raw: "psycopg.AsyncConnection[Any]") -> None:
        self.read_only.look_at(raw)
        with self._lock:
            self._held.add(raw)

    async def close(self, why: str, seconds: float) -> Closed:
        """Have no connection any more, and return only when the server has none of ours either, or after `seconds`. What is lent
        out then is ended, in the middle of whatever it does; returns how many that were. `why`: what those are told who ask."""
        self.away = why
        self._is_open.clear()
        pool, self._pool = self._pool, None
        self.changed.notify()
        if pool is None:
            return Closed(0, 0, 0)
        closing = pool
        return await in_thread(
            lambda: self._close(closing, time.monotonic() + max(seconds, 2 * PATIENCE)), self._limiter
        )

    def _close(self, pool: SyncPool, deadline: float) -> Closed:
        with self._lock:
            async_pool, loop, self._async_pool, self._async_loop = self._async_pool, self._async_loop, None, None
            farewells = [Farewell(raw) for raw in self._held if not raw.closed]
        try:
            # What is connecting at present belongs to the pools' workers: they are waited for.
            pool.close(timeout=max(0.1, deadline - time.monotonic() - PATIENCE))
            if async_pool is not None and loop is not None:
                in_loop(loop, async_pool.close(timeout=PATIENCE), 2 * PATIENCE)
            with self._lock:  # those that came to be meanwhile
                known = {one.connection for one in farewells}
                farewells += [Farewell(raw) for raw in self._held if not raw.closed and raw not in known]
            left = wait_ended(farewells, min(LENT_GRACE, deadline - time.monotonic()))
            lent = [one for one in left if not one.connection.closed]
            for one in lent:
                cancel_either(one.connection, loop, PATIENCE / 2)
                one.stop_sending()
            unconfirmed = wait_ended(left, max(PATIENCE, deadline - time.monotonic()))
            for one in unconfirmed:
                one.cut()
            return Closed(len(farewells), len(lent), len(unconfirmed))
        finally:
            for one in farewells:
                one.forget()
            for closed in (pool, async_pool):
                if closed is not None:
                    self._counted.update(closed.get_stats())

    async def ping(self) -> None:
        """Raises `psycopg.Error` (or `OSError`) if the database does not answer, or takes no writes although it has to. Takes
        `timeout` at most, or twice that when all connections are in use: then it is asked by a connection of its own."""
        pool = self._open_pool()
        try:
            raw = await self._borrowed(pool, self.timeout / 2)
        except psycopg_pool.PoolTimeout:
            await trio.to_thread.run_sync(self._knock, abandon_on_cancel=True, limiter=self._limiter)
        else:
            await in_thread(lambda: self._give_back(pool, raw), self._limiter, raw)
        if not self.read_only.in_use():
            self.read_only.seen = False
        elif self.for_writing:
            raise DatabaseAway(TAKES_NO_WRITES)

    def _knock(self) -> None:
        try:
            self._ended_by_us(connect(self._conninfo(), self.timeout))
        except psycopg.OperationalError as error:
            # It answers, and ours are all at work: that is no reason to take them away.
            if not (self.statistics().in_use and any(text in str(error) for text in _FULL)):
                raise

    def statistics(self) -> PoolStatistics:
        pools = [pool for pool in (self._pool, self._async_pool) if pool is not None]
        now, counts = Counter[str](), Counter(self._counted)
        for pool in pools:
            figures = pool.get_stats()
            counts.update(figures)
            now.update(figures)
        size, idle = now["pool_size"], now["pool_available"]
        queue = self._places.statistics().tasks_waiting
        return PoolStatistics(
            open=bool(pools),
            size=size,
            in_use=max(0, size - idle),
            idle=idle,
            most=self._settings.database_max_connections,
            waiting=now["requests_waiting"] + queue,
            requests=counts["requests_num"],
            waits=counts["requests_queued"] + self._waits,
            wait_seconds=round(counts["requests_wait_ms"] / 1000 + self._wait_seconds, 3),
            errors=sum(
                counts[name] for name in ("requests_errors", "connections_errors", "connections_lost", "returns_bad")
            )
            + self._refused,
        )

    # -- Trio --

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """A connection for a task of Trio; waits for it for `timeout` seconds (None: `DATABASE_TIMEOUT`). Commits at the end of
        the block, rolls back when that raises or is cancelled. Raises `psycopg.OperationalError`, of which `DatabaseAway` and
        `psycopg_pool.PoolTimeout` are two."""
        timeout = self.timeout if timeout is None else timeout
        holder = object()
        deadline = trio.current_time() + timeout
        if not self._places.available_tokens:
            self._waits += 1
        came = trio.current_time()
        with trio.move_on_at(deadline) as patience:
            await self._places.acquire_on_behalf_of(holder)
        self._wait_seconds += trio.current_time() - came
        if patience.cancelled_caught:
            self._refused += 1
            raise psycopg_pool.PoolTimeout(f"no connection to the database was free within {timeout:g} s")
        try:
            with trio.move_on_at(deadline):
                await self.changed.wait_until(lambda: self._pool is not None)
            pool = self._open_pool()
            rest = max(0.1, deadline - trio.current_time())
            raw = await self._borrowed(pool, rest)
            lent = Connection(raw, self._limiter)
            try:
                yield lent
                await lent.commit()
            finally:
                # A connection in the middle of a transaction is rolled back by the pool; a broken one is replaced.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                    await in_thread(lambda: self._give_back(pool, raw), self._limiter, raw)
        finally:
            self._places.release_on_behalf_of(holder)

    async def _borrowed(self, pool: SyncPool, seconds: float) -> "psycopg.Connection[Any]":
        """Cancelled, it returns at once, and what the thread gets yet it gives back."""
        wanted = True
        ours = threading.Lock()

        def borrow() -> "psycopg.Connection[Any]":
            raw = pool.getconn(seconds)
            with ours:
                if wanted:
                    return raw
            self._give_back(pool, raw)
            raise psycopg_pool.PoolTimeout("nobody waits for this connection any more")

        try:
            return await trio.to_thread.run_sync(borrow, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            with ours:
                wanted = False
            raise

    def _give_back(self, pool: SyncPool, raw: "psycopg.Connection[Any]") -> None:
        # Rolled back here and not by the pool, which would complain of each in the log.
        if raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with contextlib.suppress(psycopg.Error):
                raw.rollback()
        self.read_only.look_at(raw)
        with contextlib.suppress(psycopg.Error):
            pool.putconn(raw)

    def _open_pool(self) -> SyncPool:
        if (pool := self._pool) is None:
            raise DatabaseAway(f"no connection to the database: {self.away}")
        return pool

    # -- threads, and asyncio --

    @contextlib.contextmanager
    def sync_connection(self, timeout: float | None = None) -> Iterator["psycopg.Connection[Any]"]:
        """The same for a plain `def`, in its thread: psycopg's own connection."""
        if threading.get_ident() == self._trio_thread:
            raise RuntimeError("sync_connection() would block the event loop: on Trio it is `async with connection()`")
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._is_open.wait(deadline - time.monotonic())
        with self._open_pool().connection(max(0.1, deadline - time.monotonic())) as raw:
            try:
                yield raw
            finally:
                self.read_only.look_at(raw)

    @contextlib.asynccontextmanager
    async def asyncio_connection(self, timeout: float | None = None) -> AsyncIterator["psycopg.AsyncConnection[Any]"]:
        """The same for asyncio: psycopg's own asyncio connection, of a pool on the loop that asks first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout if timeout is None else timeout)
        if not self._is_open.is_set():
            await asyncio.to_thread(self._is_open.wait, deadline - loop.time())
        pool = self._pool_on(loop)
        # Its tasks are nobody's: begun in a message's context, they would be ended with the message.
        await loop.create_task(pool.open(), context=contextvars.Context())
        async with pool.connection(max(0.1, deadline - loop.time())) as raw:
            try:
                yield raw
            finally:
                self.read_only.look_at(raw)

    def _pool_on(self, loop: asyncio.AbstractEventLoop) -> AsyncPool:
        with self._lock:
            self._open_pool()  # closed by another thread since it was asked for: nobody would close this one any more
            if self._async_pool is None:
                self._async_loop = loop
                self._async_pool = psycopg_pool.AsyncConnectionPool(
                    self._conninfo,
                    min_size=min(self._settings.database_min_connections, self._async_most),
                    max_size=self._async_most,
                    open=False,
                    configure=self._note_async,
                    check=lambda raw: check_async(raw, self.timeout / 2),
                    kwargs={"connect_timeout": max(2, round(self.timeout))},
                    name="svc-asyncio",
                    timeout=self.timeout,
                    reconnect_timeout=self.timeout,
                )
            if self._async_loop is not loop:
                raise RuntimeError("the connections for asyncio belong to another event loop")
            return self._async_pool
