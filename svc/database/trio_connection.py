"""A connection as it is used on Trio: each call of psycopg's runs in a thread, and a cancelled one has ended when it returns.

psycopg waits for the server with calls that block. Here they run in threads of the database's own limiter. Cancelled, the
statement is cancelled at the server, as psycopg's own asyncio connections do it; if that does not end it within `PATIENCE`
(a frozen server, a cut network), the connection is cut, so that the thread ends in any case.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import psycopg
import trio
from psycopg import sql

from svc.database.farewell import Farewell, cancel

T = TypeVar("T")

Statement: TypeAlias = str | bytes | sql.SQL | sql.Composed
Parameters = Sequence[Any] | Mapping[str, Any]

PATIENCE = 1.0
"""Seconds that a cancelled statement may take to end before its connection is cut."""


async def in_thread(
    function: Callable[[], T], limiter: trio.CapacityLimiter, raw: "psycopg.Connection[Any] | None" = None
) -> T:
    """Call it in a thread. Cancelled, what it waits for on the connection `raw` is ended, and with that the thread; without a
    connection the end is waited for."""
    if raw is None:
        return await trio.to_thread.run_sync(function, limiter=limiter)
    ended, token = trio.Event(), trio.lowlevel.current_trio_token()

    def work() -> T:
        try:
            return function()
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

    # A cancellation from here on finds the thread at work: Trio looks for one before it starts it, and not again.
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
    except trio.Cancelled:
        await _interrupt(raw, ended)
        raise


async def _interrupt(raw: "psycopg.Connection[Any]", ended: trio.Event) -> None:
    farewell = Farewell(raw)
    try:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            # In a thread of no limiter of ours: all of those may be waiting.
            await trio.to_thread.run_sync(
                lambda: cancel(raw, PATIENCE / 2), abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
            await ended.wait()
        if not ended.is_set():
            farewell.cut()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                await ended.wait()
    finally:
        farewell.forget()


class Connection:
    """A connection lent to a task of Trio, from `database.connection()`. One call at a time.

    Cursors that `execute` returns hold all rows in memory: their `fetchone()`, `fetchall()` and iteration do not wait. Everything
    else of psycopg's (COPY, server-side cursors, notifications) is used within `call()`.
    """

    def __init__(self, raw: "psycopg.Connection[Any]", limiter: trio.CapacityLimiter) -> None:
        self.raw = raw
        """psycopg's own connection: for `call()`, and for what does not wait."""
        self._limiter = limiter

    async def execute(
        self, query: Statement, params: Parameters | None = None, *, prepare: bool | None = None, binary: bool = False
    ) -> "psycopg.Cursor[Any]":
        """Run one statement. Raises `psycopg.Error`."""
        return await self.call(lambda raw: raw.execute(query, params, prepare=prepare, binary=binary))

    async def executemany(self, query: Statement, params: Iterable[Parameters]) -> None:
        """Run one statement with each of the parameters, in few round trips. Raises `psycopg.Error`."""

        def work(raw: "psycopg.Connection[Any]") -> None:
            with raw.cursor() as cursor:
                cursor.executemany(query, params)

        await self.call(work)

    @contextlib.asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, *, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.Transaction]:
        """A transaction, or within one a savepoint: rolled back when the block raises or is cancelled. See psycopg's."""
        manager = self.raw.transaction(savepoint_name, force_rollback)
        transaction = await self.call(lambda raw: manager.__enter__())
        try:
            yield transaction
        except BaseException as error:
            raised = error
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                if await self.call(lambda raw: manager.__exit__(type(raised), raised, raised.__traceback__)):
                    return  # psycopg.Rollback of this very block
            raise
        await self.call(lambda raw: manager.__exit__(None, None, None))

    async def commit(self) -> None:
        """Raises `psycopg.Error`; when the connection was lost on the way, nobody knows whether it is committed."""
        await self.call(lambda raw: raw.commit())

    async def rollback(self) -> None:
        """Raises `psycopg.Error`."""
        await self.call(lambda raw: raw.rollback())

    async def call(self, function: "Callable[[psycopg.Connection[Any]], T]") -> T:
        """Run `function(connection)` in a thread, and return what it returns. Cancelled, its statement is cancelled."""
        return await in_thread(lambda: function(self.raw), self._limiter, self.raw)
