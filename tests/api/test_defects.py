"""A request that fails by a defect of ours: 500 in the API's own form, one traceback in the log, counted; the service goes on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
from structlog.testing import capture_logs

from svc.api import app as api
from svc.api.feed import Feed
from svc.core import Core
from svc.defects import PartFailed
from svc.settings import load
from svc.testing import Fault, SimulatedQueue, SimulatedSwitch


class Defect(Exception):
    """Nobody expects it."""


def broken(*_: object, **__: object) -> Any:
    raise Defect("found by nobody")


async def processed(message: object) -> None:
    pass


@asynccontextmanager
async def running(queue: SimulatedQueue | None = None) -> AsyncIterator[tuple[Core, Any, Feed]]:
    settings = load({"SQS_QUEUE_URL": "http://queue.example/000000000000/q"})
    core = Core(settings, queue or SimulatedQueue(), processed, SimulatedSwitch().watcher)
    feed = Feed(core)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.sleep(1)
        yield core, api.make(core, feed=feed).test_client(), feed
        nursery.cancel_scope.cancel()


def told(lines: list[Any]) -> list[tuple[str, str | None]]:
    return [(line["part"], line.get("request")) for line in lines if line["log_level"] == "error"]


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        broken()


@pytest.mark.parametrize("breaks", [broken, in_a_nursery])
async def test_a_request_that_breaks_has_an_answer_and_is_counted(autojump_clock, breaks: Callable[..., Any]) -> None:
    async with running() as (core, client, _):
        with capture_logs() as lines:
            core.queue.attributes = breaks  # type: ignore[method-assign]
            answer = await client.get("/queue/info")
        assert answer.status_code == 500
        body = await answer.get_json()
        assert (body["code"], body["message"]) == (500, "the service failed on this request; its log says why")
        assert told(lines) == [("request", "GET /queue/info")]
        assert "Defect" in repr(lines[-1]["exc_info"])
        text = (await (await client.get("/metrics")).get_data()).decode()
        assert 'svc_internal_errors_total{part="request"} 1.0' in text
        assert 'svc_internal_errors_total{part="receive"} 0.0' in text
        assert (await client.get("/health/live")).status_code == 200


async def test_a_handler_whose_health_breaks_is_not_well_and_no_500(autojump_clock) -> None:
    async with running() as (core, client, _):
        core.gate.health = broken  # type: ignore[method-assign]
        with capture_logs() as lines:
            answer = await client.get("/health")
        body = await answer.get_json()
        assert (answer.status_code, body["status"]) == (503, "unhealthy")
        assert body["handlers"] == {"http": False, "sqs": True}
        assert told(lines) == [("handler", None)]


async def test_a_probe_that_breaks_is_a_queue_that_does_not_work(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("defect", "attributes", start=2)])
    async with running(queue) as (_, client, _):
        await trio.sleep(5)
        with capture_logs() as lines:
            answer = await client.get("/health")
        assert answer.status_code == 503
        assert (await answer.get_json())["handlers"] == {"http": True, "sqs": False}
        assert told(lines) == [("probe", None)]


async def test_a_look_of_the_page_that_breaks_is_one_look(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("defect", "attributes", start=2, end=15)])
    async with running(queue) as (core, _, feed):
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run, stop)
            await trio.sleep(3)
            watcher = feed.watch()
            assert watcher is not None
            with capture_logs() as lines:
                await trio.sleep(1.5)
                assert "internal error (SimulatedDefect)" in str(await watcher.next())
                state, core.manager.state = core.manager.state, broken  # type: ignore[method-assign]
                await trio.sleep(2)
                core.manager.state = state  # type: ignore[method-assign]
                await trio.sleep(20)
                assert "internal error" not in str(await watcher.next())
            assert {part for part, _ in told(lines)} == {"page"}
            assert len(told(lines)) == core.defects.counts["page"] >= 3
            stop.set()


async def test_a_server_that_crashes_ends_as_a_failed_part() -> None:
    settings = load({"SQS_QUEUE_URL": "http://queue.example/000000000000/q", "HTTP_PORT": "0"})
    core = Core(settings, SimulatedQueue(), processed, SimulatedSwitch().watcher)
    app, stop = api.make(core), trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        async with trio.open_nursery() as inside:

            async def crash() -> None:
                await trio.lowlevel.checkpoint()
                raise Defect("found by nobody")

            await inside.start(api.serve, app, settings, stop)
            task_status.started()
            inside.start_soon(crash)

    with capture_logs() as lines, pytest.RaisesGroup(PartFailed, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: core.defects.guard("api", serve, task_status=task_status))
    assert [line["part"] for line in lines if line["log_level"] == "critical"] == ["api"]
