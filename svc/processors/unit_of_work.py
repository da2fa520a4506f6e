"""Exactly once: a message's effects and the memory of it are committed in one transaction, or not at all.

    claim the key → call the processor → is the message still ours? → commit → (the usual settlement deletes)

A key that was committed before is a duplicate: the processor is not called, and the message is deleted. A key that another
transaction has claimed and not committed is waited for. Whatever is raised in between rolls back, key and effects together; a
commit without an answer raises too, and the redelivery finds out by the key what became of it.

The order stands here once; what a session does in a real PostgreSQL stands in `svc/database/`, in memory in `svc/testing/`.
"""

import contextlib
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import structlog
import trio

from svc.processors.batch import UNMARKED, AnyProcess, Batch, Item
from svc.processors.message import Message, Retry

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at a key that another transaction holds; each pause is twice the one before."""


Items = Mapping[str, Sequence[Item[Any]]]
"""Of a batch, by their keys, in its order: of one key several, where a message came twice, or business says that they are one."""


class Claim(Enum):
    """What has come of an attempt to put the key into the inbox."""

    OURS = "ours"
    """It stands there now, in our transaction."""
    DONE = "done"
    """It was committed before."""
    BUSY = "busy"
    """It stands in a transaction of somebody else that has not ended."""


class Session(Protocol):
    """One transaction of a processor on Trio or asyncio."""

    @property
    def transaction(self) -> Any:
        """What the processor gets."""

    async def claim(self, key: str) -> Claim:
        """Begin, and put the key into the inbox. May wait for another's transaction, for a second at most."""
        ...

    async def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None:
        """The same for several: those that are ours now. None: one of them is busy."""
        ...

    async def forget(self, keys: Sequence[str]) -> None:
        """Take these out of the inbox again, in this transaction."""
        ...

    async def commit(self, check: Callable[[], None]) -> None:
        """Commit. `check` is called as the last thing before; what it raises rolls back. Raises what the database does, and
        `NotCommitted` for a transaction that cannot be committed. Once sent, a commit is waited for."""
        ...

    async def close(self) -> None:
        """Roll back what is not committed, and give the connection back. Not cancelled, and bounded."""
        ...


class ThreadSession(Protocol):
    """The same for a plain `def`, in its own thread."""

    @property
    def transaction(self) -> Any: ...

    def claim(self, key: str) -> Claim: ...

    def claim_all(self, keys: Sequence[str]) -> Sequence[str] | None: ...

    def forget(self, keys: Sequence[str]) -> None: ...

    def commit(self, check: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class Inbox(Protocol):
    """Where the keys stand."""

    def on_trio(self) -> Session: ...

    def on_asyncio(self) -> Session:
        """In the loop's thread."""
        ...

    def in_thread(self) -> ThreadSession: ...


class NotCommitted(Exception):
    """The transaction was rolled back although the processor returned. The text says why."""


class NotOurs(NotCommitted):
    """The lease was over, or the message had been given back: another consumer may have it."""


class UnitOfWork:
    """Does the work of each message exactly once."""

    def __init__(
        self,
        inbox: Inbox,
        *,
        patience: float,
        is_ours: Callable[[Message], bool] = lambda message: True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`patience`: how many seconds a message waits for another's transaction on its key before it goes back to the queue, for
        as long. `is_ours`: whether the lease of this delivery holds and it has no fate yet; from any thread. `clock`: seconds,
        from any thread; Trio's by default."""
        self.inbox = inbox
        self.is_ours = is_ours
        self.duplicates = 0
        """How many messages were deleted because their effects had been committed before."""
        self._patience = patience
        self._clock = clock or trio.lowlevel.current_clock().current_time

    async def run(
        self,
        open_session: Callable[[], Session],
        sleep: Callable[[float], Awaitable[object]],
        message: Message,
        key: str,
        work: Callable[[Any], Awaitable[object]],
    ) -> object:
        """Call `work` with a transaction, unless the key is known. On Trio and on asyncio."""
        for pause in self._pauses(self._clock):
            session = open_session()
            try:
                claim = await session.claim(key)
                if claim is Claim.OURS:
                    result = await work(session.transaction)
                    await session.commit(functools.partial(self._check, message))
                    return result
                if claim is Claim.DONE:
                    self._was_done(message, key)
                    return None
            finally:
                await session.close()
            await sleep(pause)
        raise self._gives_up(key)

    def run_in_thread(self, message: Message, key: str, work: Callable[[Any], object]) -> object:
        """The same in a worker thread."""
        for pause in self._pauses(time.monotonic):
            self._check(message)  # a thread is not cancelled: it would wait although its message was given back
            session = self.inbox.in_thread()
            try:
                claim = session.claim(key)
                if claim is Claim.OURS:
                    result = work(session.transaction)
                    session.commit(functools.partial(self._check, message))
                    return result
                if claim is Claim.DONE:
                    self._was_done(message, key)
                    return None
            finally:
                session.close()
            time.sleep(pause)
        raise self._gives_up(key)

    async def run_batch(
        self,
        open_session: Callable[[], Session],
        sleep: Callable[[float], Awaitable[object]],
        items: Items,
        work: Callable[[Batch[Any], Any], Awaitable[object]],
    ) -> None:
        """Call `work` with those of the items, by their keys, that are not known, and one transaction for all of them. The keys
        of items that are marked as anything but done are taken back, and so their messages may come again. Of several with one
        key the first is worked on, and the others are its duplicates once it is committed."""
        for pause in self._pauses(self._clock):
            session = open_session()
            try:
                ours = await session.claim_all(sorted(items))
                if ours is not None:
                    fresh = self._fresh(items, ours)
                    if fresh:
                        with self._committed_together(fresh):
                            await work(_firsts(fresh), session.transaction)
                            if failed := _failed(fresh):
                                await session.forget(failed)
                            await session.commit(functools.partial(self._check_any, fresh))
                    return
            finally:
                await session.close()
            await sleep(pause)
        raise self._gives_up(", ".join(list(items)[:3]))

    def run_batch_in_thread(self, items: Items, work: Callable[[Batch[Any], Any], object]) -> None:
        """The same in a worker thread."""
        for pause in self._pauses(time.monotonic):
            self._check_any(items)
            session = self.inbox.in_thread()
            try:
                ours = session.claim_all(sorted(items))
                if ours is not None:
                    fresh = self._fresh(items, ours)
                    if fresh:
                        with self._committed_together(fresh):
                            work(_firsts(fresh), session.transaction)
                            if failed := _failed(fresh):
                                session.forget(failed)
                            session.commit(functools.partial(self._check_any, fresh))
                    return
            finally:
                session.close()
            time.sleep(pause)
        raise self._gives_up(", ".join(list(items)[:3]))

    def _fresh(self, items: Items, ours: Sequence[str]) -> dict[str, Sequence[Item[Any]]]:
        """Those whose keys are ours, in the order of the batch. The others are done."""
        mine = set(ours)
        for key, known in items.items():
            if key not in mine:
                self._are_done(known, key)
        return {key: same for key, same in items.items() if key in mine}

    def _check_any(self, items: Items) -> None:
        """A batch is given up when nothing of it is ours. What was lost of it is committed with the rest: its key says so."""
        if not any(self.is_ours(item.message) for same in items.values() for item in same):
            raise NotOurs("rolled back: the leases of all messages of the batch are over, or they were given back")

    @contextlib.contextmanager
    def _committed_together(self, items: Items) -> Iterator[None]:
        """What is raised within undoes what was done for the items: those that were marked as done are not. Else they are
        committed, and those that have their keys are duplicates; of one that was not, another message of its key comes again."""
        try:
            yield
        except BaseException:
            for first, *_ in items.values():
                if first.mark is None:
                    first.mark = UNMARKED
            raise
        for key, (first, *others) in items.items():
            if isinstance(first.mark, BaseException):
                for item in others:
                    item.retry("another message of its batch has its key, and was not committed")
            else:
                self._are_done(others, key)

    def _are_done(self, items: Sequence[Item[Any]], key: str) -> None:
        for item in items:
            item.done()
            self._was_done(item.message, key)

    def _pauses(self, clock: Callable[[], float]) -> Iterator[float]:
        pause, ends = FIRST_PAUSE, clock() + self._patience
        while clock() < ends:
            yield pause
            pause = min(2 * pause, LONGEST_PAUSE)

    def _check(self, message: Message) -> None:
        if not self.is_ours(message):
            raise NotOurs("rolled back: the message's lease is over, or it was given back")

    def _was_done(self, message: Message, key: str) -> None:
        self.duplicates += 1
        log.info("duplicate: its effects were committed before, the message is deleted", message_id=message.id, key=key)

    def _gives_up(self, key: str) -> Retry:
        return Retry(f"another transaction holds the key {key!r}, and has not ended", after=self._patience)


def _firsts(items: Items) -> Batch[Any]:
    return Batch([same[0] for same in items.values()])


def _failed(items: Items) -> list[str]:
    return [key for key, (first, *_) in items.items() if isinstance(first.mark, BaseException)]


def unit_of_work_of(process: AnyProcess) -> UnitOfWork | None:
    """Of a processor that does its work exactly once; None for any other."""
    made: Any = process
    found = getattr(inspect.unwrap(made), "unit_of_work", None)
    return found if isinstance(found, UnitOfWork) else None
