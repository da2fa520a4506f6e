"""Each port in real processes, on moto, etcd and a real PostgreSQL: drained, out of time, stopped, killed, and past its lease."""

import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from svc.devstack.postgres import Postgres
from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher
from svc.settings import load
from svc.testing import sns_body
from tests.live import Instance, Stand, stand

pytestmark = pytest.mark.slow

PORTS: dict[str, Callable[[object], str]] = {"worker": json.dumps, "fanout": sns_body, "bulk": json.dumps}
"""By the module's name: how a payload is sent."""

LEASE = 4
"""Seconds."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE effects (id int, message text)")
        yield server


@dataclass
class Port:
    """One of them, its queue and what it has written."""

    name: str
    place: Stand
    url: str

    async def send(self, ids: range, **more: float) -> None:
        await self.place.send([PORTS[self.name]({"id": number, **more}) for number in ids])

    async def start(self, **environ: str) -> Instance:
        return await self.place.start(
            MESSAGE_PROCESSOR=f"tests.ports.{self.name}:handle", EFFECTS=self.url, MAX_CONCURRENCY="500",
            SQS_VISIBILITY_TIMEOUT_SECONDS=str(LEASE), **environ,
        )  # fmt: skip

    def effects(self) -> list[int]:
        with psycopg.connect(self.url) as connection:
            return [number for (number,) in connection.execute("SELECT id FROM effects ORDER BY id")]

    def at_work(self) -> bool:
        """Something is being written, and not committed."""
        with psycopg.connect(self.url) as connection:
            asked = "SELECT count(*) FROM pg_locks JOIN pg_class ON relation = pg_class.oid WHERE relname = 'effects'"
            (found,) = connection.execute(asked).fetchone() or (0,)
        return bool(found)

    async def switch(self, value: str) -> None:
        settings = load(self.place.environ)
        await watcher.write(settings, settings.maintenance_key, value.encode())


@pytest.fixture(params=PORTS)
async def port(
    request: pytest.FixtureRequest,
    moto: Moto,
    etcd: Etcd,
    postgres: Postgres,
    queue_name: str,
    key_prefix: str,
    tmp_path: Path,
) -> AsyncIterator[Port]:
    with psycopg.connect(postgres.url) as connection:
        connection.execute("TRUNCATE effects")
    async with stand(moto, etcd.endpoint, queue_name, key_prefix + "m", tmp_path / "record") as place:
        yield Port(request.param, place, postgres.url)


async def test_a_drain_finishes_what_has_begun_and_off_goes_on(port: Port) -> None:
    await port.send(range(30), seconds=0.3)
    service = await port.start()
    await port.place.until(port.at_work)
    await port.switch("on")
    report = await service.reaches("maintenance")
    assert report["drain"]["error"] is None
    done = len(port.effects())
    assert await port.place.depth() == (30 - done, 0)
    await port.switch("off")
    await port.place.empty()
    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert port.effects() == list(range(30))


async def test_what_does_not_end_is_cut_off_at_the_deadline_and_given_back(port: Port) -> None:
    await port.send(range(3), seconds=600)
    service = await port.start(DRAIN_TIMEOUT="2s")
    await port.place.until(port.at_work)
    service.signal(signal.SIGTERM)
    assert await service.exit_code(within=20) == 3
    assert await port.place.depth() == (3, 0)
    assert port.effects() == []  # rolled back


async def test_what_a_kill_leaves_is_done_by_the_next(port: Port) -> None:
    await port.send(range(20), seconds=0.5)
    service = await port.start()
    await port.place.until(port.at_work)
    service.signal(signal.SIGKILL)
    await service.exit_code()
    again = await port.start()
    await port.place.empty()
    again.signal(signal.SIGTERM)
    assert await again.exit_code() == 0
    assert set(port.effects()) == set(range(20))


async def test_a_lease_that_was_slept_through_is_lost_and_another_does_the_work(port: Port) -> None:
    await port.send(range(1), seconds=2)
    frozen = await port.start()
    await port.place.until(port.at_work)
    frozen.signal(signal.SIGSTOP)
    try:
        other = await port.start()
        await port.place.until(lambda: port.effects() == [0])
        await port.place.empty()
    finally:
        frozen.signal(signal.SIGCONT)
    await frozen.figure("messages_lost", 1)
    for service in (frozen, other):
        service.signal(signal.SIGTERM)
        assert await service.exit_code() in (0, 3)  # the thread of the one that slept may have to be left behind
    assert await port.place.depth() == (0, 0)
    assert set(port.effects()) == {0}
