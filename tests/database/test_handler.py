"""The database as a handler: it comes and goes with maintenance, and nothing is received while it is away."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio

from svc import database as svc_database
from svc.database.failures import Guard, of_its_absence
from svc.database.handler import DatabaseHandler
from svc.devstack.postgres import Postgres
from svc.processors import UNMARKED, Batch, Batching, Item, Message, Reject, Retry
from svc.settings import load
from tests.database.conftest import database
from tests.database.test_pool import seen

pytestmark = pytest.mark.xdist_group("postgres")


class Held:
    """A handler that runs, and what it has said of receiving."""

    def __init__(self, url: str, name: str, **more: str) -> None:
        self.database = database(url, name, **more)
        held = {"DATABASE_URL": url, "DATABASE_MIN_CONNECTIONS": "1", "DATABASE_MAX_CONNECTIONS": "3"}
        self.handler = DatabaseHandler(self.database, load(held | more))
        self.reason: str | None = "nobody has said anything"
        self.handler.hold = self.hold

    def hold(self, reason: str | None) -> None:
        self.reason = reason

    async def until(self, *words: str) -> None:
        """Wait until receiving is held for a reason with these words, or for none."""
        with trio.fail_after(20):
            while not (
                self.reason is None if not words else self.reason and all(word in self.reason for word in words)
            ):
                await trio.sleep(0.01)


@asynccontextmanager
async def running(url: str, name: str, **more: str) -> AsyncIterator[Held]:
    held = Held(url, name, **more)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.handler.run)
        yield held
        nursery.cancel_scope.cancel(reason="the test is over")
    await held.database.close("the test is over", 5)


async def drained(handler: DatabaseHandler) -> str | None:
    handler.enter()
    return await handler.wait_drained(trio.current_time() + 10)


async def test_it_comes_and_goes_with_maintenance(postgres: Postgres) -> None:
    async with running(postgres.url, "comes-and-goes", DATABASE_MAINTENANCE_CONNECTIONS="0") as held:
        assert await drained(held.handler) is None  # before it was ever there
        for _ in range(2):
            held.handler.leave()
            assert held.reason is not None
            await held.until()
            assert await held.handler.health()
            assert held.handler.statistics().pool.idle == 1
            assert await drained(held.handler) is None
            assert seen(postgres, "comes-and-goes") == []
            assert held.handler.drain() == {"connections": 1, "ended_in_use": 0, "unconfirmed": 0}
            assert await held.handler.health()  # nobody needs it
            with trio.fail_after(5):  # a stop in maintenance: there is nothing left to close
                assert await drained(held.handler) is None
            assert held.handler.drain() == {"connections": 0, "ended_in_use": 0, "unconfirmed": 0}


async def test_some_connections_may_stay_in_maintenance(postgres: Postgres) -> None:
    async with running(postgres.url, "some-stay", DATABASE_MAINTENANCE_CONNECTIONS="2") as held:
        held.handler.leave()
        await held.until()
        assert await drained(held.handler) is None
        assert len(seen(postgres, "some-stay")) == 2
        with trio.fail_after(5):  # a stop in maintenance
            assert await drained(held.handler) is None
        held.handler.leave()
        assert held.reason == "the database is being connected to"
        await held.until()
        async with held.database.connection() as connection:
            assert (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_maintenance_that_is_called_off_while_a_suspicion_is_looked_into_holds_nothing_back(
    postgres: Postgres,
) -> None:
    async with running(postgres.url, "suspected", DATABASE_MAX_CONNECTIONS="1") as held:
        held.handler.leave()
        await held.until()
        async with held.database.connection():  # the ping waits for it
            held.handler.suspect(psycopg.OperationalError("the connection is lost"))
            waiting = held.database.statistics
            with trio.fail_after(5):
                while not waiting().waiting:
                    await trio.sleep(0.001)
            held.handler.enter()
            held.handler.leave()
            assert held.reason == "the database may be away: the connection is lost"
        await held.until()


@pytest.mark.slow
async def test_while_it_is_away_nothing_is_received_and_it_goes_on_by_itself() -> None:
    with Postgres() as server:
        async with running(server.url, "away") as held:
            held.handler.leave()
            await held.until()
            server.kill()
            held.handler.suspect(psycopg.OperationalError("the connection is lost"))
            assert held.reason == "the database may be away: the connection is lost"
            await held.until("is not there", "refused")
            assert not await held.handler.health()
            told = held.handler.statistics()
            assert told.error is not None
            assert "postgres at 127.0.0.1" in told.error
            server.start()
            await held.until()
            assert await held.handler.health()
            # An operator ends all connections: the next one is a new one, and nothing stays held.
            with psycopg.connect(server.url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'away'")
            held.handler.suspect(psycopg.OperationalError("terminated"))
            await held.until()
            async with held.database.connection() as connection:
                assert (await connection.execute("SELECT 1")).fetchone() == (1,)


@pytest.mark.slow
async def test_a_frozen_database_is_found_out_and_who_uses_it_is_told() -> None:
    with Postgres() as server:
        async with running(server.url, "frozen-at-work", DATABASE_TIMEOUT="1") as held, trio.open_nursery() as nursery:
            held.handler.leave()
            await held.until()
            failed = trio.Event()

            async def work() -> None:
                try:
                    async with held.database.connection() as connection:
                        await connection.execute("SELECT pg_sleep(60)")
                except psycopg.OperationalError:
                    failed.set()

            nursery.start_soon(work)
            while held.handler.statistics().pool.in_use == 0:
                await trio.sleep(0.01)
            server.freeze()
            try:
                with trio.fail_after(30):
                    await held.until("is not there")
                    await failed.wait()
            finally:
                server.thaw()
            await held.until()


async def writes(message: Message) -> None:
    async with svc_database.connection() as connection:
        if message.body == "reads only":
            await connection.execute("SET TRANSACTION READ ONLY")
        await connection.execute("CREATE TABLE IF NOT EXISTS written (number int)")
        await connection.execute("INSERT INTO written VALUES (1)")


async def refused_until_it_takes_writes(held: Held, mend: Callable[[], object]) -> None:
    guard = Guard(held.handler.suspect, (5, 900), lambda: held.database.read_only.seen)
    process: Any = guard.around(writes)
    with svc_database.in_use(held.database):
        with pytest.raises(Retry, match="the database is away"):
            await process(Message("id", "body"))
        assert held.reason is not None
        assert "may be away: cannot execute" in held.reason
        await held.until("is not there", "takes no writes")
        assert not await held.handler.health()
        mend()
        await held.until()
        await process(Message("id", "body"))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):  # it has said so itself
            await process(Message("id", "reads only"))
        assert held.reason is None
        assert await held.handler.health()


async def test_a_server_that_takes_no_writes_is_away_for_who_writes(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE clerk LOGIN PASSWORD 'clerk'; GRANT ALL ON SCHEMA public TO clerk")
        owner.execute("ALTER ROLE clerk SET default_transaction_read_only = on")
        async with running(f"postgresql://clerk:clerk@127.0.0.1:{postgres.port}/postgres", "clerk") as held:
            held.handler.leave()
            await held.until()
            assert await held.handler.health()  # nobody has wanted to write
            await refused_until_it_takes_writes(
                held, lambda: owner.execute("ALTER ROLE clerk RESET default_transaction_read_only")
            )


@pytest.mark.slow
async def test_a_standby_is_away_for_who_writes_until_it_is_promoted() -> None:
    with Postgres() as server:
        data = server._directory / "data"
        (data / "standby.signal").touch()
        owner = (data / "PG_VERSION").stat()
        os.chown(data / "standby.signal", owner.st_uid, owner.st_gid)
        server.restart()
        with psycopg.connect(server.url, autocommit=True) as other:
            async with running(server.url, "standby") as held:
                held.handler.leave()
                await held.until()
                await refused_until_it_takes_writes(held, lambda: other.execute("SELECT pg_promote()"))


async def test_what_is_said_of_an_item_tells_whether_the_database_is_away() -> None:
    lost, own, read_only = psycopg.OperationalError("lost"), ValueError("own"), psycopg.errors.ReadOnlySqlTransaction()
    told: list[psycopg.Error] = []
    items = [Item(number, Message(str(number), "body")) for number in range(7)]

    async def process(batch: Batch[int]) -> None:
        for item, error in zip(
            batch, (lost, own, ExceptionGroup("both", [lost, Reject("bad")]), read_only), strict=False
        ):
            item.fail(error)
        batch[4].done()
        batch[5].retry(after=7)
        raise ZeroDivisionError

    batching = Batching(7, 1, lambda message: None, process)
    guarded = Guard(told.append, (5, 900)).around(batching)
    assert isinstance(guarded, Batching)
    with pytest.raises(ZeroDivisionError):
        await guarded.call(Batch(items))
    assert [type(item.mark) for item in items[:4]] == [Retry, ValueError, Reject, psycopg.errors.ReadOnlySqlTransaction]
    assert isinstance(items[0].mark, Retry)
    assert 1 <= items[0].mark.after <= 5
    assert items[0].mark.__cause__ is lost
    assert items[4].mark is None
    assert isinstance(items[5].mark, Retry)
    assert items[5].mark.after == 7
    assert items[6].mark is UNMARKED
    assert told == [lost, lost]
    failing = Guard(told.append, None, lambda: True).around(batching)
    assert isinstance(failing, Batching)
    with pytest.raises(ZeroDivisionError):
        await failing.call(Batch(items))
    assert [item.mark for item in items[:2]] == [lost, own]
    assert told == [lost, lost, lost, lost, read_only]


async def test_what_a_processor_raises_tells_whether_the_database_is_away() -> None:
    lost = psycopg.OperationalError("lost")
    told: list[psycopg.Error] = []

    async def process(message: Message) -> None:
        try:
            raise lost
        except psycopg.Error as error:
            raise ExceptionGroup("of a nursery", [RuntimeError("no order")]) from error

    retried = Guard(told.append, (5, 900)).around(process)
    with pytest.raises(Retry, match="the database is away") as raised:
        await retried(Message("id", "body"))  # type: ignore[operator]
    assert 1 <= raised.value.after <= 5
    assert told == [lost]
    failing = Guard(told.append, None).around(process)
    with pytest.raises(ExceptionGroup):
        await failing(Message("id", "body"))  # type: ignore[operator]
    assert told == [lost, lost]
    disk_full = psycopg.errors.DiskFull()  # it answers: a matter of the circuit breaker
    for own in (psycopg.errors.UniqueViolation(), psycopg.errors.DeadlockDetected(), disk_full, ValueError()):
        assert of_its_absence(own) is None
    for away in (psycopg.errors.AdminShutdown(), psycopg.errors.TooManyConnections(), psycopg.OperationalError()):
        assert of_its_absence(away) is away


@pytest.mark.parametrize("back_off", [(5.0, 900.0), None])
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "from"])
@pytest.mark.parametrize("said", ["retry", "reject", "both", "nested"])
async def test_what_the_processor_decides_stands_although_the_database_is_away(
    back_off: tuple[float, float] | None, beside: bool, said: str
) -> None:
    later, bad, lost = Retry("later", after=700), Reject("bad"), psycopg.OperationalError("lost")
    verdicts = {"retry": [later], "reject": [bad], "both": [bad, later], "nested": [ExceptionGroup("inner", [later])]}[
        said
    ]
    told: list[psycopg.Error] = []

    async def process(message: Message) -> None:
        if beside:
            raise ExceptionGroup("of a nursery", [ValueError("no order"), lost, *verdicts])
        raise ExceptionGroup("of a nursery", verdicts) from lost

    guarded = Guard(told.append, back_off).around(process)
    with pytest.raises((Retry, Reject)) as raised:
        await guarded(Message("id", "body"))  # type: ignore[operator]
    assert raised.value is (bad if said == "reject" else later)
    assert told == [lost]


async def test_a_plain_verdict_stands_and_the_database_is_suspected() -> None:
    lost = psycopg.OperationalError("lost")
    told: list[psycopg.Error] = []

    async def process(message: Message) -> None:
        raise Retry("later", after=700) from lost if message.body == "from" else None

    guarded = Guard(told.append, (5, 900)).around(process)
    for body in ("from", "alone"):
        with pytest.raises(Retry, match="later") as raised:
            await guarded(Message("id", body))  # type: ignore[operator]
        assert raised.value.after == 700
    assert told == [lost]
