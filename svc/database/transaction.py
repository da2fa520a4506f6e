"""`svc.Transaction` over a connection of the pool."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar, cast

import psycopg

from svc.database.trio_connection import Connection
from svc.processors import Parameters, Result

T = TypeVar("T")


class TrioTransaction:
    """What a processor on Trio gets."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def execute(self, query: str, params: Parameters = None) -> Result:
        def work(raw: "psycopg.Connection[Any]") -> Result:
            cursor = raw.execute(_text(query), cast(Any, params))
            return Result(cursor.fetchall() if cursor.description else (), cursor.rowcount)

        return await self.connection.call(work)

    async def executemany(self, query: str, params: Iterable[Parameters]) -> int:
        def work(raw: "psycopg.Connection[Any]") -> int:
            with raw.cursor() as cursor:
                cursor.executemany(_text(query), cast(Any, params))
                return cursor.rowcount

        return await self.connection.call(work)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self.connection.transaction():
            yield

    async def run(self, function: Callable[[Any], T]) -> T:
        return await self.connection.call(function)


def _text(query: str) -> bytes:
    """psycopg's types want texts that stand in the program; this one has come through it."""
    return query.encode()
