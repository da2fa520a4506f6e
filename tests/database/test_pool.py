"""Connections for each colour of processor, and their end, against a real PostgreSQL."""

import asyncio
import threading
import time
from functools import partial

import psycopg
import pytest
import trio

from svc import database as svc_database
from svc.database import Database, DatabaseAway
from svc.database.figures import Closed
from svc.devstack.postgres import Postgres
from tests.database.conftest import database


def seen(postgres: Postgres, name: str) -> list[tuple[str, str]]:
    """(state, statement) of each of our connections, as the server lists them."""
    with psycopg.connect(postgres.url, autocommit=True) as other:
        return other.execute(
            "SELECT state, query FROM pg_stat_activity WHERE application_name = %s", (name[:63],)
        ).fetchall()


async def test_a_connection_that_is_given_back_tells_whether_its_server_takes_writes(opened: Database) -> None:
    told = opened.read_only

    async def on_asyncio(statement: str) -> None:
        async with svc_database.asyncio_connection() as raw:
            await raw.execute(statement)

    def in_thread(statement: str) -> None:
        with svc_database.sync_connection() as raw:
            raw.execute(statement)

    async def both_on_asyncio() -> None:
        await on_asyncio("SET default_transaction_read_only = on")
        assert (told.seen, told.in_use()) == (True, True)
        pool = opened._async_pool
        assert pool is not None
        await pool.close()

    assert (told.seen, told.in_use()) == (False, False)
    async with opened.connection() as connection:
        await connection.execute("SET default_transaction_read_only = on")
    assert (told.seen, told.in_use()) == (True, True)
    await opened.ping()  # who has never wanted to write is content
    async with opened.connection() as connection:
        await connection.execute("SET default_transaction_read_only = off")
    assert (told.seen, told.in_use()) == (True, False)
    await opened.ping()
    assert told.seen is False
    with svc_database.in_use(opened):
        await trio.to_thread.run_sync(in_thread, "SET default_transaction_read_only = on")
        assert (told.seen, told.in_use()) == (True, True)
        await trio.to_thread.run_sync(in_thread, "SET default_transaction_read_only = off")
        await opened.ping()
        assert (told.seen, told.in_use()) == (False, False)
        await trio.to_thread.run_sync(asyncio.run, both_on_asyncio())
    assert (told.seen, told.in_use()) == (True, False)  # it is closed


async def test_each_colour_has_its_connection_which_commits_or_rolls_back(opened: Database) -> None:
    async with opened.connection() as connection:
        await connection.execute("CREATE TABLE done (colour text)")
        await connection.executemany("INSERT INTO done VALUES (%s)", [("trio",), ("trio",)])

    def plain(colour: str, *, fails: bool) -> None:
        with svc_database.sync_connection() as raw:
            raw.execute("INSERT INTO done VALUES (%s)", (colour,))
            if fails:
                raise ZeroDivisionError

    async def asynchronous(colour: str, *, fails: bool) -> None:
        async with svc_database.asyncio_connection() as raw:
            await raw.execute("INSERT INTO done VALUES (%s)", (colour,))
            if fails:
                raise ZeroDivisionError

    async def both() -> None:
        await asynchronous("asyncio", fails=False)
        with pytest.raises(ZeroDivisionError):
            await asynchronous("lost", fails=True)
        pool = opened._async_pool
        assert pool is not None
        await pool.close()

    with svc_database.in_use(opened):
        await trio.to_thread.run_sync(partial(plain, "thread", fails=False))
        with pytest.raises(ZeroDivisionError):
            await trio.to_thread.run_sync(partial(plain, "lost", fails=True))
        await trio.to_thread.run_sync(asyncio.run, both())
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with svc_database.connection() as connection, connection.transaction():
                await connection.execute("INSERT INTO done VALUES ('lost')")
                raise ZeroDivisionError
        async with svc_database.connection() as connection:
            with pytest.raises(psycopg.errors.UndefinedTable):
                async with connection.transaction():
                    await connection.execute("SELECT * FROM nothing")
            found = (await connection.execute("SELECT colour FROM done ORDER BY colour")).fetchall()
            await connection.execute("DROP TABLE done")
    assert [colour for (colour,) in found] == ["asyncio", "thread", "trio", "trio"]


async def test_a_cancelled_statement_has_ended_at_the_server(
    opened: Database, postgres: Postgres, request: pytest.FixtureRequest
) -> None:
    async with trio.open_nursery() as nursery:

        async def sleep() -> None:
            async with opened.connection() as connection:
                await connection.execute("SELECT pg_sleep(60)")

        nursery.start_soon(sleep)
        while not [query for state, query in seen(postgres, request.node.name) if "pg_sleep" in query]:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel(reason="the test asks for it")
    assert all(state == "idle" for state, _ in seen(postgres, request.node.name))
    async with opened.connection() as connection:  # the connection is usable
        assert (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_closed_it_has_no_connection_at_the_server_whoever_holds_one(
    opened: Database, postgres: Postgres, request: pytest.FixtureRequest
) -> None:
    raised: list[BaseException] = []
    in_hand = threading.Event()

    def stubborn() -> None:
        try:
            with opened.sync_connection() as raw:
                raw.execute("CREATE TABLE half (done int)")
                in_hand.set()
                raw.execute("SELECT pg_sleep(60)")
        except psycopg.Error as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, stubborn)
        await trio.to_thread.run_sync(in_hand.wait)
        async with opened.connection() as connection:
            await connection.execute("SELECT 1")
        assert len(seen(postgres, request.node.name)) == 2
        assert await opened.close("maintenance", 10) == Closed(connections=2, ended_in_use=1, unconfirmed=0)
        assert seen(postgres, request.node.name) == []
    assert isinstance(raised[0], psycopg.OperationalError)
    with psycopg.connect(postgres.url) as other:
        assert other.execute("SELECT to_regclass('half')").fetchone() == (None,)


async def test_a_frozen_server_holds_up_nobody_for_long(postgres: Postgres) -> None:
    opened = database(postgres.url, "frozen", DATABASE_TIMEOUT="1")
    await opened.open(0, 3)
    raised: list[BaseException] = []

    async def work() -> None:
        try:
            async with opened.connection() as connection:
                await connection.execute("SELECT pg_sleep(60)")
        except psycopg.Error as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        while not seen(postgres, "frozen"):
            await trio.sleep(0.01)
        async with opened.connection() as connection:
            await connection.execute("SELECT 1")
        postgres.freeze()
        try:
            with trio.move_on_after(0.01) as while_it_asks:
                async with opened.connection():
                    pass
            began = time.monotonic()
            await opened.close("maintenance", 1)
        finally:
            postgres.thaw()
    assert while_it_asks.cancelled_caught
    assert time.monotonic() - began < 7
    assert isinstance(raised[0], psycopg.OperationalError)


async def test_who_asks_while_it_is_away_is_told_why(postgres: Postgres) -> None:
    away = database("postgresql://ann:sesame@127.0.0.1:1/orders", "nobody", DATABASE_TIMEOUT="1")
    with pytest.raises(psycopg.OperationalError) as raised:
        await away.open(0, 1)
    assert "sesame" not in str(raised.value)
    assert away.place == "orders at 127.0.0.1:1"
    with pytest.raises(DatabaseAway, match="not connected yet"):
        async with away.connection(0.05):
            pass
    with pytest.raises(RuntimeError, match="async with connection"), away.sync_connection():
        pass
    loop = asyncio.new_event_loop()  # as if it had been closed since the loop's thread has looked
    with pytest.raises(DatabaseAway, match="not connected yet"):
        away._pool_on(loop)
    loop.close()
    with pytest.raises(RuntimeError, match="set DATABASE_URL"):
        svc_database.connection()


async def test_a_renewed_password_is_taken_up(postgres: Postgres, tmp_path) -> None:  # type: ignore[no-untyped-def]
    user, password = "renewed", tmp_path / "password"
    password.write_text("first\n")
    with psycopg.connect(postgres.url) as other:
        other.execute("CREATE ROLE renewed LOGIN PASSWORD 'first'")
    url = f"postgresql://{user}@127.0.0.1:{postgres.port}/postgres"
    made = database(url, "renewed", DATABASE_PASSWORD_FILE=str(password))
    await made.open(0, 1)
    await made.close("maintenance", 5)
    with psycopg.connect(postgres.url) as other:
        other.execute("ALTER ROLE renewed PASSWORD 'second'")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await made.open(0, 1)
    password.write_text("second")
    await made.open(0, 1)
    async with made.connection() as connection:
        assert (await connection.execute("SELECT current_user")).fetchone() == ("renewed",)
    await made.close("maintenance", 5)
    with psycopg.connect(postgres.url) as other:
        other.execute("DROP ROLE renewed")
