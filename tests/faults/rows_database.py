"""A real PostgreSQL, and the line to it, in trouble while processors write into it: each effect is there once when it is over."""

import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
import trio

from svc.database.inbox import CREATE
from tests.faults.effects import TABLES
from tests.faults.proxy_postgres import Moment
from tests.faults.trial_database import (
    AWAY,
    BACK,
    FAILED,
    HOLD,
    ORDINARY,
    OURS,
    RETRIED,
    Base,
    OnSmallDisk,
    Successor,
    fault,
)


async def unhealthy(base: Base, words: str = "the database") -> None:
    """An operator sees that it is the database."""
    await base.t.healthy(lambda body: body["status"] == "unhealthy" and words in (body["database"]["error"] or ""))


async def held(base: Base, does: Callable[[], Awaitable[object]] | None = None) -> None:
    end = trio.current_time() + HOLD
    if does is not None:
        await does()
    await trio.sleep_until(end)


# -- the server --


async def killed(base: Base) -> None:
    await trio.to_thread.run_sync(base.server.kill)
    await held(base, partial(unhealthy, base))
    await trio.to_thread.run_sync(base.server.restart)


fault(
    "database-killed",
    "PostgreSQL is killed (SIGKILL), stays away, and starts again",
    "`/health` 503, `database.error`; nothing is received meanwhile; recovers by itself",
    named=AWAY,
    over=BACK,
)(killed)

fault(
    "database-killed-ordinary",
    "the same, with an ordinary processor that asks for its connection itself",
    "`/health` 503, `database.error`; no effect is missing",
    named=AWAY,
    over=BACK,
    processor=ORDINARY,
)(killed)


@fault(
    "database-restarted",
    "PostgreSQL is restarted, and every transaction ended, three times",
    "`/health` 200, or 503 for a moment; what was at work is rolled back and done again",
    named=RETRIED,
)
async def _(base: Base) -> None:
    for _ in range(3):
        await trio.to_thread.run_sync(base.server.restart)
        await base.takes_effect()


@fault(
    "database-frozen",
    "PostgreSQL and its backends stand still (SIGSTOP) and go on",
    "`/health` 503, `database.error`; what was at work is rolled back, or found committed; recovers by itself",
    named=AWAY,
    over=BACK,
)
async def _(base: Base) -> None:
    base.server.freeze()
    try:
        await held(base, partial(unhealthy, base))
    finally:
        base.server.thaw()


@fault(
    "database-terminated",
    "an administrator ends every connection (`pg_terminate_backend`), twice a second for six seconds",
    "`/health` 200 or 503; messages are given back, and done when it is over",
    named=RETRIED,
    calls_limit=40,
)
async def _(base: Base) -> None:
    end = trio.current_time() + HOLD
    while trio.current_time() < end:
        await base.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
        await trio.sleep(0.5)


@fault(
    "database-failover",
    "failover to a second server that has the tables and nothing in them, as after the loss of what was not replicated",
    "`/health` 503; recovers by itself; no effect is missing, and one is there twice only where the commit's answer was lost",
    named=AWAY,
    over=BACK,
    judged=lambda base: base.judge_two(),
)
async def _(base: Base) -> None:
    second = await base.stack.enter_async_context(Successor(base.server))
    base.line.reset()
    with trio.fail_after(10):
        while await base.counts("pg_stat_activity", f"CASE WHEN {OURS} THEN 1 END"):
            await trio.sleep(0.1)
    base.before = await base.counts("effects", "body")
    await trio.to_thread.run_sync(base.server.kill)
    base.server = second
    await base.execute(TABLES, CREATE)
    await held(base, partial(unhealthy, base))
    base.line.lead_to(f"127.0.0.1:{second.port}")


@fault(
    "database-disk-full",
    "the disk with PostgreSQL's data (a tmpfs of 96 MiB) is full",
    "*failed*, “No space left on device”; the circuit breaker opens, and a few messages are tried from time to time; goes on by "
    "itself when there is room",
    named="circuit breaker opened: nearly every message fails",
    over="circuit breaker closed: receiving goes on",
    make=OnSmallDisk,
    calls_limit=40,
    BREAKER_FAILURES="90% of 20",
    BREAKER_PAUSE="2s-4s",
)
async def _(base: Base) -> None:
    assert isinstance(base.server, OnSmallDisk)
    # A page holds four effects then: the table grows all the time.
    await base.execute(
        f"ALTER TABLE effects ADD COLUMN weight text STORAGE PLAIN DEFAULT '{1800 * 'x'}'",
        "CHECKPOINT",
    )
    await trio.to_thread.run_sync(base.server.fill)
    try:
        line = await base.t.logged(FAILED)
        assert "No space left on device" in str(line)
        await base.t.logged("circuit breaker opened")
        await base.t.healthy(lambda body: body["breaker"]["state"] != "closed")
        await trio.sleep(HOLD)
        assert base.server.running
    finally:
        await trio.to_thread.run_sync(base.server.make_room)


# -- others who use it --


def locked(name: str, table: str, mode: str, sees: str) -> None:
    @fault(
        name,
        f"somebody else holds a lock on the {table} (`{mode}`) for twice as long as a lease",
        sees,
        named=RETRIED,
        SQS_VISIBILITY_TIMEOUT_SECONDS="4",
    )
    async def run(base: Base) -> None:
        async def wait() -> None:
            end = trio.current_time() + 8
            await trio.sleep(4)
            code, body = await base.t.health()
            assert code == 200, body
            await trio.sleep_until(end)

        def lock(connection: "psycopg.Connection[Any]") -> None:
            with connection.transaction():
                connection.execute(f"LOCK TABLE {table.split()[-1]} IN {mode} MODE".encode())
                trio.from_thread.run(wait)

        await base.somebody(lock)


locked(
    "database-inbox-locked",
    "inbox, svc_inbox",
    "ACCESS EXCLUSIVE",
    "`/health` 200; messages wait within their lease, then are given back",
)
locked(
    "database-effects-locked",
    "table that the processor writes to, effects",
    "EXCLUSIVE",
    "`/health` 200; those that have a connection wait, the others are given back",
)


@fault(
    "database-serialization",
    "everything is SERIALIZABLE, and somebody else changes all the time what the processor reads",
    "*failed* or retried after its back-off; each is done when it is over",
    named=FAILED,
    flags=("-c", "default_transaction_isolation=serializable"),
    BREAKER_FAILURES="off",
)
async def _(base: Base) -> None:
    end = trio.current_time() + HOLD
    while trio.current_time() < end:
        await base.execute("UPDATE shared SET n = n + 1")
        await trio.sleep(0.05)


@fault(
    "database-idle-timeout",
    "`idle_in_transaction_session_timeout` is shorter than the processor's work",
    "*failed*: rolled back; the circuit breaker may open; each is done when the time is longer again",
    named=FAILED,
    calls_limit=40,
)
async def _(base: Base) -> None:
    await base.execute("ALTER SYSTEM SET idle_in_transaction_session_timeout = '50ms'", "SELECT pg_reload_conf()")
    await held(base)
    await base.execute("ALTER SYSTEM RESET idle_in_transaction_session_timeout", "SELECT pg_reload_conf()")


@fault(
    "database-full-house",
    "somebody else takes every connection that `max_connections` grants, those of the service too",
    "`/health` 503, “too many clients”; recovers by itself when there is room",
    named=AWAY,
    over=BACK,
    flags=("-c", "max_connections=16", "-c", "superuser_reserved_connections=0", "-c", "reserved_connections=0"),
)
async def _(base: Base) -> None:
    with contextlib.ExitStack() as taken:

        def take_all() -> None:
            """One is ended, and its place is taken before the service has it back, until the service has none."""
            first = taken.enter_context(base.connect())
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    while True:
                        taken.enter_context(base.connect())
                ended = first.execute(
                    f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OURS}".encode()
                ).fetchone()
                if ended == (0,):
                    return

        with trio.fail_after(20):
            await trio.to_thread.run_sync(take_all)
        await held(base, partial(unhealthy, base, "too many clients"))


# -- the line --


@fault(
    "database-line-hangs",
    "the line to PostgreSQL stands and carries nothing",
    "`/health` 503, `database.error`; recovers by itself",
    named=AWAY,
    over=BACK,
)
async def _(base: Base) -> None:
    base.line.hang()
    await held(base, partial(unhealthy, base))


@fault(
    "database-line-breaks",
    "every connection to PostgreSQL is cut at random moments, some four times a second for six seconds",
    "`/health` 200 or 503; messages are given back, and done when it is over",
    named=RETRIED,
    calls_limit=60,
)
async def _(base: Base) -> None:
    end, rng = trio.current_time() + HOLD, random.Random(18)
    while trio.current_time() < end:
        base.line.cut()
        await base.line.heal()
        await trio.sleep(rng.uniform(0.05, 0.45))


def commits_cut(name: str, moment: Moment, sees: str, over: str | None = None) -> None:
    @fault(
        name,
        f"two of three commits: {moment.value}, and the connection is cut",
        sees,
        named=RETRIED,
        over=over,
        calls_limit=40,
    )
    async def run(base: Base) -> None:
        base.line.cut_commits(itertools.cycle((moment, moment, None)))
        await held(base)
        assert base.line.cut_short > 5


commits_cut("database-commit-cut", Moment.BEFORE, "retried: rolled back by PostgreSQL, and done again")
commits_cut("database-commit-half", Moment.HALFWAY, "retried: rolled back by PostgreSQL, and done again")
commits_cut(
    "database-commit-answer",
    Moment.AFTER,
    "retried: the next delivery finds the key, and is deleted as a duplicate",
    "duplicate: its effects were committed before, the message is deleted",
)
