"""A trial with a database (`trial.py` and a real PostgreSQL): what its rows have in common, and what they are judged by.

The service works with `exactly_once` (effects.py), over a line of its own to the database. After every trial, beside what holds
after all of them: the table of effects has each message once (an ordinary processor's: at least once), the inbox has its key,
no other effect is there, and the service is the same process as before.
"""

import contextlib
import itertools
import os
import pwd
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
import trio

from svc.database.inbox import CREATE
from svc.devstack.postgres import Postgres
from tests.faults.effects import TABLES
from tests.faults.proxy_postgres import PostgresProxy
from tests.faults.rows import scenario
from tests.faults.trial import Trial

T = TypeVar("T")

ONCE, ORDINARY = "tests.faults.effects:once", "tests.faults.effects:ordinary"
AWAY = "receiving pauses: the database does not answer"
BACK = "connected to the database"
RETRIED = "message will be retried"
FAILED = "message failed"
HOLD = 6.0
"""Seconds that a fault lasts."""
OURS = "application_name <> 'somebody' AND backend_type = 'client backend'"
"""In `pg_stat_activity`: the service's connections."""
WITHIN = 20.0
"""Seconds for the recovery, at most: a message that was given back in the outage waits for up to two."""
SETTINGS = {
    "MAX_CONCURRENCY": "10",
    "DATABASE_MAX_CONNECTIONS": "6",
    "DATABASE_TIMEOUT": "2s",
    "RETRY_BACKOFF": "1s-2s",
}


@dataclass
class Base:
    """The database of a trial: the server, the service's line to it, and what somebody else does there."""

    server: Postgres
    line: PostgresProxy
    t: Trial
    stack: contextlib.AsyncExitStack
    once: bool = True
    before: Counter[str] = field(default_factory=Counter)
    """The effects on the server that was there before."""

    def connect(self) -> "psycopg.Connection[Any]":
        """Somebody else, past the line."""
        return psycopg.connect(self.server.url, autocommit=True, application_name="somebody", connect_timeout=10)

    async def somebody(self, does: Callable[["psycopg.Connection[Any]"], T]) -> T:
        """In a thread: the lines go on meanwhile."""

        def work() -> T:
            with self.connect() as connection:
                return does(connection)

        return await trio.to_thread.run_sync(work)

    async def execute(self, *statements: str) -> None:
        def work(connection: "psycopg.Connection[Any]") -> None:
            for statement in statements:
                connection.execute(statement.encode())

        await self.somebody(work)

    async def counts(self, table: str, column: str) -> Counter[str]:
        query = f"SELECT {column} FROM {table}".encode()
        rows = await self.somebody(lambda connection: connection.execute(query).fetchall())
        return Counter(row[0] for row in rows if row[0] is not None)

    async def takes_effect(self) -> None:
        """A message that is sent now has its effect, committed."""
        body = await self.t.send()
        with trio.fail_after(WITHIN):
            while not (await self.counts("effects", "body"))[body]:
                await trio.sleep(0.1)

    async def judge(self) -> None:
        """To be asked when the service has stopped."""
        effects, sent = await self.counts("effects", "body"), Counter(self.t.sent)
        if not self.once:
            assert effects.keys() == sent.keys(), (sent - effects, effects - sent)
            return
        assert effects == sent, f"missing: {sent - effects}, too many: {effects - sent}"
        ids = [self.t.record.ids_of(body) for body in self.t.sent]
        assert await self.counts("svc_inbox", "key") == Counter(itertools.chain.from_iterable(ids))

    async def judge_two(self) -> None:
        """After a failover the inbox knows nothing of before: what was committed there without an answer is done again."""
        effects, sent = self.before + await self.counts("effects", "body"), Counter(self.t.sent)
        assert self.before
        assert effects.keys() == sent.keys(), (sent - effects, effects - sent)
        told = {line.get("message_id") for line in self.t.service.logs if line["event"] == RETRIED}
        assert all(self.t.record.ids_of(body) <= told for body in effects - sent), effects - sent


Breaks = Callable[[Base], Awaitable[None]]


class OnSmallDisk(Postgres):
    """A server whose data are on a disk of `MIB`, which `fill()` fills up. The disk is a tmpfs that only the server sees (a mount
    namespace of its own), and so it goes with it, however that ends."""

    MIB = 96
    _MOUNT = 'mount -t tmpfs -o "size=$1,uid=$2,gid=$3,mode=0700" disk "$4" && shift 4 && exec "$@"'

    @staticmethod
    def why_not() -> str | None:
        """What is missing here to mount a disk; None: nothing."""
        if os.geteuid() != 0 or not Path("/proc/self/ns/mnt").exists():
            return "only root on Linux can mount a disk"
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "disk", "/mnt"]
        try:
            tried = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            return f"no disk can be mounted here: {error}"
        return None if tried.returncode == 0 else f"no disk can be mounted here: {tried.stderr.strip()}"

    def _program(self) -> list[str]:
        data = self._directory / "data"
        data.mkdir(exist_ok=True)
        nobody = pwd.getpwnam("nobody")
        options = (f"{self.MIB}m", str(nobody.pw_uid), str(nobody.pw_gid), str(data))
        return ["unshare", "--mount", "sh", "-c", self._MOUNT, "sh", *options, *super()._program()]

    @property
    def _ballast(self) -> Path:
        return Path(f"/proc/{self.pid}/root{self._directory}/data/ballast")

    def fill(self) -> None:
        """Until not a byte has room."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def make_room(self) -> None:
        self._ballast.unlink()


class Successor(Postgres):
    """A server that may take another's place: it has the same password."""

    def __init__(self, of: Postgres) -> None:
        super().__init__()
        self._password = str(urlsplit(of.url).password)


@contextlib.asynccontextmanager
async def served(t: Trial, make: type[Postgres], *flags: str) -> AsyncIterator[Base]:
    """A server of the trial's own with its tables, and the service at work on it."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(make(*flags))
        line = PostgresProxy(f"127.0.0.1:{server.port}")
        t.environ["DATABASE_URL"] = server.url.replace(f":{server.port}/", f":{line.port}/") + "?sslmode=disable"
        base = Base(server, line, t, stack)
        await base.execute(TABLES, CREATE)
        async with line.running():
            await t.start()
            yield base


def fault(
    name: str,
    what: str,
    sees: str,
    *,
    named: str,
    over: str | None = None,
    make: type[Postgres] = Postgres,
    flags: tuple[str, ...] = (),
    calls_limit: float = 10,
    processor: str = ONCE,
    judged: Breaks = Base.judge,
    **environ: str,
) -> Callable[[Breaks], Breaks]:
    """`breaks` makes the fault, holds it, and ends it, but for the line, which is healed in any case."""

    def add(breaks: Breaks) -> Breaks:
        @scenario(name, what, sees, **{**SETTINGS, "MESSAGE_PROCESSOR": processor, **environ})
        async def run(t: Trial) -> None:
            if issubclass(make, OnSmallDisk) and (why_not := make.why_not()) is not None:
                pytest.skip(why_not)
            t.reasons = {RETRIED: "rolled back with its effect", FAILED: "rolled back with its effect"}
            async with served(t, make, *flags) as base:
                base.once = processor == ONCE
                pid = t.service.pid
                async with t.outage(
                    named=named, over=over, lines=[base.line], recovers=base.takes_effect, calls_limit=calls_limit
                ):
                    await breaks(base)
                assert not t.service.ended
                assert t.service.pid == pid
                await t.settle()
                await judged(base)

        return breaks

    return add
