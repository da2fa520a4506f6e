"""The simulated inbox as one instance reaches it, for each colour of processors, until the line is cut: so a process dies."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import trio

from svc.processors import Claim, NotCommitted, Parameters, Result, Session, ThreadSession
from svc.testing.inbox import Open, SimulatedDatabaseError, SimulatedInbox
from svc.testing.waiting import holds

T = TypeVar("T")

BUSY_WAIT = 1.0
"""Seconds that a claim waits for another's transaction, as the real one does."""


class InboxLine:
    """A `processors.Inbox`: the simulated one as one instance reaches it, until the line is cut."""

    def __init__(self, inbox: SimulatedInbox) -> None:
        self.inbox = inbox
        self.is_cut = False
        self.is_closed = False
        """The service has let go of its connections."""
        self._open: list[Open] = []

    def cut(self) -> None:
        """The process dies: PostgreSQL rolls back what it has begun; a commit that it has sent arrives."""
        self.is_cut = True
        for transaction in self._open:
            if transaction.state == "open":
                self.inbox.roll_back(transaction)

    def close(self) -> None:
        """The service lets go of its connections: what is under way is rolled back."""
        self.is_closed = True
        for transaction in self._open:
            if transaction.state == "open":
                transaction.failed = True
                self.inbox.roll_back(transaction)

    def begin(self) -> Open:
        self._open = [one for one in self._open if one.state != "ended"]
        self._open.append(transaction := Open())
        return transaction

    def on_trio(self) -> Session:
        return _TrioSession(self)

    def on_asyncio(self) -> Session:
        return _AsyncioSession(self)

    def in_thread(self) -> ThreadSession:
        return _ThreadSession(self)


class _Side:
    """The client's side of one transaction, in whatever colour. Without a wait."""

    def __init__(self, line: InboxLine) -> None:
        self.line = line
        self.inbox = line.inbox
        self.open = line.begin()

    def claim_now(self, key: str) -> Claim:
        self.refuse()
        if self.inbox.troubled("claim"):
            raise SimulatedDatabaseError("the database is out of reach")
        return self.inbox.claim(self.open, key)

    def claim_all_now(self, keys: Sequence[str]) -> Sequence[str] | None:
        self.refuse()
        if self.inbox.troubled("claim"):
            raise SimulatedDatabaseError("the database is out of reach")
        return self.inbox.claim_all(self.open, keys)

    def refuse(self) -> None:
        if self.line.is_closed:
            raise SimulatedDatabaseError("the pool is closed")
        if self.open.failed:
            raise NotCommitted("rolled back: a statement failed, and the processor went on")

    def commit_now(self) -> None:
        if self.inbox.troubled("commit"):
            self.inbox.roll_back(self.open)
            raise SimulatedDatabaseError("the connection was lost before the commit arrived")
        self.inbox.commit(self.open)
        if self.inbox.troubled("answer"):
            raise SimulatedDatabaseError("the commit's answer was lost")

    def close_now(self) -> None:
        if self.open.state == "open":
            self.inbox.roll_back(self.open)

    def run(self, query: str, params: Any) -> Result:
        if self.line.is_closed:
            raise SimulatedDatabaseError("the pool is closed")
        if self.open.failed:
            raise SimulatedDatabaseError("the transaction has failed: it can only be rolled back")
        try:
            rows = list(self.inbox.answers(query, params))
        except BaseException:
            self.open.failed = True
            raise
        self.open.statements.append((query, params))
        return Result(rows, len(rows))

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        before = len(self.open.statements)
        try:
            yield
        except BaseException:
            del self.open.statements[before:]
            self.open.failed = False
            raise


class _TrioSession(_Side):
    @property
    def transaction(self) -> "_Transaction":
        return _Transaction(self)

    async def claim(self, key: str) -> Claim:
        await self.alive()
        await self.inbox.travel()
        with trio.move_on_after(BUSY_WAIT):
            await holds(lambda: not self.inbox.is_busy(key))
        claim = self.claim_now(key)
        await self.inbox.travel()
        return claim

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        await self.alive()
        await self.inbox.travel()
        with trio.move_on_after(BUSY_WAIT):
            await holds(lambda: not any(self.inbox.is_busy(key) for key in keys))
        ours = self.claim_all_now(keys)
        await self.inbox.travel()
        return ours

    async def forget(self, keys: Sequence[str]) -> None:
        await self.alive()
        self.inbox.take_back(self.open, keys)

    async def alive(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.line.is_cut:
            await trio.sleep_forever()

    async def commit(self, check: Callable[[], None]) -> None:
        await self.alive()
        self.refuse()
        check()
        self.inbox.sent(self.open)
        answer: list[Exception] = []
        arrived = trio.Event()
        trio.lowlevel.spawn_system_task(self._arrive, answer, arrived)
        with trio.CancelScope(shield=True):
            await arrived.wait()
        await self.alive_behind_a_shield()
        for error in answer:
            raise error

    async def _arrive(self, answer: list[Exception], arrived: trio.Event) -> None:
        try:
            await self.inbox.travel()
            try:
                self.commit_now()
            except SimulatedDatabaseError as error:
                answer.append(error)
            await self.inbox.travel()
        finally:
            arrived.set()  # at the end of the test, too: this is cancelled then, and who waits has a shield

    async def alive_behind_a_shield(self) -> None:
        if self.line.is_cut:
            await trio.sleep_forever()

    async def close(self) -> None:
        self.close_now()


class _Transaction:
    """A `svc.Transaction`."""

    def __init__(self, side: _TrioSession) -> None:
        self._side = side

    async def execute(self, query: str, params: Parameters = None) -> Result:
        await self._side.alive()
        await self._side.inbox.travel()
        result = self._side.run(query, params)
        await self._side.inbox.travel()
        return result

    async def executemany(self, query: str, params: Iterable[Parameters]) -> int:
        count = 0
        for one in params:
            count += max(1, (await self.execute(query, one)).rowcount)
        return count

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with self._side.savepoint():
            yield

    async def run(self, function: Callable[[Any], T]) -> T:
        await self._side.alive()
        return function(_Connection(self._side))


class _Connection:
    """As much of a `psycopg.Connection` as a processor needs in a test."""

    def __init__(self, side: _Side) -> None:
        self._side = side

    def execute(self, query: str, params: Parameters = None) -> Result:
        return self._side.run(query, params)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self._side.savepoint():
            yield


class _ThreadSession(_Side):
    @property
    def transaction(self) -> _Connection:
        return _Connection(self)

    def claim(self, key: str) -> Claim:
        return self.claim_now(key)

    def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        return self.claim_all_now(keys)

    def forget(self, keys: Sequence[str]) -> None:
        self.inbox.take_back(self.open, keys)

    def commit(self, check: Callable[[], None]) -> None:
        self.refuse()
        check()
        self.commit_now()

    def close(self) -> None:
        self.close_now()


class _AsyncConnection:
    """As much of a `psycopg.AsyncConnection`."""

    def __init__(self, side: _Side) -> None:
        self._side = side

    async def execute(self, query: str, params: Parameters = None) -> "_AsyncResult":
        return _AsyncResult(self._side.run(query, params))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self._side.savepoint():
            yield


class _AsyncResult:
    def __init__(self, result: Result) -> None:
        self.rowcount = result.rowcount
        self._result = result

    async def fetchone(self) -> Any:
        return self._result.fetchone()

    async def fetchall(self) -> list[Any]:
        return self._result.fetchall()


class _AsyncioSession(_Side):
    @property
    def transaction(self) -> _AsyncConnection:
        return _AsyncConnection(self)

    async def claim(self, key: str) -> Claim:
        return self.claim_now(key)

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        return self.claim_all_now(keys)

    async def forget(self, keys: Sequence[str]) -> None:
        self.inbox.take_back(self.open, keys)

    async def commit(self, check: Callable[[], None]) -> None:
        self.refuse()
        check()
        self.commit_now()

    async def close(self) -> None:
        self.close_now()
