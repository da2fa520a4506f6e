"""Exactly once as an operator meets it: what a start says, `svc database init`, and a real instance that works."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trio
from click.testing import CliRunner

from svc import Message, Transaction, processor, processors
from svc.cli.main import cli
from svc.database import inbox
from svc.devstack.postgres import Postgres
from svc.devstack.stack import Moto
from svc.processors import UnusableProcessor
from tests.live import Instance, Stand, stand

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture
def own_database(postgres: Postgres) -> str:
    """The URL of a database that nobody else uses."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS live")
        connection.execute("CREATE DATABASE live")
    return postgres.url.rpartition("/")[0] + "/live"


@pytest.fixture
async def place(moto: Moto, queue_name: str, own_database: str, tmp_path: Path) -> AsyncIterator[Stand]:
    more = {
        "MESSAGE_PROCESSOR": "tests.exactly_once.processors:on_trio",
        "PROOF_FAILS": "0",
        "DATABASE_URL": own_database,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }
    async with stand(moto, "off", queue_name, "/unused", tmp_path / "record", **more) as held:
        yield held


async def test_from_a_start_without_the_table_to_duplicates_that_are_counted(place: Stand, own_database: str) -> None:
    early = Instance(place.environ)
    place.instances.append(early)
    assert await early.exit_code() == 2
    assert "exactly_once needs the table svc_inbox in live at" in "".join(early.output)
    assert "run `svc database init`" in "".join(early.output)

    for told in ("created", "it was there already"):
        made = await trio.to_thread.run_sync(lambda: CliRunner(env=place.environ).invoke(cli, ["database", "init"]))
        assert made.exit_code == 0, made.output
        assert made.output.startswith("table svc_inbox in live at")
        assert made.output.endswith(f": {told}\n")
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE effects (number bigint, pid int)")
        connection.execute("CREATE TABLE more_effects (number bigint, pid int)")
        await place.send(["1", "2", "1"])
        service = await place.start()
        await place.empty()
        figures = await service.statistics()
        assert (figures["messages_processed"], figures["messages_duplicate"]) == (3, 1)
        assert "svc_duplicates_total 1.0" in (await service.get("/metrics")).text
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        for table in ("effects", "more_effects"):
            assert connection.execute(f"SELECT number FROM {table} ORDER BY 1").fetchall() == [(1,), (2,)]


def test_the_sql_is_printed_for_those_who_migrate_by_hand() -> None:
    printed = CliRunner().invoke(cli, ["database", "init", "--print"])
    assert (printed.exit_code, printed.output) == (0, inbox.CREATE)


def test_a_database_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = CliRunner().invoke(cli, ["database", "init"])
    assert told.exit_code == 2
    assert "DATABASE_URL is not set" in told.output
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@127.0.0.1:1/orders")
    monkeypatch.setenv("DATABASE_TIMEOUT", "2")
    told = CliRunner().invoke(cli, ["database", "init"])
    assert told.exit_code == 1
    assert "orders at 127.0.0.1:1 cannot be reached" in told.output
    assert "secret" not in told.output


async def test_without_a_database_a_processor_that_needs_one_is_refused() -> None:
    @processor(exactly_once=True)
    async def handle(message: Message, transaction: Transaction) -> None: ...

    with pytest.raises(UnusableProcessor, match="says exactly_once, which needs a database: set DATABASE_URL"):
        async with processors.opened(handle, None, threads=1):
            pass
