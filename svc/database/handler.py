"""The database as a handler of maintenance, and as something that the work cannot do without.

It outlives those who work: it is entered when they have drained. Then its connections go, down to
`DATABASE_MAINTENANCE_CONNECTIONS`, and it has drained when the server has none more. When maintenance ends it comes back first.

    wanted down ──leave──▶ wanted up, no pool ──connected──▶ a pool ──it does not answer──▶ wanted up, no pool
         ▲                                                    │
         └────────────── enter, whatever there was ───────────┘

While it is wanted and not there, `hold` is told why, so that nothing is received; it is tried again, every two seconds at last,
and the work goes on by itself. A processor that fails by its absence raises a suspicion, which pauses receiving until a ping has
answered it. One loop does all this (`run`); everything else only says what is wanted.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict

import psycopg
import structlog
import trio

from svc.backoff import backoff
from svc.database.conninfo import UnusableDatabase
from svc.database.figures import Closed, DatabaseStatistics
from svc.database.pool import Database
from svc.settings import Settings, printable
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

EVERY = 1.0
"""Seconds from one ping to the next, however often others ask for the health."""

LOOK = 5.0
"""Seconds between two pings while nobody asks."""

PATIENCE = 5.0
"""Seconds that an answer is waited for by who asks for the health."""

LATE = 5.0
"""Seconds that the end of the connections may take when the drain's time is over before it has begun."""


class DatabaseHandler:
    """A `maintenance.Handler` named `database`. `hold` is called with the reason while nothing may be received for its sake, and
    with None when something may."""

    name = "database"

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        after: tuple[str, ...] = ("http", "sqs"),
        rng: random.Random | None = None,
    ) -> None:
        self.after = after
        self.hold: Callable[[str | None], None] = lambda reason: None
        self._database = database
        self._settings = settings
        self._rng = rng or random.Random()
        self._wake_up = WakeUp()
        self._changed = WakeUp()
        self._wanted = False
        self._settled = True  # things are as they are wanted, in maintenance
        self._deadline = math.inf
        self._closed = Closed(0, 0, 0)
        self._suspected = False
        self._gone = False  # it has a pool and does not answer
        self._is_kept = False  # what there is are the connections of maintenance
        self._pinged_at = -math.inf
        self._one_ping = trio.Lock()
        self._error: str | None = None
        self._error_since: float | None = None

    # -- the manager's side --

    def enter(self) -> None:
        self._wanted, self._settled = False, False
        self._deadline = trio.current_time() + LATE
        self._closed = Closed(0, 0, 0)
        self._wake_up.notify()

    async def wait_drained(self, deadline: float) -> str | None:
        self._deadline = max(deadline, self._deadline)
        with trio.CancelScope(deadline=self._deadline + 1):
            await self._changed.wait_until(lambda: self._settled)
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._settled:
            return "its connections could not be closed in time"
        if self._closed.unconfirmed:
            return f"{self._closed.unconfirmed} connection(s) whose end the server has not confirmed"
        return None

    def leave(self) -> None:
        self._wanted = True
        if self._is_kept or not self._database.is_open:  # what is kept in maintenance gives way to the pools
            self.hold("the database is being connected to")
        self._wake_up.notify()

    async def health(self) -> bool:
        """Whether it answers. In maintenance nobody needs it, and it is not asked."""
        if not self._wanted:
            return True
        with trio.move_on_after(PATIENCE) as patience:
            await self._ping(EVERY)
        return self._database.is_open and self._error is None and not patience.cancelled_caught

    def statistics(self) -> DatabaseStatistics:
        return DatabaseStatistics(
            self._database.place, self._database.statistics(), self._error if self._wanted else None, self._error_since
        )

    def drain(self) -> Mapping[str, object]:
        return asdict(self._closed)

    # -- the processors' side --

    def suspect(self, error: psycopg.Error) -> None:
        """A processor has failed, by this error, as if the database were away. Receiving pauses until that is known."""
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            self._database.for_writing = True
        if self._wanted and self._database.is_open and not self._suspected:
            self._suspected = True
            self.hold(f"the database may be away: {_in_short(error)}")
            self._wake_up.notify()

    # -- running --

    async def run(self) -> None:
        """Bring about what is wanted, again and again. Ends only by cancellation."""
        failures = 0
        while True:
            if not self._wanted:
                failures = 0
                await self._let_go()
                # A stop that comes in maintenance drains once more.
                await self._wake_up.wait_until(lambda: self._wanted or not self._settled)
            elif self._gone:
                await self._database.close(f"{self._error}", 0)
                self._gone = False
            elif self._is_kept or not self._database.is_open:
                if await self._take_back():
                    failures = 0
                else:
                    failures += 1
                    with trio.move_on_after(backoff(failures, first=0.2, cap=2, rng=self._rng)):
                        await self._wake_up.wait_until(lambda: not self._wanted)
            else:
                with trio.move_on_after(LOOK):
                    await self._wake_up.wait_until(lambda: self._suspected or self._gone or not self._wanted)
                if self._wanted and not self._gone:
                    await self._ping(0 if self._suspected else EVERY)

    async def _let_go(self) -> None:
        """Close the pools, and have as many connections again as are kept in maintenance."""
        if self._settled:
            return
        self._gone = self._is_kept = self._suspected = False
        closed = await self._database.close("the service is in maintenance", self._deadline - trio.current_time())
        keep = self._settings.database_maintenance_connections
        if keep and not self._wanted:
            try:
                await self._database.open(keep, keep)
                self._is_kept = True
            except UNREACHABLE as error:
                log.warning("no connection to the database is kept in maintenance", error=_in_short(error))
        self._closed, self._settled = closed, True
        self._changed.notify()
        log.info(
            "the database's connections are closed",
            connections=closed.connections,
            ended_in_use=closed.ended_in_use,
            unconfirmed=closed.unconfirmed,
        )

    async def _take_back(self) -> bool:
        """Connect; whether that has worked."""
        if self._is_kept:
            await self._database.close("the service is coming back", 1)
            self._is_kept = False
        try:
            await self._database.open(self._settings.database_min_connections, self._settings.database_max_connections)
        except UNREACHABLE as error:
            if self._missing(error):
                log.warning(
                    "receiving waits for the database, which is tried again",
                    database=self._database.place,
                    error=_in_short(error),
                )
            return False
        after = None if self._error_since is None else round(trio.current_time() - self._error_since, 1)
        log.info("connected to the database", database=self._database.place, after_seconds=after)
        self._error = self._error_since = None
        self._suspected, self._settled = False, False
        if self._wanted:
            self.hold(None)
        return True

    async def _ping(self, every: float) -> None:
        """Ask whether it answers, unless somebody has within so many seconds."""
        async with self._one_ping:
            if trio.current_time() < self._pinged_at + every or self._gone or not self._database.is_open:
                return
            self._pinged_at = trio.current_time()
            try:
                await self._database.ping()
            except UNREACHABLE as error:
                if self._wanted and self._database.is_open:
                    self._missing(error)
                    log.warning(
                        "receiving pauses: the database does not answer",
                        database=self._database.place,
                        error=_in_short(error),
                    )
                    self._gone, self._suspected = True, False
                    self._wake_up.notify()
            else:
                if self._suspected:
                    self._suspected = False
                    self.hold(None)

    def _missing(self, error: Exception) -> bool:
        """It is not there; whether that is news."""
        said = f"the database ({self._database.place}) is not there: {_in_short(error)}"
        if self._error_since is None:
            self._error_since = trio.current_time()
        is_news, self._error = self._error != said, said
        if self._wanted:
            self.hold(said)
        return is_news


UNREACHABLE = (psycopg.Error, OSError, UnusableDatabase)
"""What opening and asking may raise that time, or an operator, puts right."""


def _in_short(error: BaseException) -> str:
    """The first line: what follows in libpq's are hints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0][:300]) if lines else type(error).__name__
