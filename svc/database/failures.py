"""What a processor raises when the database is away, and what becomes of its message then (`DATABASE_FAILURE`)."""

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg

from svc.backoff import redelivery
from svc.processors import AnyProcess, Batch, Batching, Message, Reject, Retry


def of_its_absence(error: BaseException, *, read_only: bool = False) -> psycopg.Error | None:
    """The error by which an exception, or what it was raised from, says that the database is away; None if it says something
    else. A statement that the server refuses, a lock or a conflict is the processor's own matter. So is a write that was refused
    (25006), unless servers that take none have been met (`read_only`): it had begun its transaction READ ONLY."""
    return next((one for one in _within(error, set()) if _tells_absence(one, read_only)), None)


def _tells_absence(error: psycopg.Error, read_only: bool) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return read_only
    if not isinstance(error, psycopg.OperationalError):
        return False
    state = error.sqlstate
    # Without a state it is libpq's: no connection, or it is lost. 08: connection exception, 53300: no connection left, 57P: it
    # shuts down, starts, or an operator has ended the connection. A full disk (53100) is a failure like any other: the server
    # answers every ping, so receiving would go on at once. The circuit breaker pauses it, and finds out with few messages when
    # there is room.
    return state is None or state.startswith(("08", "53300", "57P"))


def verdict(error: BaseException) -> Retry | Reject | None:
    """What the processor has decided, be it within groups; of several the one that keeps the message in the queue."""
    found = [*_verdicts(error)]
    return next((one for one in found if isinstance(one, Retry)), found[0] if found else None)


def _verdicts(error: BaseException) -> Iterator[Retry | Reject]:
    if isinstance(error, (Retry, Reject)):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _verdicts(inner)


def _within(error: BaseException, seen: set[int]) -> Iterator[psycopg.Error]:
    if id(error) in seen:
        return
    seen.add(id(error))
    if isinstance(error, psycopg.Error):
        yield error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _within(inner, seen)
    for cause in (error.__cause__, error.__context__):
        if cause is not None:
            yield from _within(cause, seen)


class Guard:
    """Looks at what a processor raises, or says of the items of a batch: `suspect` is told of errors that say that the database
    is away. With `retry` (the range of `RETRY_BACKOFF`), their messages are then given back and tried again, which nobody counts
    as a failure. What the processor itself has decided, `Retry` or `Reject`, stands. `read_only`: whether servers that take no
    writes have been met."""

    def __init__(
        self,
        suspect: Callable[[psycopg.Error], None],
        retry: tuple[float, float] | None,
        read_only: Callable[[], bool] = lambda: False,
    ) -> None:
        self._suspect = suspect
        self._retry = retry
        self._read_only = read_only
        self._rng = random.Random()

    def around(self, process: AnyProcess) -> AnyProcess:
        if isinstance(process, Batching):
            return replace(process, call=self._batches(process.call))

        async def guarded(message: Message) -> None:
            with self._looked_at(message.receive_count):
                await process(message)

        guarded.__wrapped__ = process  # type: ignore[attr-defined]  # as functools.wraps does: for processors.threads_of()
        return guarded

    def _batches(self, call: Callable[[Batch[Any]], Awaitable[None]]) -> Callable[[Batch[Any]], Awaitable[None]]:
        async def guarded(batch: Batch[Any]) -> None:
            try:
                with self._looked_at(max((item.message.receive_count for item in batch), default=1)):
                    await call(batch)
            finally:
                for item in batch:
                    if isinstance(item.mark, Exception):
                        item.mark = self._meant(item.mark, item.message.receive_count)

        guarded.__wrapped__ = call  # type: ignore[attr-defined]
        return guarded

    @contextlib.contextmanager
    def _looked_at(self, receive_count: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            meant = self._meant(error, receive_count)
            if meant is error:
                raise
            raise meant  # noqa: B904 - a verdict's error is what it is in: a chain would be a circle

    def _meant(self, error: Exception, receive_count: int) -> Exception:
        """What is to be raised in its place."""
        absence, decided = of_its_absence(error, read_only=self._read_only()), verdict(error)
        if absence is None:
            return error
        self._suspect(absence)
        if decided is not None:
            return decided
        if self._retry is None:
            return error
        first, cap = self._retry
        later = Retry("the database is away", after=redelivery(receive_count, first=first, cap=cap, rng=self._rng))
        later.__cause__ = error
        return later
