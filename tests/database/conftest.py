"""A real PostgreSQL from PyPI, one for all tests of this folder."""

from collections.abc import AsyncIterator, Iterator

import pytest

from svc.database import Database
from svc.devstack.postgres import Postgres
from svc.settings import load


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres("-c", "max_connections=20") as server:
        yield server


@pytest.fixture
async def opened(postgres: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A database with pools of 0 to 3 connections; its application name is the test's."""
    made = database(postgres.url, request.node.name)
    await made.open(0, 3)
    yield made
    await made.close("the test is over", 5)


def database(url: str, name: str, **more: str) -> Database:
    held = {
        "DATABASE_URL": url,
        "DATABASE_TIMEOUT": "5",
        "DATABASE_MIN_CONNECTIONS": "0",
        "DATABASE_MAX_CONNECTIONS": "3",
    }
    return Database(load(held | more), name)
