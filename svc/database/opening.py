"""The database of the settings as the service opens it: its handler, and processors that are looked at when they fail."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import trio

from svc.database.access import in_use
from svc.database.conninfo import conninfo
from svc.database.failures import Guard
from svc.database.handler import DatabaseHandler
from svc.database.inbox import PostgresInbox, check_once, queue_name
from svc.database.pool import Database
from svc.maintenance.handler import Handler
from svc.processors import AnyProcess, UnitOfWork, asyncio_loop
from svc.settings import Settings

CLOSING = 5.0
"""Seconds that the end of connections may take at the end of the service, if maintenance has not closed them before."""


class Opened:
    """`handler` has no connection yet: it makes them when it is left for the first time."""

    def __init__(self, database: Database, settings: Settings, after: tuple[str, ...]) -> None:
        self._settings = settings
        self._database = database
        self._inbox = PostgresInbox(database, queue_name(settings))
        self.unit_of_work = UnitOfWork(self._inbox, patience=settings.sqs_visibility_timeout_seconds)
        """For processors that say `exactly_once`."""
        self.handler = DatabaseHandler(database, settings, after=after)

    def before(self, users: Sequence[Handler]) -> DatabaseHandler:
        """The handler, which outlives these too, but for those that want to outlive it."""
        later = {self.handler.name}
        while more := {one.name for one in users if later & set(one.after)} - later:
            later |= more
        self.handler.after += tuple(one.name for one in users if one.name not in later)
        return self.handler

    def guarded(self, process: AnyProcess) -> AnyProcess:
        """The processor, whose failures tell when the database is away. It has to be known before the first connection."""
        self._database.for_asyncio = asyncio_loop(process) is not None
        retry = self._settings.retry_backoff or (5.0, 900.0)
        again = retry if self._settings.database_failure == "retry" else None
        return Guard(self.handler.suspect, again, lambda: self._database.read_only.seen).around(process)

    async def check_inbox(self) -> None:
        """Raises `MissingInbox`, which ends the start, when its table is not there. A database that is away is no reason."""
        await check_once(self._settings)

    async def forget_old(self) -> None:
        """Keep the inbox small. Ends only by cancellation."""
        await self._inbox.forget_old(self._settings.inbox_retention)


@contextlib.asynccontextmanager
async def opened(
    settings: Settings, application_name: str, *, after: tuple[str, ...] = ("http", "sqs")
) -> AsyncIterator[Opened]:
    """Within, processors find it (`database.connection()` and the like). Raises `UnusableDatabase`."""
    conninfo(settings, application_name)
    database = Database(settings, application_name)
    with in_use(database):
        try:
            yield Opened(database, settings, after)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING):
                await database.close("the service has stopped", CLOSING - 1)
