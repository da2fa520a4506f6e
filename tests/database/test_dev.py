"""`svc dev --database`, and the fixture for users' tests."""

import os
import re
from pathlib import Path

import psycopg
import pytest
import trio

from svc.database import Database
from svc.database.example import write_order
from svc.processors import Message
from tests.cli.test_cli import dev

pytestmark = pytest.mark.xdist_group("postgres")


async def test_a_users_test_sees_what_the_processor_has_written(svc_database: Database) -> None:
    for _ in range(2):  # delivered twice
        await write_order(Message("id-1", "three apples"))
    async with svc_database.connection() as connection:
        assert (await connection.execute("SELECT id, body FROM orders")).fetchall() == [("id-1", "three apples")]


@pytest.mark.slow
async def test_svc_dev_with_a_database_writes_each_message_into_it(tmp_path: Path) -> None:
    async with dev({**os.environ}, tmp_path, arguments=("--database",)) as running:
        with trio.fail_after(20):
            while (await running.statistics())["messages_processed"] < 3:
                await trio.sleep(0.05)
        found = re.search(r"psql '(\S+)'", running.output)
        assert found
        with psycopg.connect(found[1]) as other:
            assert other.execute("SELECT count(*) FROM orders").fetchone() == (3,)
            assert other.execute("SELECT count(*) FROM svc_inbox").fetchone() == (0,)  # for exactly_once
