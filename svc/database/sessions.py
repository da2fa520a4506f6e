"""One transaction of a processor in PostgreSQL, in three colours: `processors.Session` on Trio and on asyncio, `ThreadSession`.

Each borrows its connection when it claims the key, and gives it back when it is closed. Between the two the processor has it: it
may do with the transaction what it likes, except end it. psycopg refuses its `commit()` and `rollback()`; a COMMIT sent as a
statement is found out here, and so is a failed statement whose error the processor has kept to itself: the COMMIT after it would
roll back, and say nothing.
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
        INSERT INTO svc_inbox (queue, key) SELECT %(queue)s, %(key)s FROM bounded ON CONFLICT DO NOTHING RETURNING key
    )
SELECT set_config('lock_timeout', before.value, true) FROM claimed, before
"""
"""One row: the key is ours. None: it was there. `LockNotAvailable`: another transaction holds it. One statement, because each is
a round trip; the bound on locks is this statement's own and not the processor's."""

CLAIM_ALL = b"""\
WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value),
    bounded AS MATERIALIZED (SELECT set_config('lock_timeout', %(wait)s, true) FROM before),
    claimed AS (
        INSERT INTO svc_inbox (queue, key)
        SELECT %(queue)s, one.key FROM bounded, unnest(%(keys)s::text[]) AS one (key) ORDER BY one.key
        ON CONFLICT DO NOTHING RETURNING key
    )
SELECT claimed.key, set_config('lock_timeout', before.value, true) FROM claimed, before
"""
"""A row for each key that is ours. In the order of the keys: two batches that share some must not wait for each other."""

FORGET = "DELETE FROM svc_inbox WHERE queue = %(queue)s AND key = ANY (%(keys)s)"

BUSY_WAIT = "1000ms"
"""How long a statement waits for another transaction to end: it notices the end at once, and cannot be stopped before."""

BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)

CLOSING = 2.0
"""Seconds that a rollback may take."""

Block = AbstractContextManager[psycopg.Transaction]
"""What begins a transaction when it is entered, and ends it when it is left."""

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
        self.transaction: psycopg.Connection[Any] | None = None

    def claim(self, key: str) -> Claim:
        raw = self._held.enter_context(self._database.sync_connection())
        self.transaction = raw
        claim, self._block = claimed(raw, self._queue, key)
        return claim

    def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        raw = self._held.enter_context(self._database.sync_connection())
        self.transaction = raw
        ours, self._block = all_claimed(raw, self._queue, keys)
        return ours

    def forget(self, keys: Sequence[str]) -> None:
        assert self.transaction is not None
        self.transaction.execute(FORGET, {"queue": self._queue, "keys": list(keys)})

    def commit(self, check: Callable[[], None]) -> None:
        assert self.transaction is not None
        assert self._block is not None
        commit(self.transaction, self._block, check)
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
        self.transaction: TrioTransaction | None = None

    async def claim(self, key: str) -> Claim:
        connection = await self._held.enter_async_context(self._database.connection())
        self.transaction = TrioTransaction(connection)

        def begin(raw: psycopg.Connection[Any]) -> Claim:
            claim, self._block = claimed(raw, self._queue, key)
            return claim

        return await connection.call(begin)

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        connection = await self._held.enter_async_context(self._database.connection())
        self.transaction = TrioTransaction(connection)

        def begin(raw: psycopg.Connection[Any]) -> Sequence[str] | None:
            ours, self._block = all_claimed(raw, self._queue, keys)
            return ours

        return await connection.call(begin)

    async def forget(self, keys: Sequence[str]) -> None:
        assert self.transaction is not None
        await self.transaction.connection.execute(FORGET, {"queue": self._queue, "keys": list(keys)})

    async def commit(self, check: Callable[[], None]) -> None:
        assert self.transaction is not None
        assert self._block is not None
        block = self._block
        await trio.lowlevel.checkpoint_if_cancelled()
        # On the way it is not cancelled: nobody would know what has become of it. Where no answer comes, the connection is cut.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._database.timeout) as bound:
            await self.transaction.connection.call(lambda raw: commit(raw, block, check))
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
        self.transaction: psycopg.AsyncConnection[Any] | None = None

    async def claim(self, key: str) -> Claim:
        rows = await self._begin(CLAIM, {"wait": BUSY_WAIT, "queue": self._queue, "key": key})
        return Claim.BUSY if rows is None else Claim.OURS if rows else Claim.DONE

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        rows = await self._begin(CLAIM_ALL, {"wait": BUSY_WAIT, "queue": self._queue, "keys": list(keys)})
        return None if rows is None else [row[0] for row in rows]

    async def _begin(self, query: bytes, params: dict[str, Any]) -> list[Any] | None:
        """The rows; None: another transaction holds a key."""
        self.transaction = raw = await self._held.enter_async_context(self._database.asyncio_connection())
        block = raw.transaction()
        await block.__aenter__()
        self._block = block
        try:
            return await (await raw.execute(query, params)).fetchall()
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
        await self._block.__aexit__(*NOTHING)
        self._block = None

    async def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if self._block is not None:
                await self._block.__aexit__(*ROLLBACK)
        with contextlib.suppress(psycopg.Error):
            await self._held.__aexit__(*ROLLBACK)


def claimed(raw: "psycopg.Connection[Any]", queue: str, key: str) -> tuple[Claim, Block]:
    """Begin, and put the key into the inbox. Raises `psycopg.Error`."""
    rows, block = _begin(raw, CLAIM, {"wait": BUSY_WAIT, "queue": queue, "key": key})
    return Claim.BUSY if rows is None else Claim.OURS if rows else Claim.DONE, block


def all_claimed(raw: "psycopg.Connection[Any]", queue: str, keys: Sequence[str]) -> tuple[Sequence[str] | None, Block]:
    """The same for several: those that are ours now; None: one of them is busy."""
    rows, block = _begin(raw, CLAIM_ALL, {"wait": BUSY_WAIT, "queue": queue, "keys": list(keys)})
    return None if rows is None else [row[0] for row in rows], block


def _begin(raw: "psycopg.Connection[Any]", query: bytes, params: dict[str, Any]) -> tuple[list[Any] | None, Block]:
    block = raw.transaction()
    block.__enter__()
    try:
        return raw.execute(query, params).fetchall(), block
    except BUSY:
        return None, block
    except psycopg.errors.UndefinedTable as missing:
        roll_back(block)
        raise NotCommitted(f"{missing.diag.message_primary}: run `svc database init`") from None
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            roll_back(block)
        raise


def commit(raw: "psycopg.Connection[Any]", block: Block, check: Callable[[], None]) -> None:
    """Commit, or roll back and raise."""
    try:
        refuse(raw)
        check()
    except BaseException:
        roll_back(block)
        raise
    block.__exit__(*NOTHING)


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
        raise NotCommitted("the processor has ended the transaction itself: leave COMMIT and ROLLBACK to the service")
