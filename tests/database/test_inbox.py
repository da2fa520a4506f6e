"""Exactly once, against a real PostgreSQL: each colour of processor commits its key and its effects together, or neither."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
import trio

from svc import Batch, Message, Retry, Transaction, processor, processors
from svc.database import Database, inbox
from svc.devstack.postgres import Postgres
from svc.processors import UNMARKED, NotCommitted, NotOurs, UnitOfWork, UnusableProcessor
from svc.settings import load
from tests.database.conftest import database

pytestmark = pytest.mark.xdist_group("postgres")

QUEUE = "us-east-1/000000000000/orders"
INSERT = "INSERT INTO effects VALUES (%s)"


@processor(exactly_once=True)
async def on_trio(message: Message, transaction: Transaction) -> None:
    await transaction.execute(INSERT, (message.id,))
    match message.body:
        case "fail":
            raise ZeroDivisionError
        case "quiet":
            with contextlib.suppress(psycopg.Error):
                await transaction.execute("nonsense")
        case "savepoint":
            with contextlib.suppress(psycopg.Error):
                async with transaction.savepoint():
                    await transaction.execute("nonsense")
        case "commit":
            await transaction.execute("COMMIT")
        case "COMMIT; BEGIN" | "ROLLBACK; BEGIN" as ends:
            await transaction.execute(ends)
            await transaction.execute(INSERT, ("afterwards",))
        case "sleep":
            await transaction.execute("SELECT pg_sleep(60)")
        case "wait":
            await trio.sleep(0.3)
        case "many":
            assert await transaction.executemany(INSERT, [("x",), ("y",)]) == 2
            assert await transaction.run(lambda raw: raw.execute("SELECT count(*) FROM effects").fetchone()[0]) >= 3
            found = await transaction.execute("SELECT * FROM effects WHERE id = %(id)s", {"id": message.id})
            assert (found.fetchone(), found.rowcount, [*found]) == ((message.id,), 1, found.fetchall())


@processor(exactly_once=True, runtime="asyncio")
async def on_asyncio(message: Message, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(INSERT, (message.id,))
    match message.body:
        case "fail":
            raise ZeroDivisionError
        case "quiet":
            with contextlib.suppress(psycopg.Error):
                await connection.execute("nonsense")
        case "savepoint":
            with contextlib.suppress(psycopg.Error):
                async with connection.transaction():
                    await connection.execute("nonsense")
        case "commit":
            await connection.execute("COMMIT")
        case "COMMIT; BEGIN" | "ROLLBACK; BEGIN" as ends:
            await connection.execute(ends.encode())
            await connection.execute(INSERT, ("afterwards",))
        case "method":
            await connection.commit()
        case "sleep":
            await connection.execute("SELECT pg_sleep(60)")


@processor(exactly_once=True)
def in_a_thread(message: Message, connection: psycopg.Connection[Any]) -> None:
    connection.execute(INSERT, (message.id,))
    match message.body:
        case "fail":
            raise ZeroDivisionError
        case "quiet":
            with contextlib.suppress(psycopg.Error):
                connection.execute("nonsense")
        case "savepoint":
            with contextlib.suppress(psycopg.Error), connection.transaction():
                connection.execute("nonsense")
        case "commit":
            connection.execute("COMMIT")
        case "COMMIT; BEGIN" | "ROLLBACK; BEGIN" as ends:
            connection.execute(ends.encode())
            connection.execute(INSERT, ("afterwards",))
        case "method":
            connection.commit()


COLOURS = pytest.mark.parametrize("function", [on_trio, on_asyncio, in_a_thread])


class Bench:
    """A unit of work, and what it has left in the database."""

    def __init__(self, opened: Database) -> None:
        self.database = opened
        self.inbox = inbox.PostgresInbox(opened, QUEUE)
        self.unit = UnitOfWork(self.inbox, patience=3)

    @contextlib.asynccontextmanager
    async def process(self, function: Callable[..., object]) -> AsyncIterator[Any]:
        async with processors.opened(function, None, threads=5, unit_of_work=self.unit) as process:
            yield process

    async def rows(self) -> tuple[list[str], list[str]]:
        """Effects and keys."""
        async with self.database.connection() as connection:
            effects = await connection.execute("SELECT id FROM effects ORDER BY 1")
            keys = await connection.execute("SELECT key FROM svc_inbox ORDER BY 1")
        return [id for (id,) in effects], [key for (key,) in keys]


@pytest.fixture
async def bench(opened: Database) -> Bench:
    await inbox.create(opened)
    await inbox.create(opened)  # again, as the command may be
    async with opened.connection() as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS effects (id text)")
        await connection.execute("TRUNCATE effects, svc_inbox")
    return Bench(opened)


@COLOURS
async def test_a_message_is_done_once(bench: Bench, function: Callable[..., object]) -> None:
    async with bench.process(function) as process:
        await process(Message("a", "go"))
        await process(Message("a", "go"))
        await process(Message("b", "savepoint"))
    assert await bench.rows() == (["a", "b"], ["a", "b"])
    assert bench.unit.duplicates == 1


@COLOURS
async def test_what_fails_leaves_neither_effect_nor_key(bench: Bench, function: Callable[..., object]) -> None:
    async with bench.process(function) as process:
        with pytest.raises(ZeroDivisionError):
            await process(Message("a", "fail"))
        with pytest.raises(NotCommitted, match="a statement failed, and the processor went on"):
            await process(Message("b", "quiet"))
        if function is not on_trio:
            with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
                await process(Message("c", "method"))
        assert await bench.rows() == ([], [])
        with pytest.raises(NotCommitted, match="has ended the transaction itself"):
            await process(Message("d", "commit"))
        await process(Message("d", "go"))
    assert await bench.rows() == (["d"], ["d"])  # with its effect its key was committed, too


@COLOURS
async def test_a_processor_that_ends_the_transaction_and_begins_another_is_found_out(
    bench: Bench, function: Callable[..., object]
) -> None:
    async with bench.process(function) as process:
        with pytest.raises(NotCommitted, match="has ended the transaction itself"):
            await process(Message("a", "ROLLBACK; BEGIN"))
        assert await bench.rows() == ([], [])  # an effect without its key would be there twice
        with pytest.raises(NotCommitted, match="has ended the transaction itself"):
            await process(Message("b", "COMMIT; BEGIN"))
        assert await bench.rows() == (["b"], ["b"])
        for _ in range(8):  # the connection is as good as new, and statements are prepared
            await process(Message("c", "go"))
            await process(Message(str(uuid.uuid4()), "go"))
    effects, keys = await bench.rows()
    assert effects == keys
    assert len(keys) == 10


@COLOURS
async def test_what_the_commit_itself_refuses_is_rolled_back(bench: Bench, function: Callable[..., object]) -> None:
    async with bench.database.connection() as connection:
        await connection.execute("CREATE TABLE once (id text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        await connection.execute("CREATE RULE twice AS ON INSERT TO effects DO INSERT INTO once VALUES ('x')")
    try:
        async with bench.process(function) as process:
            await process(Message("a", "go"))
            with pytest.raises(psycopg.errors.UniqueViolation):
                await process(Message("b", "go"))
        assert await bench.rows() == (["a"], ["a"])
    finally:
        async with bench.database.connection() as connection:
            await connection.execute("DROP RULE twice ON effects")
            await connection.execute("DROP TABLE once")


@COLOURS
async def test_a_lease_that_is_over_commits_nothing(bench: Bench, function: Callable[..., object]) -> None:
    bench.unit.is_ours = lambda message: message.body != "late"
    async with bench.process(function) as process:
        with pytest.raises(NotOurs):
            await process(Message("a", "late"))
        await process(Message("b", "go"))
    assert await bench.rows() == (["b"], ["b"])


@pytest.mark.parametrize("function", [on_trio, on_asyncio])
async def test_a_cancellation_interrupts_the_statement_and_rolls_back(
    bench: Bench, function: Callable[..., object]
) -> None:
    async with bench.process(function) as process:
        with trio.fail_after(10):
            with trio.move_on_after(0.2) as scope:
                await process(Message("a", "sleep"))
            assert scope.cancelled_caught
            await process(Message("a", "go"))
    assert await bench.rows() == (["a"], ["a"])


async def test_everything_that_a_transaction_offers(bench: Bench) -> None:
    async with bench.process(on_trio) as process:
        await process(Message("a", "many"))
    assert await bench.rows() == (["a", "x", "y"], ["a"])


async def test_a_key_in_a_transaction_that_has_not_ended_is_waited_for(bench: Bench) -> None:
    async with bench.process(on_trio) as process, trio.open_nursery() as nursery:
        nursery.start_soon(process, Message("a", "wait"))
        await trio.sleep(0.1)
        await process(Message("a", "fail"))  # is not called
    assert await bench.rows() == (["a"], ["a"])
    assert bench.unit.duplicates == 1


async def test_a_key_that_somebody_keeps_sends_the_message_back(bench: Bench, postgres: Postgres) -> None:
    bench.unit = UnitOfWork(bench.inbox, patience=0.5)
    with psycopg.connect(postgres.url) as other:
        other.execute("INSERT INTO svc_inbox (queue, key) VALUES ('us-east-1/000000000000/orders', 'a')")
        async with bench.process(on_trio) as process:
            with pytest.raises(Retry, match="another transaction holds the key 'a'") as caught:
                await process(Message("a", "go"))
            assert caught.value.after == 0.5
            other.rollback()
            await process(Message("a", "go"))
    assert await bench.rows() == (["a"], ["a"])


async def test_a_processor_may_wait_for_locks_as_long_as_it_likes(bench: Bench) -> None:
    """The bound on the wait for a key is gone when the processor is called."""

    @processor(exactly_once=True)
    async def look(message: Message, transaction: Transaction) -> None:
        seen.append((await transaction.execute("SHOW lock_timeout")).fetchone())

    seen: list[Any] = []
    async with bench.process(look) as process:
        await process(Message("a", "go"))
    assert seen == [("0",)]


async def test_a_connection_that_is_lost_before_the_commit_rolls_back(bench: Bench, postgres: Postgres) -> None:
    def end_them() -> None:
        with psycopg.connect(postgres.url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,))

    @processor(exactly_once=True)
    async def cut(message: Message, transaction: Transaction) -> None:
        await transaction.execute(INSERT, (message.id,))
        if message.body == "cut":
            await trio.to_thread.run_sync(end_them)

    async with bench.database.connection() as connection:
        name = (await connection.execute("SHOW application_name")).fetchone()[0]  # type: ignore[index]
    async with bench.process(cut) as process:
        with pytest.raises(psycopg.OperationalError):
            await process(Message("a", "cut"))
        await process(Message("a", "go"))
    assert await bench.rows() == (["a"], ["a"])


async def test_old_keys_go_in_small_steps_by_one_instance_at_a_time(
    bench: Bench, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.database.connection() as connection:
        await connection.execute(
            "INSERT INTO svc_inbox SELECT 'us-east-1/000000000000/orders', n::text, now() - make_interval(days => n)"
            " FROM generate_series(1, 30) n UNION SELECT 'other/queue', 'x', now() - interval '90 days'"
        )
    monkeypatch.setattr(inbox, "FORGET_ROWS", 4)
    pauses: list[float] = []

    async def look(seconds: float) -> None:
        pauses.append(seconds)
        if seconds == 7:
            raise ZeroDivisionError  # one round is enough

    with psycopg.connect(postgres.url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('svc_inbox us-east-1/000000000000/orders', 0))")
        with pytest.raises(ZeroDivisionError):
            await bench.inbox.forget_old(15 * 86_400, every=7, sleep=look)
        assert len((await bench.rows())[1]) == 31  # the other one is at it
    with pytest.raises(ZeroDivisionError):
        await bench.inbox.forget_old(15 * 86_400, every=7, sleep=look)
    _, keys = await bench.rows()
    assert sorted(keys) == sorted([*map(str, range(1, 15)), "x"])
    assert pauses == [7, *[inbox.FORGET_PAUSE] * 4, 7]


async def test_what_is_missing_is_told(postgres: Postgres, request: pytest.FixtureRequest) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as other:
        other.execute("DROP DATABASE IF EXISTS empty")
        other.execute("CREATE DATABASE empty")
        other.execute("DROP ROLE IF EXISTS reader")
        other.execute("CREATE ROLE reader LOGIN PASSWORD 'r'")
    url = postgres.url.rpartition("/")[0] + "/empty"
    made = database(url, request.node.name)
    await made.open(0, 3)
    try:
        with pytest.raises(
            UnusableProcessor, match=r"table svc_inbox in empty at .* is not there: run `svc database init`"
        ):
            await inbox.PostgresInbox(made, QUEUE).check()
        bench = Bench(made)
        async with bench.process(on_trio) as process:
            with pytest.raises(NotCommitted, match="run `svc database init`"):
                await process(Message("a", "go"))
        await inbox.create(made)
        await bench.inbox.check()
        async with made.connection() as connection:
            await connection.execute("GRANT SELECT ON svc_inbox TO reader")
            await connection.execute("SET LOCAL ROLE reader")
            assert (await connection.execute(inbox.CHECK)).fetchone() == (3, False)
    finally:
        await made.close("the test is over", 5)


@pytest.mark.parametrize(
    ("queue", "name"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "eu-west-1/123456789012/orders"),
        ("https://eu-west-1.queue.amazonaws.com/123456789012/orders", "eu-west-1/123456789012/orders"),
        ("https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/123456789012/orders", "eu-west-1/123456789012/orders"),
        ("arn:aws:sqs:eu-west-1:123456789012:orders", "eu-west-1/123456789012/orders"),
        ("https://sqs.us-west-2.amazonaws.com/123456789012/orders", "us-west-2/123456789012/orders"),
        ("http://elasticmq:9324/queue/orders", "us-east-1/queue/orders"),
    ],
)
def test_all_addresses_of_a_queue_are_one_queue_and_regions_are_kept_apart(queue: str, name: str) -> None:
    assert inbox.queue_name(load({"SQS_QUEUE_URL": queue})) == name


def test_a_queue_that_is_given_by_its_name_has_the_account_that_is_named() -> None:
    given = {"SQS_QUEUE_URL": "orders", "AWS_REGION": "eu-west-1", "AWS_ENDPOINT": ""}
    assert inbox.queue_name(load({**given, "SQS_QUEUE_OWNER": "123456789012"})) == "eu-west-1/123456789012/orders"
    assert inbox.queue_name(load(given)) == "eu-west-1/orders"


@processor(batch=10, exactly_once=True)
async def batch_on_trio(batch: Batch[Message], transaction: Transaction) -> None:
    for item in batch:
        if item.payload.body == "fail":
            item.fail("no")
        elif item.payload.body == "all":
            batch[0].done()
            raise ZeroDivisionError
        else:
            await transaction.execute(INSERT, (item.message.id,))


@processor(batch=10, exactly_once=True, runtime="asyncio")
async def batch_on_asyncio(batch: Batch[Message], connection: psycopg.AsyncConnection[Any]) -> None:
    for item in batch:
        if item.payload.body == "fail":
            item.fail("no")
        elif item.payload.body == "all":
            batch[0].done()
            raise ZeroDivisionError
        else:
            await connection.execute(INSERT, (item.message.id,))


@processor(batch=10, exactly_once=True)
def batch_in_a_thread(batch: Batch[Message], connection: psycopg.Connection[Any]) -> None:
    for item in batch:
        if item.payload.body == "fail":
            item.fail("no")
        elif item.payload.body == "all":
            batch[0].done()
            raise ZeroDivisionError
        else:
            connection.execute(INSERT, (item.message.id,))


@pytest.mark.parametrize("function", [batch_on_trio, batch_on_asyncio, batch_in_a_thread])
async def test_a_batch_is_one_transaction(bench: Bench, function: Callable[..., object]) -> None:
    def batch(*messages: tuple[str, str]) -> Batch[Any]:
        return Batch([item for id, body in messages if (item := process.read(Message(id, body))) is not None])

    async with bench.process(function) as process:
        await process.call(batch(("b", "go"), ("a", "go")))
        assert await bench.rows() == (["a", "b"], ["a", "b"])
        again = batch(("a", "go"), ("c", "go"), ("d", "fail"))
        await process.call(again)
        assert await bench.rows() == (["a", "b", "c"], ["a", "b", "c"])
        assert [again[0].mark, again[1].mark] == [None, UNMARKED]  # a duplicate is done
        assert isinstance(again[2].mark, RuntimeError)
        broken = batch(("e", "go"), ("f", "all"))
        with pytest.raises(ZeroDivisionError):
            await process.call(broken)
        assert broken[0].mark is UNMARKED  # it was called done, and is not
        await process.call(batch(("a", "go"), ("b", "go")))
    assert await bench.rows() == (["a", "b", "c"], ["a", "b", "c"])
    assert bench.unit.duplicates == 3


@pytest.mark.parametrize("function", [batch_on_trio, batch_on_asyncio, batch_in_a_thread])
async def test_a_message_that_is_twice_in_a_batch_is_a_duplicate(bench: Bench, function: Callable[..., object]) -> None:
    def twice(id: str, *bodies: str) -> Batch[Any]:
        return Batch([item for body in bodies if (item := process.read(Message(id, body))) is not None])

    async with bench.process(function) as process:
        await process.call(done := twice("a", "go", "go", "go"))
        assert [item.mark for item in done] == [UNMARKED, None, None]
        await process.call(failed := twice("b", "fail", "go"))
        assert [type(item.mark) for item in failed] == [RuntimeError, Retry]
        with pytest.raises(ZeroDivisionError):
            await process.call(raised := twice("c", "all", "go"))
        assert [item.mark for item in raised] == [UNMARKED, UNMARKED]
    assert await bench.rows() == (["a"], ["a"])
    assert bench.unit.duplicates == 2


async def test_a_batch_with_a_key_that_somebody_keeps_goes_back(bench: Bench, postgres: Postgres) -> None:
    bench.unit = UnitOfWork(bench.inbox, patience=0.5)
    with psycopg.connect(postgres.url) as other:
        other.execute("INSERT INTO svc_inbox (queue, key) VALUES ('us-east-1/000000000000/orders', 'a')")
        async with bench.process(batch_on_trio) as process:
            with pytest.raises(Retry, match="another transaction holds the key"):
                await process.call(Batch([process.read(Message("a", "go")), process.read(Message("b", "go"))]))
        other.rollback()
    assert await bench.rows() == ([], [])
