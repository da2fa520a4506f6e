"""One transaction of a processor in PostgreSQL, in three colours: `processors.Session` on Trio and on asyncio, `ThreadSession`.

Each borrows its connection when it claims the key, and gives it back when it is closed. Between the two the processor has it: it
may do with the transaction what it likes, except end it. psycopg refuses its `commit()` and `rollback()`; a COMMIT sent as a
statement is found out here, even when another transaction was begun after it: `SAME` looks, in one round trip with our COMMIT,
whether this is the transaction that has put the key in. A failed statement whose error the processor has kept to itself is found
out too: the COMMIT after it would roll back, and say nothing.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import psycopg
import trio
from psycopg.pq import TransactionStatus

from svc.database.pool import Database
from svc.database.transaction import TrioTransaction
from svc.processors import Claim, NotCommitted

CLAIM = b"""\
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value),
    bounded AS MATERIALIZED (SELECT set_config('lock_timeout', %(wait)s, true) FROM before),
    claimed AS (
        INSERT INTO svc_inbox (queue, key) SELECT %(queue)s, %(key)s FROM bounded ON CONFLICT DO NOTHING
        RETURNING key, pg_current_xact_id_if_assigned()::text AS transaction
    )
SELECT claimed.key, claimed.transaction, set_config('lock_timeout', before.value, true) FROM claimed, before
"""
"""One row: the key is ours, and the transaction's identity. None: it was there. `LockNotAvailable`: another transaction holds it.
One statement, because each is a round trip; the bound on locks is this statement's own and not the processor's."""

CLAIM_ALL = b"""\
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value),
    bounded AS MATERIALIZED (SELECT set_config('lock_timeout', %(wait)s, true) FROM before),
    claimed AS (
        INSERT INTO svc_inbox (queue, key)
        SELECT %(queue)s, one.key FROM bounded, unnest(%(keys)s::text[]) AS one (key) ORDER BY one.key
        ON CONFLICT DO NOTHING RETURNING key, pg_current_xact_id_if_assigned()::text AS transaction
    )
SELECT claimed.key, claimed.transaction, set_config('lock_timeout', before.value, true) FROM claimed, before
"""
"""A row for each key that is ours. In the order of the keys: two batches that share some must not wait for each other."""

SAME = b"SELECT 1 / (pg_current_xact_id_if_assigned()::text IS NOT DISTINCT FROM %(transaction)s)::int"
"""Fails in any other transaction than this one. It is sent together with the COMMIT, in a pipeline: what follows a failure there
is not done, and no answer is waited for in between."""

FORGET = "DELETE FROM svc_inbox WHERE queue = %(queue)s AND key = ANY (%(keys)s)"

BUSY_WAIT = "1000ms"
"""How long a statement waits for another transaction to end: it notices the end at once, and cannot be stopped before."""

BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)

CLOSING = 2.0
"""Seconds that a rollback may take."""

Block = AbstractContextManager[psycopg.Transaction]
"""What begins a transaction when it is entered, and ends it when it is left."""

Claimed = Sequence[tuple[str, str, str]]
"""A row for each key that is ours: the key, the transaction's identity, and what does not matter."""

ENDED = "the processor has ended the transaction itself: leave COMMIT and ROLLBACK to the service"

ROLLBACK = (psycopg.Rollback, psycopg.Rollback(), None)
NOTHING = (None, None, None)
"""How a block is left. What lends a connection is left by an error in any case: without one it would commit what is open."""


class InThreadSession:
    """For a plain `def`: the processor gets the `psycopg.Connection`."""

    def __init__(self, database: Database, queue: str) -> None:
        self._database = database
        self._queue = queue
        self._held = contextlib.ExitStack()
        self._block: Block | None = None
        self._rows: Claimed = ()
        self.transaction: psycopg.Connection[Any] | None = None

    def claim(self, key: str) -> Claim:
        raw = self._held.enter_context(self._database.sync_connection())
        self.transaction = raw
        rows, self._block = begun(raw, CLAIM, {"queue": self._queue, "key": key})
        self._rows = rows or ()
        return _claim(rows)

    def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        raw = self._held.enter_context(self._database.sync_connection())
        self.transaction = raw
        rows, self._block = begun(raw, CLAIM_ALL, {"queue": self._queue, "keys": list(keys)})
        self._rows = rows or ()
        return _ours(rows)

    def forget(self, keys: Sequence[str]) -> None:
        assert self.transaction is not None
        self.transaction.execute(FORGET, {"queue": self._queue, "keys": list(keys)})

    def commit(self, check: Callable[[], None]) -> None:
        assert self.transaction is not None
        assert self._block is not None
        commit(self.transaction, self._block, self._rows, check)
        self._block = None

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if self._block is not None:
                roll_back(self._block)
        with contextlib.suppress(psycopg.Error):
            self._held.__exit__(*ROLLBACK)


class TrioSession:
    """For an `async def` on Trio: the processor gets a `svc.Transaction`."""

    def __init__(self, database: Database, queue: str) -> None:
        self._database = database
        self._queue = queue
        self._held = contextlib.AsyncExitStack()
        self._block: Block | None = None
        self._rows: Claimed = ()
        self.transaction: TrioTransaction | None = None

    async def claim(self, key: str) -> Claim:
        return _claim(await self._begin(CLAIM, {"queue": self._queue, "key": key}))

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        return _ours(await self._begin(CLAIM_ALL, {"queue": self._queue, "keys": list(keys)}))

    async def _begin(self, query: bytes, params: dict[str, Any]) -> Claimed | None:
        connection = await self._held.enter_async_context(self._database.connection())
        self.transaction = TrioTransaction(connection)

        def begin(raw: psycopg.Connection[Any]) -> Claimed | None:
            rows, self._block = begun(raw, query, params)
            return rows

        rows = await connection.call(begin)
        self._rows = rows or ()
        return rows

    async def forget(self, keys: Sequence[str]) -> None:
        assert self.transaction is not None
        await self.transaction.connection.execute(FORGET, {"queue": self._queue, "keys": list(keys)})

    async def commit(self, check: Callable[[], None]) -> None:
        assert self.transaction is not None
        assert self._block is not None
        block, rows = self._block, self._rows
        await trio.lowlevel.checkpoint_if_cancelled()
        # On the way it is not cancelled: nobody would know what has become of it. Where no answer comes, the connection is cut.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._database.timeout) as bound:
            await self.transaction.connection.call(lambda raw: commit(raw, block, rows, check))
        if bound.cancelled_caught:
            raise psycopg.OperationalError(
                f"the commit had no answer in {self._database.timeout:g} s: the redelivery finds out what became of it"
            )
        self._block = None

    async def close(self) -> None:
        block = self._block
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING):
            if block is not None and self.transaction is not None:
                with contextlib.suppress(psycopg.Error):
                    await self.transaction.connection.call(lambda raw: roll_back(block))
            with contextlib.suppress(psycopg.Error):
                await self._held.__aexit__(*ROLLBACK)


class AsyncioSession:
    """For asyncio: the processor gets the `psycopg.AsyncConnection`."""

    def __init__(self, database: Database, queue: str) -> None:
        self._database = database
        self._queue = queue
        self._held = contextlib.AsyncExitStack()
        self._block: AbstractAsyncContextManager[psycopg.AsyncTransaction] | None = None
        self._rows: Claimed = ()
        self.transaction: psycopg.AsyncConnection[Any] | None = None

    async def claim(self, key: str) -> Claim:
        return _claim(await self._begin(CLAIM, {"queue": self._queue, "key": key}))

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        return _ours(await self._begin(CLAIM_ALL, {"queue": self._queue, "keys": list(keys)}))

    async def _begin(self, query: bytes, params: dict[str, Any]) -> Claimed | None:
        """As `begun`."""
        self.transaction = raw = await self._held.enter_async_context(self._database.asyncio_connection())
        block = raw.transaction()
        await block.__aenter__()
        self._block = block
        try:
            self._rows = await (await raw.execute(query, {"wait": BUSY_WAIT, **params})).fetchall()
            return self._rows
        except BUSY:
            return None
        except psycopg.errors.UndefinedTable as missing:
            raise NotCommitted(f"{missing.diag.message_primary}: run `svc database init`") from None

    async def forget(self, keys: Sequence[str]) -> None:
        assert self.transaction is not None
        await self.transaction.execute(FORGET, {"queue": self._queue, "keys": list(keys)})

    async def commit(self, check: Callable[[], None]) -> None:
        assert self.transaction is not None
        assert self._block is not None
        refuse(self.transaction)
        check()
        try:
            async with self.transaction.pipeline():
                await self.transaction.execute(SAME, same(self._rows))
                block, self._block = self._block, None  # however this ends, it has been left
                await block.__aexit__(*NOTHING)
        except psycopg.Error as error:
            if not was_another(error):
                raise
            await self.transaction.rollback()
            raise NotCommitted(ENDED) from None

    async def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if self._block is not None:
                await self._block.__aexit__(*ROLLBACK)
        with contextlib.suppress(psycopg.Error):
            await self._held.__aexit__(*ROLLBACK)


def _claim(rows: Claimed | None) -> Claim:
    return Claim.BUSY if rows is None else Claim.OURS if rows else Claim.DONE


def _ours(rows: Claimed | None) -> Sequence[str] | None:
    return None if rows is None else [row[0] for row in rows]


def begun(raw: "psycopg.Connection[Any]", query: bytes, params: dict[str, Any]) -> tuple[Claimed | None, Block]:
    """Begin, and put keys into the inbox; None: another transaction holds one of them. Raises `psycopg.Error`."""
    block = raw.transaction()
    block.__enter__()
    try:
        return raw.execute(query, {"wait": BUSY_WAIT, **params}).fetchall(), block
    except BUSY:
        return None, block
    except psycopg.errors.UndefinedTable as missing:
        roll_back(block)
        raise NotCommitted(f"{missing.diag.message_primary}: run `svc database init`") from None
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            roll_back(block)
        raise


def commit(raw: "psycopg.Connection[Any]", block: Block, rows: Claimed, check: Callable[[], None]) -> None:
    """Commit the transaction in which these were claimed, or roll back and raise."""
    try:
        refuse(raw)
        check()
    except BaseException:
        roll_back(block)
        raise
    try:
        with raw.pipeline():
            raw.execute(SAME, same(rows))
            block.__exit__(*NOTHING)
    except psycopg.Error as error:
        if not was_another(error):
            raise
        raw.rollback()
        raise NotCommitted(ENDED) from None


def was_another(error: BaseException | None) -> bool:
    """Whether a pipeline has ended by this because `SAME` found another transaction."""
    while isinstance(error, psycopg.errors.PipelineAborted):  # the COMMIT behind it was not done
        error = error.__context__
    return isinstance(error, psycopg.errors.DivisionByZero)


def same(rows: Claimed) -> dict[str, str]:
    """The parameters of `SAME`."""
    return {"transaction": rows[0][1]}


def roll_back(block: Block) -> None:
    block.__exit__(*ROLLBACK)


def refuse(raw: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    """Raises `NotCommitted` when a COMMIT would not commit this transaction."""
    status = raw.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise NotCommitted(
            "rolled back: a statement failed, and the processor went on; what may fail belongs into a savepoint"
        )
    if status == TransactionStatus.IDLE:
        raise NotCommitted(ENDED)
