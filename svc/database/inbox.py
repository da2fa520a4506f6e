"""The inbox: the table in which each processed message leaves its key, in the transaction of its effects.

`CREATE` makes it, `FORGET` removes what is old; what puts a key in stands in `sessions.py`, with the transactions, and the order
of things in `svc/processors/unit_of_work.py`.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import psycopg
import structlog
import trio

from svc.database.conninfo import UnusableDatabase
from svc.database.pool import Database
from svc.database.sessions import AsyncioSession, InThreadSession, TrioSession
from svc.processors import Session, ThreadSession, UnusableProcessor
from svc.settings import Settings, queue_address

log = structlog.get_logger(__name__)

CREATE = """\
CREATE TABLE IF NOT EXISTS svc_inbox (
    queue text NOT NULL,
    key text NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, key)
);
CREATE INDEX IF NOT EXISTS svc_inbox_committed_at ON svc_inbox (queue, committed_at);
"""
"""May be run again and again, by several at once too."""

CHECK = """\
SELECT (SELECT count(*) FROM pg_attribute
        WHERE attrelid = to_regclass('svc_inbox') AND attname IN ('queue', 'key', 'committed_at')),
    coalesce(has_table_privilege(to_regclass('svc_inbox'), 'SELECT')
        AND has_table_privilege(to_regclass('svc_inbox'), 'INSERT')
        AND has_table_privilege(to_regclass('svc_inbox'), 'DELETE'), false)
"""

FORGET = """\
DELETE FROM svc_inbox WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM svc_inbox
    WHERE (SELECT pg_try_advisory_xact_lock(hashtextextended('svc_inbox ' || %(queue)s, 0)))
        AND queue = %(queue)s AND committed_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY committed_at LIMIT %(rows)s
))
"""
"""One step: so many rows, unless another instance is at it. Without the order by time, old rows could be met last."""

FORGET_EVERY = 600.0
"""Seconds from one look for old rows to the next."""

FORGET_ROWS, FORGET_PAUSE = 1000, 0.2
"""Rows of one step, and seconds between two steps: a few thousand rows a second, in transactions of milliseconds."""

COMMAND = "svc database init"

CLOSING = 1.0
"""Seconds that the end of a connection may take that was needed once."""


class MissingInbox(UnusableProcessor):
    """The table is not there, or may not be written to; or the database's library is too old for it."""


def queue_name(settings: Settings) -> str:
    """What the inbox calls the queue of these settings: region, account and name, which its ARN and all of its URLs have in
    common. (Given by its name alone, it is of an account that nobody has named.)"""
    address = queue_address(settings.sqs_queue_url)
    account = address.account or settings.sqs_queue_owner
    path = f"{account}/{address.name}" if account else urlsplit(address.url or address.name).path.strip("/")
    return f"{settings.aws_region}/{path}"


class PostgresInbox:
    """A `processors.Inbox` in PostgreSQL."""

    def __init__(self, database: Database, queue: str) -> None:
        """`queue`: see `queue_name`."""
        self._database = database
        self._queue = queue

    def on_trio(self) -> Session:
        return TrioSession(self._database, self._queue)

    def on_asyncio(self) -> Session:
        return AsyncioSession(self._database, self._queue)

    def in_thread(self) -> ThreadSession:
        return InThreadSession(self._database, self._queue)

    async def check(self) -> None:
        """Raises `MissingInbox` when the table is not there, lacks a column, or may not be written to; `psycopg.OperationalError`
        when the database cannot be asked."""
        if not psycopg.Pipeline.is_supported():
            raise MissingInbox("exactly_once needs libpq 14 or newer: pip install 'psycopg[binary]', which brings one")
        async with self._database.connection() as connection:
            columns, granted = (await connection.execute(CHECK)).fetchone() or (0, False)
        if columns < 3:
            raise MissingInbox(
                f"exactly_once needs the table svc_inbox in {self._database.place}, and it is not there: run `{COMMAND}`"
            )
        if not granted:
            raise MissingInbox(
                "exactly_once writes to the table svc_inbox, and this user may not: "
                "GRANT SELECT, INSERT, DELETE ON svc_inbox TO …"
            )

    async def forget_old(
        self, retention: float, *, every: float = FORGET_EVERY, sleep: Callable[[float], Awaitable[object]] = trio.sleep
    ) -> None:
        """Remove the keys that are older than `retention` seconds, now and from time to time; ends only by cancellation. While
        the database is away it leaves them."""
        while True:
            try:
                while await self._forget(retention) == FORGET_ROWS:
                    await sleep(FORGET_PAUSE)
            except psycopg.OperationalError as error:
                log.debug("old keys of the inbox stay for now", error=str(error))
            except psycopg.Error as error:
                log.warning("old keys of the inbox could not be removed, trying again later", error=str(error))
            await sleep(every)

    async def _forget(self, retention: float) -> int:
        async with self._database.connection() as connection:
            removed = await connection.execute(
                FORGET, {"queue": self._queue, "seconds": retention, "rows": FORGET_ROWS}
            )
            return removed.rowcount


class Failed(Exception):
    """The database cannot be reached, or refuses; the text says why."""


async def create_once(settings: Settings) -> tuple[str, bool]:
    """Create the table in the database of these settings; returns where that is, and whether it is new. Raises `Failed`."""
    async with _for_once(settings) as database:
        try:
            is_new = await create(database)
        except psycopg.Error as error:
            raise Failed(f"the table svc_inbox could not be created in {database.place}: {error}") from None
        return database.place, is_new


async def check_once(settings: Settings) -> None:
    """Look, before anything is received, whether the table is there. Raises `MissingInbox`. A database that cannot be reached now
    is waited for by others."""
    try:
        async with _for_once(settings) as database:
            await PostgresInbox(database, queue_name(settings)).check()
    except (Failed, psycopg.Error) as error:
        log.warning("whether the inbox's table is there could not be found out", error=str(error))


@contextlib.asynccontextmanager
async def _for_once(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings, "svc inbox")
    try:
        await database.open(0, 1)
    except (psycopg.Error, OSError, UnusableDatabase) as error:
        raise Failed(f"{database.place} cannot be reached: {error}") from None
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING):
            await database.close("done", CLOSING)


async def create(database: Database) -> bool:
    """Create the table, if it is not there; whether it was not. Raises `psycopg.Error`."""
    async with database.connection() as connection:
        # Two that create it in the same moment meet in PostgreSQL's catalog, in spite of IF NOT EXISTS.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('svc_inbox', 0))")
        found = await connection.execute("SELECT to_regclass('svc_inbox') IS NULL")
        await connection.execute(CREATE)
        return found.fetchone() == (True,)
