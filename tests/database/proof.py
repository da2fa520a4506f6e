"""The proof that a fleet in maintenance has let go of the database: real instances under load, `svc maintenance on --wait`, and
at the very moment at which that ends with 0 the server is asked whether it has a connection of theirs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trio

from svc.devstack.postgres import Postgres
from svc.devstack.stack import Etcd, Moto
from tests import preloaded
from tests.database.orders import COLOURS
from tests.live import Stand, stand

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'fleet-%'"


@dataclass(frozen=True)
class Round:
    """Of one maintenance."""

    before: int
    """Connections of the fleet when it was asked for."""
    code: int
    """Of `svc maintenance on --wait`."""
    seconds: float
    """That it took."""
    after: int
    """Connections of the fleet when it had ended."""
    effects: int
    """Rows by then."""
    back: float
    """Seconds from `off` until there were more rows."""

    @property
    def holds(self) -> bool:
        return self.code == 0 and self.after == 0 and self.before > 0


async def rounds(
    moto: Moto, etcd: Etcd, postgres: Postgres, name: str, folder: Path, count: int, *, instances: int
) -> list[Round]:
    """So many rounds with so many instances, of each colour in turn."""
    with psycopg.connect(postgres.url, autocommit=True) as look:
        look.execute("DROP TABLE IF EXISTS effects")
        look.execute("CREATE TABLE effects (id text)")
        async with (
            stand(
                moto, etcd.endpoint, name, f"/{name}/maintenance", folder / "record", DATABASE_URL=postgres.url
            ) as place,
            trio.open_nursery() as nursery,
        ):
            for number in range(instances):
                colour = COLOURS[number % len(COLOURS)]
                instance = await place.start(
                    MESSAGE_PROCESSOR=f"tests.database.orders:{colour}",
                    DATABASE_APPLICATION_NAME=f"fleet-{number}-{colour}",
                    DATABASE_MAX_CONNECTIONS="4",
                    MAX_CONCURRENCY="8",
                )
                await instance.ready()
            nursery.start_soon(_load, place)
            found = []
            for _ in range(count):
                await _grows(look)
                found.append(await _round(look, place))
            nursery.cancel_scope.cancel(reason="the rounds are over")
    return found


async def _load(place: Stand) -> None:
    number = 0
    while True:
        for _ in range(10):
            await place.queue.send(f"order {number}")
            number += 1
        await trio.sleep(0.2)


async def _round(look: "psycopg.Connection[tuple[int]]", place: Stand) -> Round:
    before, began = _count(look, OURS), trio.current_time()
    on = await _svc(place, "maintenance", "on", "--wait", "--timeout", "60")
    after, seconds = _count(look, OURS), trio.current_time() - began
    effects = _count(look, "SELECT count(*) FROM effects")
    began = trio.current_time()
    off = await _svc(place, "maintenance", "off")
    assert off == 0
    await _grows(look)
    return Round(before, on, round(seconds, 2), after, effects, round(trio.current_time() - began, 2))


async def _svc(place: Stand, *arguments: str) -> int:
    environ = {**preloaded.os.environ, **place.environ}
    done = await trio.run_process(
        [*preloaded.SVC, *arguments], env=environ, check=False, capture_stdout=True, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(done.stdout.decode())
    return done.returncode


async def _grows(look: "psycopg.Connection[tuple[int]]") -> None:
    """Wait until there are more rows."""
    rows = _count(look, "SELECT count(*) FROM effects")
    with trio.fail_after(60):
        while _count(look, "SELECT count(*) FROM effects") <= rows:
            await trio.sleep(0.02)


def _count(look: "psycopg.Connection[tuple[int]]", query: str) -> int:
    (found,) = look.execute(query).fetchone() or (0,)
    return found
