"""`svc.Transaction`: the database transaction that an `async def` on Trio gets with `@processor(exactly_once=…)`.

A plain `def` gets a `psycopg.Connection` in its place, an asyncio processor a `psycopg.AsyncConnection`. The service commits it
after the processor has returned, and rolls it back when it raises or is cancelled.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Parameters = Sequence[object] | Mapping[str, object] | None
"""Of a statement: for its `%s`, or by name for its `%(name)s`."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement has brought."""

    rows: Sequence[Any] = ()
    """All of them: tuples."""
    rowcount: int = -1
    """How many rows it returned or changed."""

    def fetchone(self) -> Any:
        """The first row; None when there is none."""
        return self.rows[0] if self.rows else None

    def fetchall(self) -> list[Any]:
        return list(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Transaction(Protocol):
    """The processor's transaction. Its statements run in a thread, one at a time; a cancellation interrupts them. Errors are
    psycopg's (`psycopg.Error`). After one the transaction can only be rolled back, unless it happened within a `savepoint()`."""

    async def execute(self, query: str, params: Parameters = None) -> Result:
        """Run one statement and fetch its rows."""
        ...

    async def executemany(self, query: str, params: Iterable[Parameters]) -> int:
        """Run one statement for each of these; returns how many rows it changed in all."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """`async with transaction.savepoint(): …`: what is raised within undoes what was done within, and nothing else."""
        ...

    async def run(self, function: Callable[[Any], T]) -> T:
        """Call `function(connection)` in a thread, with the `psycopg.Connection`: for `COPY`, for a library that wants one, or
        for many statements in one go. It must neither commit nor keep the connection."""
        ...


_OF_PSYCOPG = {"Connection": "psycopg.Connection", "AsyncConnection": "psycopg.AsyncConnection"}


def transaction_of(parameter: inspect.Parameter) -> str | None:
    """What kind of transaction this parameter is annotated with, by the name that a user writes; None for anything else."""
    annotation = typing.get_origin(parameter.annotation) or parameter.annotation
    if annotation is Transaction:
        return "svc.Transaction"
    if getattr(annotation, "__module__", "").partition(".")[0] == "psycopg":
        return _OF_PSYCOPG.get(getattr(annotation, "__name__", ""))
    return None
