"""Every endpoint in every phase, in memory and virtual time: the core that production runs, Quart's test client, and a
`SimulatedQueue` and `SimulatedSwitch` for the world."""

import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
import quart.typing
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from svc import Message, Reject, Retry, __version__
from svc.api import app as api
from svc.api import openapi_examples as examples
from svc.api import request_bodies, routes_messages
from svc.api.feed import Feed
from svc.api.openapi import DESCRIPTION
from svc.core import Core
from svc.processors import Process
from svc.settings import load
from svc.testing import Call, Fault, Outage, SimulatedQueue, SimulatedSwitch
from tests.described import Answered, hold_to_description

QUEUE_URL = "http://queue.example/000000000000/q"
TOKEN = "a-long-secret"
RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
SEND = {"message": "hello"}


@dataclass
class Api:
    """The API of a running core, and what stands around it."""

    core: Core
    client: quart.typing.TestClientProtocol
    queue: SimulatedQueue
    switch: SimulatedSwitch
    feed: Feed
    met: set[Answered]
    """The answers that were given: method, path, status."""

    async def get(self, path: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        answer = await self.client.get(path)
        return answer.status_code, await answer.get_json(), answer.headers

    async def send(self, body: object = SEND, **headers: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.client.post("/messages/send", data=data, headers=kind)
        return answer.status_code, await answer.get_json(), answer.headers


async def nothing(message: Message) -> None:
    """Processes at once."""


async def for_ever(message: Message) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def running(
    process: Process = nothing,
    *,
    queue: SimulatedQueue | None = None,
    switch: SimulatedSwitch | None = None,
    **variables: str,
) -> AsyncIterator[Api]:
    settings = load({"SQS_QUEUE_URL": QUEUE_URL, "DRAIN_TIMEOUT": "10s", "SQS_WAIT_TIME_SECONDS": "5", **variables})
    held, key = queue or SimulatedQueue(), switch or SimulatedSwitch()
    core = Core(settings, held, process, key.watcher)
    feed, met = Feed(core), set[Answered]()
    app = api.make(core, feed=feed)
    hold_to_description(app, met.add)
    client = app.test_client()
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.testing.wait_all_tasks_blocked()
        yield Api(core, client, held, key, feed, met)
        nursery.cancel_scope.cancel()


# Each leads from a fresh core to the phase that it is named after.


async def starting(api: Api) -> None:
    pass  # the switch is out of reach


async def run(api: Api) -> None:
    api.queue.put("first")
    await trio.sleep(6)


async def drain(api: Api) -> None:
    api.queue.put("in flight for ever")
    await trio.sleep(1)
    api.switch.set("true")
    await trio.sleep(1)


async def maintain(api: Api) -> None:
    await trio.sleep(1)
    api.switch.set("true")
    await trio.sleep(7)


async def stop(api: Api) -> None:
    api.queue.put("in flight for ever")
    await trio.sleep(1)
    api.core.manager.stop()
    await trio.sleep(1)


@dataclass(frozen=True)
class Expected:
    reach: Callable[[Api], Awaitable[None]]
    process: Process
    phase: str
    status: str
    health: int
    maintenance: bool


PHASES = {
    "starting": Expected(starting, nothing, "starting", "starting", 503, False),
    "running": Expected(run, nothing, "running", "healthy", 200, False),
    "draining": Expected(drain, for_ever, "draining", "draining", 200, True),
    "maintenance": Expected(maintain, nothing, "maintenance", "maintenance", 200, True),
    "stopping": Expected(stop, for_ever, "stopping", "draining", 200, False),
}


@asynccontextmanager
async def in_phase(name: str, **variables: str) -> AsyncIterator[tuple[Api, Expected]]:
    expected = PHASES[name]
    switch = SimulatedSwitch(outages=[Outage(0, 1e9)] if name == "starting" else ())
    async with running(expected.process, switch=switch, **variables) as held:
        await expected.reach(held)
        assert held.core.manager.state().phase.value == expected.phase
        yield held, expected


def assert_error(status: int, body: dict[str, Any], *expected: int) -> str:
    """The one form of errors; returns the message."""
    assert status in expected, body
    reasons = {
        400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
        408: "Request Timeout", 413: "Content Too Large", 415: "Unsupported Media Type", 502: "Bad Gateway",
        503: "Service Unavailable", 504: "Gateway Timeout",
    }  # fmt: skip
    assert body["error"] == reasons[status]
    assert body["code"] == status
    assert isinstance(body["message"], str)
    assert len(body["message"]) > 10
    return str(body["message"])


def dates_in(body: object) -> dict[str, str]:
    """Every field whose name says that it is a date, at any depth."""
    names = {"timestamp", "since", "began", "ended", "deadline", "last_message_time", "queue_error_since"}
    found: dict[str, str] = {}
    if isinstance(body, dict):
        for name, value in body.items():
            if name in names and value is not None:
                found[name] = value
            found |= dates_in(value)
    elif isinstance(body, list):
        for value in body:
            found |= dates_in(value)
    return found


def assert_adds_up(sqs: Mapping[str, Any]) -> None:
    ends = ("processed", "failed", "released", "rejected", "lost", "in_flight")
    assert sqs["messages_received"] == sum(sqs[f"messages_{end}"] for end in ends)


# -- each endpoint in each phase --


@pytest.mark.parametrize("phase", PHASES)
async def test_health(autojump_clock: MockClock, phase: str) -> None:
    async with in_phase(phase) as (held, expected):
        status, body, headers = await held.get("/health")
        assert status == expected.health
        assert headers["Content-Type"] == "application/json"
        assert body["status"] == expected.status
        assert body["maintenance"] is expected.maintenance
        assert body["handlers"] == {"http": True, "sqs": True}
        assert body["etcd"]["connected"] is (phase != "starting")
        assert body["etcd"]["key"] == "/maintenance/sqs-service"
        assert body["queue_url"] == QUEUE_URL
        assert body["queue_error"] is None
        assert (body["drain"] is not None) == (phase in ("draining", "maintenance", "stopping"))
        schema = DESCRIPTION["paths"]["/health"]["get"]["responses"][str(status)]["content"]["application/json"]
        jsonschema.validate(body, schema["schema"])


@pytest.mark.parametrize("phase", PHASES)
async def test_probes_for_orchestrators(autojump_clock: MockClock, phase: str) -> None:
    async with in_phase(phase) as (held, expected):
        status, body, _ = await held.get("/health/live")
        assert (status, body["status"]) == (200, "live")
        status, body, _ = await held.get("/health/ready")
        if phase == "running":
            assert (status, body["status"]) == (200, "ready")
        else:
            assert expected.phase in assert_error(status, body, 503)


@pytest.mark.parametrize("phase", PHASES)
async def test_ready_in_maintenance_where_that_is_asked_for(autojump_clock: MockClock, phase: str) -> None:
    async with in_phase(phase, READY_IN_MAINTENANCE="true") as (held, _):
        status, body, _ = await held.get("/health/ready")
        ready = {"running": "ready", "draining": "draining", "maintenance": "maintenance"}
        assert (status, body.get("status")) == ((200, ready[phase]) if phase in ready else (503, None))
        # A message is taken in neither, and what is gated stays closed.
        assert (await held.get("/messages/stats"))[0] == (200 if phase == "running" else 503)


@pytest.mark.parametrize("phase", PHASES)
async def test_metrics_answer_in_every_phase(autojump_clock: MockClock, phase: str) -> None:
    async with in_phase(phase) as (held, expected):
        answer = await held.client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(await answer.get_data(True))}
        assert {sample.labels["phase"]: sample.value for sample in families["svc_phase"].samples} == {
            name: float(name == expected.phase)
            for name in ("starting", "running", "draining", "maintenance", "stopping", "stopped")
        }


@pytest.mark.parametrize("path", ["/messages/stats", "/queue/info", "/openapi.json", "/messages/send"])
@pytest.mark.parametrize("phase", PHASES)
async def test_gated_endpoints(autojump_clock: MockClock, phase: str, path: str) -> None:
    async with in_phase(phase) as (held, expected):
        status, body, headers = await (held.send() if path == "/messages/send" else held.get(path))
        if phase == "running":
            assert status == 200
            assert "Retry-After" not in headers
            return
        message = assert_error(status, body, 503)
        assert int(headers["Retry-After"]) == (5 if phase == "starting" else 30)
        why = {"starting": "starting", "stopping": "stopping"}.get(phase, "in maintenance")
        assert f"the service is {why}" in message
        if path == "/messages/stats":
            assert body["sqs"]["handler_state"] == expected.phase
            assert body["sqs"]["in_maintenance"] is expected.maintenance
            assert_adds_up(body["sqs"])
        assert held.queue.calls["send"] == 0


async def test_stats_shows_the_in_flight_count_fall_during_a_drain(autojump_clock: MockClock) -> None:
    async def some_seconds(message: Message) -> None:
        await trio.sleep(float(message.body))

    async with running(some_seconds) as held:
        for seconds in ("2", "4", "6"):
            held.queue.put(seconds)
        await trio.sleep(1)
        held.switch.set("true")
        await trio.testing.wait_all_tasks_blocked()
        seen = []
        for _ in range(6):
            status, body, _ = await held.get("/messages/stats")
            assert status == 503
            assert_adds_up(body["sqs"])
            seen.append(body["sqs"]["messages_in_flight"])
            await trio.sleep(1)
        # At 1, 2, … 6 s; each ends at its second, and a settlement in a drain waits for no company.
        assert seen[0] == 3
        assert sorted(seen, reverse=True) == seen
        assert seen[-1] <= 1


async def test_before_the_first_receive_the_service_is_healthy_and_not_ready(autojump_clock: MockClock) -> None:
    async with running() as held:
        assert (await held.get("/health"))[0] == 200
        status, body, _ = await held.get("/health/ready")
        assert "no receive has been answered" in assert_error(status, body, 503)
        await trio.sleep(5)  # the length of the first long poll
        assert (await held.get("/health/ready"))[0] == 200


# -- what the bodies hold --


@pytest.mark.expects_errors
async def test_stats_body(autojump_clock: MockClock) -> None:
    async def by_body(message: Message) -> None:
        match message.body:
            case "fail":
                raise ValueError("this one is broken")
            case "retry":
                raise Retry(after=60)
            case "reject":
                raise Reject("never")
            case "stay":
                await trio.sleep_forever()

    async with running(by_body, queue=SimulatedQueue(), RETRY_BACKOFF="off", REJECT_WITHOUT_DLQ="delete") as held:
        for body in ("fine", "fine", "fail", "retry", "reject", "stay"):
            held.queue.put(body)
        await trio.sleep(6)
        status, body_, _ = await held.get("/messages/stats")
    assert status == 200
    assert set(body_) == {"maintenance", "timestamp", "handlers", "sqs"}
    assert body_["maintenance"] is False
    assert body_["handlers"] == ["http", "sqs"]
    sqs = body_["sqs"]
    assert {name: sqs[f"messages_{name}"] for name in ("received", "processed", "failed", "in_flight")} == {
        "received": 6, "processed": 2, "failed": 1, "in_flight": 1,
    }  # fmt: skip
    assert (sqs["messages_released"], sqs["messages_rejected"], sqs["messages_lost"]) == (1, 1, 0)
    assert_adds_up(sqs)
    assert sqs["handler_name"] == "sqs"
    assert sqs["handler_state"] == "running"
    assert sqs["queue_url"] == QUEUE_URL
    assert sqs["in_maintenance"] is False
    assert sqs["drain_timeout"] == 10
    errors = {(error["message_id"], error["error"]) for error in sqs["recent_errors"]}
    assert errors == {("simulated-3", "ValueError: this one is broken"), ("simulated-5", "rejected: never")}


@pytest.mark.expects_errors
async def test_only_the_last_ten_errors_are_shown_and_a_long_one_is_cut(autojump_clock: MockClock) -> None:
    async def fail(message: Message) -> None:
        raise ValueError(message.body + "!" * 5000)

    async with running(fail, MAX_CONCURRENCY="1", RETRY_BACKOFF="off") as held:
        for number in range(12):
            held.queue.put(str(number))
        await trio.sleep(10)
        _, body, _ = await held.get("/messages/stats")
    shown = [error["error"] for error in body["sqs"]["recent_errors"]]
    assert [text.split("!")[0] for text in shown] == [f"ValueError: {number}" for number in range(2, 12)]
    assert all(len(text) <= 1000 for text in shown)


async def test_counters_add_up_at_every_moment_and_metrics_agree(autojump_clock: MockClock) -> None:
    async def half_second(message: Message) -> None:
        await trio.sleep(0.5)
        if message.body == "retry":
            raise Retry(after=1)

    async with running(half_second, MAX_CONCURRENCY="4") as held:
        for number in range(40):
            held.queue.put("retry" if number % 5 == 0 else "fine")
        for _ in range(60):
            _, body, _ = await held.get("/messages/stats")
            assert_adds_up(body["sqs"])
            assert body["sqs"]["messages_in_flight"] <= 4
            text = await (await held.client.get("/metrics")).get_data(True)
            samples = {
                (sample.name, sample.labels.get("outcome")): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            outcomes = ("processed", "failed", "released", "rejected", "lost")
            ended = sum(samples["svc_messages_total", outcome] for outcome in outcomes)
            assert samples["svc_messages_received_total", None] == ended + samples["svc_messages_in_flight", None]
            await trio.sleep(0.13)
        assert body["sqs"]["messages_processed"] >= 30
        assert body["sqs"]["messages_released"] >= 8
        for outcome in outcomes:  # a moment later they may only have grown
            assert samples["svc_messages_total", outcome] >= body["sqs"][f"messages_{outcome}"] > -1


@pytest.mark.expects_errors
async def test_every_date_is_rfc_3339_in_utc(autojump_clock: MockClock) -> None:
    async def fail(message: Message) -> None:
        raise ValueError

    faults: list[Fault] = []
    async with running(fail, queue=SimulatedQueue(faults=faults)) as held:
        held.queue.put("x")
        await trio.sleep(1)
        faults.append(Fault("error", "receive"))
        await trio.sleep(6)
        held.switch.set("true")
        await trio.sleep(8)
        bodies = [(await held.get(path))[1] for path in ("/health", "/health/live", "/messages/stats")]
    dates = dates_in(bodies)
    assert set(dates) == {
        "timestamp", "since", "began", "ended", "deadline", "last_message_time", "queue_error_since"
    }  # fmt: skip
    for name, text in dates.items():
        assert RFC_3339_UTC.fullmatch(text), (name, text)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(bodies[1]["timestamp"])).total_seconds()) < 60
    # The drain began 8 s ago, by Trio's clock.
    began = datetime.fromisoformat(bodies[0]["drain"]["began"])
    asked = datetime.fromisoformat(bodies[0]["timestamp"])
    assert (asked - began).total_seconds() == pytest.approx(8, abs=0.5)


async def test_send_hands_the_message_to_the_queue(autojump_clock: MockClock) -> None:
    async with running(for_ever) as held:
        whole = {"message": "text\n\té", "attributes": {"kind": "a", "number": 3, "part": 0.5}, "delay_seconds": 7}
        status, body, _ = await held.send(whole)
        assert status == 200
        assert set(body) == {"message_id", "message", "queue_url", "timestamp"}
        assert body["message"] == "text\n\té"
        assert body["queue_url"] == QUEUE_URL
        assert held.queue.delayed() == [body["message_id"]]
        assert held.queue.attributes_of(body["message_id"]) == {"kind": "a", "number": "3", "part": "0.5"}
        await trio.sleep(6.9)
        assert held.queue.in_flight() == []
        await trio.sleep(0.2)
        assert held.queue.in_flight() == [body["message_id"]]


async def test_send_to_a_fifo_queue(autojump_clock: MockClock) -> None:
    async with running(for_ever, queue=SimulatedQueue("q.fifo", fifo=True), SQS_QUEUE_URL=QUEUE_URL + ".fifo") as held:
        status, body, _ = await held.send(SEND | {"group_id": "g", "deduplication_id": "1"})
        assert status == 200
        again = await held.send(SEND | {"group_id": "g", "deduplication_id": "1"})
        assert again[1]["message_id"] == body["message_id"]
        assert held.queue.bodies == ["hello"]
        status, body, _ = await held.send(SEND)
        assert_error(status, body, 400)


async def test_queue_info_shows_every_attribute(autojump_clock: MockClock) -> None:
    async with running() as held:
        await run(held)
        status, body, _ = await held.get("/queue/info")
        assert status == 200
        told = {"dead_letter_queue", "dead_letter_queue_error"}
        assert set(body) == {"queue_url", "attributes", "timestamp", *told}
        assert body["attributes"] == dict(await held.queue.attributes())
        assert "ApproximateNumberOfMessages" in body["attributes"]


async def test_queue_info_shows_the_dead_letter_queue_or_why_not(autojump_clock: MockClock) -> None:
    dead = SimulatedQueue("dead")
    dead.put("a dead letter")
    for queue, depth, why in (
        (SimulatedQueue(), None, "no redrive policy"),
        (SimulatedQueue(dead_letters=dead, max_receive_count=3), "1", ""),
        (
            SimulatedQueue(dead_letters=dead, max_receive_count=3, faults=[Fault("denied", "attributes", nth=3)]),
            None,
            "denied",
        ),
    ):
        async with running(queue=queue) as held:
            await run(held)
            status, body, _ = await held.get("/queue/info")
            shown = body["dead_letter_queue"]
            assert status == 200
            assert (shown and shown["attributes"]["ApproximateNumberOfMessages"]) == depth
            assert why in (body["dead_letter_queue_error"] or "").lower()
            assert (body["dead_letter_queue_error"] is None) == (depth is not None)


async def test_version_is_told(autojump_clock: MockClock) -> None:
    async with running() as held:
        await run(held)
        assert (await held.get("/openapi.json"))[1]["info"]["version"] == __version__
        assert f'version="{__version__}"' in await (await held.client.get("/metrics")).get_data(True)


# -- maintenance --


async def test_reason_by_and_until_are_told(autojump_clock: MockClock) -> None:
    until = (datetime.now(UTC) + timedelta(seconds=600)).isoformat(timespec="seconds")
    async with running() as held:
        held.switch.set(json.dumps({"enabled": True, "reason": "new disks", "by": "ann", "until": until}))
        await trio.sleep(8)
        switch = {"reason": "new disks", "by": "ann", "until": until}
        _, health, _ = await held.get("/health")
        assert health["switch"] == {"on": True, **switch, "keys": ["all"]}
        status, body, headers = await held.get("/queue/info")
        message = assert_error(status, body, 503)
        assert "new disks" in message
        assert "ann" in message
        assert {name: body[name] for name in switch} == switch
        assert int(headers["Retry-After"]) == pytest.approx(600, abs=30)


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        ("2020-01-01T00:00:00Z", 1),  # over already: soon
        ("2999-01-01T00:00:00Z", 86_400),  # a client should look again once a day
        ("9999-12-31T23:59:59-23:59", 86_400),
        ("0001-01-01T00:00:00+23:59", 1),
        ("tonight", 30),
        ("2999-01-01T00:00:00", 30),  # in which time zone?
        ("2999-01-01", 30),
    ],
)
async def test_retry_after_of_odd_dates(autojump_clock: MockClock, until: str, seconds: int) -> None:
    async with running() as held:
        held.switch.set(json.dumps({"enabled": True, "until": until}))
        await trio.sleep(8)
        status, body, headers = await held.get("/queue/info")
        assert until in assert_error(status, body, 503)
        assert headers["Retry-After"] == str(seconds)


async def test_a_garbage_value_is_reported_and_changes_nothing(autojump_clock: MockClock) -> None:
    async with running() as held:
        await run(held)
        held.switch.set("perhaps")
        await trio.sleep(1)
        status, health, _ = await held.get("/health")
        assert (status, health["status"]) == (200, "healthy")
        assert "'perhaps'" in health["etcd"]["ignored_value"]
        held.switch.set("on")
        await trio.sleep(8)
        held.switch.set(b"\xff")
        await trio.sleep(1)
        _, health, _ = await held.get("/health")
        assert health["status"] == "maintenance"
        assert "UTF-8" in health["etcd"]["ignored_value"]
        held.switch.set("off")
        await trio.sleep(1)
        _, health, _ = await held.get("/health")
        assert (health["status"], health["etcd"]["ignored_value"]) == ("healthy", None)


async def test_a_garbage_value_from_the_start_is_told_to_whoever_waits(autojump_clock: MockClock) -> None:
    async with running(switch=SimulatedSwitch("perhaps")) as held:
        status, body, headers = await held.get("/queue/info")
        assert "'perhaps'" in assert_error(status, body, 503)
        assert headers["Retry-After"] == "5"
        assert (await held.get("/health"))[0] == 503


@pytest.mark.expects_errors
async def test_the_drain_is_shown_while_it_runs_and_when_it_has_expired(autojump_clock: MockClock) -> None:
    async with running(for_ever) as held:
        ids = [held.queue.put("x"), held.queue.put("y")]
        await trio.sleep(1)
        held.switch.set("true")
        await trio.sleep(2)
        _, health, _ = await held.get("/health")
        assert health["drain"]["outcome"] == "running"
        assert health["drain"]["ended"] is None
        assert health["drain"]["seconds"] == 2
        assert health["drain"]["sqs"]["in_flight"] == 2
        assert health["drain"]["http"] == {"under_way": 0, "unfinished": 0}
        await trio.sleep(9)
        _, health, _ = await held.get("/health")
        report = health["drain"]
        assert report["outcome"] == "expired"
        assert report["cause"] == "maintenance"
        assert report["seconds"] <= 10
        assert report["sqs"]["released"] == 2
        assert report["sqs"]["timed_out_count"] == 2
        assert sorted(report["sqs"]["timed_out"]) == ids
        assert "2 messages" in report["error"]
        assert all(one in report["error"] for one in ids)
        _, stats, _ = await held.get("/messages/stats")
        assert stats["sqs"]["drain"]["error"] == report["error"]
        assert stats["sqs"]["drain"]["sqs"] == report["sqs"]


@pytest.mark.expects_errors
async def test_a_long_list_of_ids_is_cut_and_counted(autojump_clock: MockClock) -> None:
    async with running(for_ever, MAX_CONCURRENCY="1000", DRAIN_TIMEOUT="2s", SQS_WAIT_TIME_SECONDS="0") as held:
        for _ in range(300):
            held.queue.put("x")
        await trio.sleep(10)
        _, body, _ = await held.get("/messages/stats")
        assert body["sqs"]["messages_in_flight"] == 300
        held.switch.set("true")
        await trio.sleep(4)
        answer = await held.client.get("/health")
        report = (await answer.get_json())["drain"]
        assert report["sqs"]["timed_out_count"] == 300
        assert len(report["sqs"]["timed_out"]) == 100
        assert len(await answer.get_data()) < 32_768  # an answer has to fit into socket buffers


async def test_requests_under_way_are_waited_for_in_a_drain(autojump_clock: MockClock) -> None:
    async with running(queue=SimulatedQueue(faults=[Fault("delay", "send", seconds=4)])) as held:
        await trio.sleep(6)
        answers: list[int] = []

        async def slow_send() -> None:
            answers.append((await held.send())[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow_send)
            await trio.sleep(1)
            held.switch.set("true")
            await trio.sleep(1)
            _, health, _ = await held.get("/health")
            assert health["drain"]["http"] == {"under_way": 1, "unfinished": 0}
            assert (await held.send())[0] == 503
        assert answers == [200]
        await trio.sleep(6)
        _, health, _ = await held.get("/health")
        assert (health["status"], health["drain"]["outcome"]) == ("maintenance", "drained")


# -- /health and the queue --


class Patient(SimulatedQueue):
    """Never answers when asked for its attributes, as long as `mute`."""

    mute = False

    async def attributes(self) -> Mapping[str, str]:
        if self.mute:
            self.calls["attributes"] += 1
            await trio.sleep_forever()
        return await super().attributes()


async def test_health_waits_for_sqs_for_five_seconds_and_no_longer(autojump_clock: MockClock) -> None:
    async with running(queue=Patient()) as held:
        await run(held)
        held.queue.mute = True  # type: ignore[attr-defined]
        for _ in range(3):
            began = trio.current_time()
            status, body, _ = await held.get("/health")
            assert trio.current_time() - began == 5
            assert status == 503
            assert body["status"] == "unhealthy"
            assert body["handlers"] == {"http": True, "sqs": False}
            assert body["queue_error"] == "no answer in 5 s"
        held.queue.mute = False  # type: ignore[attr-defined]
        assert (await held.get("/health"))[0] == 200


async def test_nobody_waits_longer_when_many_ask_a_mute_queue(autojump_clock: MockClock) -> None:
    async with running(queue=Patient()) as held:
        await run(held)
        held.queue.mute = True  # type: ignore[attr-defined]
        calls = held.queue.calls["attributes"]
        waits: list[float] = []

        async def ask(after: float) -> None:
            await trio.sleep(after)
            began = trio.current_time()
            assert (await held.get("/health"))[0] == 503
            waits.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number * 0.1)
        assert max(waits) <= 5 + 1e-9  # a sum of floats
        assert held.queue.calls["attributes"] - calls <= 15  # in the 15 s that all of this takes


async def test_sqs_is_asked_once_a_second_however_often_and_concurrently_health_is(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    def spy(call: Call) -> Fault | None:
        if call.kind == "attributes":
            asked.append(call.at)
        # Every third takes its time, longer than a second.
        return Fault("delay", seconds=1.7) if call.kind == "attributes" and len(asked) % 3 == 0 else None

    queue = SimulatedQueue()
    async with running(queue=queue) as held:
        await run(held)
        queue.faults = spy
        began = trio.current_time()

        async def keep_asking(every: float) -> None:
            while trio.current_time() < began + 20:
                assert (await held.get("/health"))[0] == 200
                await trio.sleep(every)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(keep_asking, 0.07 + 0.05 * number)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert min(gaps) >= 1
    assert len(asked) >= 12


async def test_whoever_asks_during_a_slow_call_shares_its_answer(autojump_clock: MockClock) -> None:
    queue = SimulatedQueue()
    async with running(queue=queue) as held:
        await run(held)
        queue.faults = [Fault("delay", "attributes", seconds=3)]
        calls, began = queue.calls["attributes"], trio.current_time()

        async def ask(after: float) -> None:
            await trio.sleep(after)
            assert (await held.get("/health"))[0] == 200
            assert trio.current_time() - began == pytest.approx(3)

        async with trio.open_nursery() as nursery:
            for tenths in range(30):
                nursery.start_soon(ask, tenths / 10)
        assert queue.calls["attributes"] - calls == 1


async def test_a_client_that_goes_away_leaves_no_stale_answer_behind(autojump_clock: MockClock) -> None:
    """Its call is cancelled with it. Whoever comes next gets an answer of a call of their own, still one a second."""
    asked: list[float] = []
    fault: list[Fault] = []

    def spy(call: Call) -> Fault | None:
        if call.kind == "attributes":
            asked.append(call.at)
            return fault[0] if fault else None
        return None

    queue = SimulatedQueue()
    async with running(queue=queue) as held:
        await run(held)
        queue.faults = spy
        assert (await held.get("/health"))[0] == 200
        await trio.sleep(2)
        fault[:] = [Fault("delay", seconds=3)]
        with trio.move_on_after(0.1):
            await held.get("/health")
        fault[:] = [Fault("denied")]
        began = trio.current_time()
        status, body, _ = await held.get("/health")
        assert status == 503
        assert "denied" in body["queue_error"].lower() or "access" in body["queue_error"].lower()
        assert trio.current_time() - began == pytest.approx(0.9)
        assert asked[-1] - asked[-2] == pytest.approx(1)


async def test_health_says_why_the_queue_is_out_of_reach_and_recovers(autojump_clock: MockClock) -> None:
    queue = SimulatedQueue()
    async with running(queue=queue) as held:
        await run(held)
        queue.faults = [Fault("error")]
        await trio.sleep(7)
        status, body, _ = await held.get("/health")
        assert (status, body["status"]) == (503, "unhealthy")
        assert "InternalError" in body["queue_error"]
        _, stats, _ = await held.get("/messages/stats")
        assert "InternalError" in stats["sqs"]["queue_error"]
        assert (await held.get("/health/live"))[0] == 200
        queue.faults = []
        await trio.sleep(15)
        status, body, _ = await held.get("/health")
        assert (status, body["queue_error"]) == (200, None)


# -- errors --


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault("error"), 502),
        (Fault("throttle"), 502),
        (Fault("denied"), 502),
        (Fault("no-queue"), 502),
        (Fault("timeout-before"), 504),
        (Fault("timeout-after"), 504),
    ],
    ids=lambda value: getattr(value, "what", None),
)
async def test_queue_errors(autojump_clock: MockClock, fault: Fault, status: int) -> None:
    queue = SimulatedQueue()
    async with running(queue=queue) as held:
        await run(held)
        queue.faults = [fault]
        for answer in (held.send(), held.get("/queue/info")):
            got, body, _ = await answer
            message = assert_error(got, body, status)
            assert "Traceback" not in message


async def test_a_queue_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    async with running(queue=Patient()) as held:
        await run(held)
        held.queue.mute = True  # type: ignore[attr-defined]
        began = trio.current_time()
        status, body, _ = await held.get("/queue/info")
        assert_error(status, body, 504)
        assert trio.current_time() - began == routes_messages.ANSWER_TIMEOUT
        assert held.core.gate.statistics().under_way == 0


async def test_what_only_the_queue_refuses(autojump_clock: MockClock) -> None:
    async with running(queue=SimulatedQueue(max_message_bytes=2048)) as held:
        await run(held)
        status, body, _ = await held.send({"message": "x" * 3000})
        assert_error(status, body, 413)
        status, body, _ = await held.send({"message": "x", "deduplication_id": "1"})
        assert_error(status, body, 400)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/messages/stats", "GET, HEAD"),
        ("GET", "/messages/send", "POST"),
        ("DELETE", "/messages/send", "POST"),
        ("OPTIONS", "/messages/send", "POST"),
        ("PATCH", "/metrics", "GET, HEAD"),
        ("TRACE", "/queue/info", "GET, HEAD"),
        ("NONSENSE", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_wrong_method(autojump_clock: MockClock, method: str, path: str, allowed: str) -> None:
    async with running() as held:
        answer = await held.client.open(path, method=method)
        assert allowed in assert_error(answer.status_code, await answer.get_json(), 405)
        assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/index.html", "/nothing", "/health/", "/messages", "/static/x", "/messages/send/1", "/Health"]
)
async def test_no_such_endpoint(autojump_clock: MockClock, path: str) -> None:
    async with running() as held:
        assert_error(*(await held.get(path))[:2], 404)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic YTpi", 401),
        (TOKEN, 401),
        ("Bearer wrong", 403),
        (f"Bearer {TOKEN}x", 403),
        (f"Bearer {TOKEN[:-1]}", 403),
        ("Bearer ÿé", 403),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
    ],
)
async def test_token(autojump_clock: MockClock, header: str | None, status: int) -> None:
    async with running(API_TOKEN=TOKEN) as held:
        await run(held)
        got, body, headers = await held.send(**({} if header is None else {"Authorization": header}))
        assert got == status
        if status != 200:
            assert TOKEN not in assert_error(got, body, status)
            assert held.queue.calls["send"] == 0
        assert headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        # What changes nothing needs no token.
        for path in ("/health", "/metrics", "/messages/stats", "/queue/info", "/openapi.json"):
            assert (await held.client.get(path)).status_code == 200


async def test_in_maintenance_no_token_is_asked_for(autojump_clock: MockClock) -> None:
    async with running(API_TOKEN=TOKEN, switch=SimulatedSwitch("on")) as held:
        assert (await held.send())[0] == 503


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "text/json", "json", "*/*"]
)
async def test_wrong_content_type(autojump_clock: MockClock, kind: str | None) -> None:
    async with running() as held:
        headers = {} if kind is None else {"Content-Type": kind}
        answer = await held.client.post("/messages/send", data=json.dumps(SEND), headers=headers)
        assert "application/json" in assert_error(answer.status_code, await answer.get_json(), 415)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;x=y"])
async def test_content_type_with_parameters(autojump_clock: MockClock, kind: str) -> None:
    async with running() as held:
        assert (await held.send(Content_Type=kind))[0] == 200


def attributes(**held: object) -> bytes:
    return json.dumps({"message": "x", "attributes": held}).encode()


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"{", "not JSON"),
        (b'{"message": "x"} more', "not JSON"),
        (b"{'message': 'x'}", "not JSON"),
        (b'{"message": NaN}', "NaN"),
        (b'{"message": "x", "delay_seconds": Infinity}', "Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"message":' * 100_000, "nested too deeply"),
        (b'{"message": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"message": "\xed\xa0\x80"}', "UTF-8"),
        (json.dumps({"message": "x"}).encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf" + b'{"message": "x"}', "not JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"3", "object"),
        (b"{}", '"message"'),
        (b'{"message": null}', '"message"'),
        (b'{"message": ""}', '"message"'),
        (b'{"message": 3}', '"message"'),
        (b'{"message": ["x"]}', '"message"'),
        (b'{"message": {"a": 1}}', '"message"'),
        (b'{"text": "x"}', "unknown field 'text'"),
        (b'{"message": "x", "delay": 3}', "unknown field 'delay'"),
        (b'{"message": "x", "\\ud800": 3}', "unknown field"),
        (b'{"message": "x", "' + b"y" * 100_000 + b'": 3}', "unknown field"),
        (b'{"message": "a\\u0000b"}', "U+0000 at position 1"),
        (b'{"message": "\\u001b"}', "U+001B"),
        (b'{"message": "\\ud800"}', "U+D800"),
        (b'{"message": "\\ufffe"}', "U+FFFE"),
        (b'{"message": "a\nb"}', "not JSON"),
        (b'{"message": "x", "delay_seconds": -1}', '"delay_seconds"'),
        (b'{"message": "x", "delay_seconds": 901}', '"delay_seconds"'),
        (b'{"message": "x", "delay_seconds": 1.5}', '"delay_seconds"'),
        (b'{"message": "x", "delay_seconds": true}', '"delay_seconds"'),
        (b'{"message": "x", "delay_seconds": "3"}', '"delay_seconds"'),
        (b'{"message": "x", "delay_seconds": 1e999}', '"delay_seconds"'),
        (b'{"message": "x", "group_id": ""}', '"group_id"'),
        (b'{"message": "x", "group_id": "a b"}', '"group_id"'),
        (b'{"message": "x", "group_id": 3}', '"group_id"'),
        (json.dumps({"message": "x", "deduplication_id": "x" * 129}).encode(), '"deduplication_id"'),
        (b'{"message": "x", "attributes": []}', '"attributes"'),
        (b'{"message": "x", "attributes": "a"}', '"attributes"'),
        (attributes(**{f"a{number}": "x" for number in range(11)}), "11 entries"),
        (attributes(**{"": "x"}), "attribute name"),
        (attributes(**{"AWS.x": "x"}), "attribute name"),
        (attributes(**{"amazon.x": "x"}), "attribute name"),
        (attributes(**{"a..b": "x"}), "attribute name"),
        (attributes(**{".a": "x"}), "attribute name"),
        (attributes(**{"a.": "x"}), "attribute name"),
        (attributes(**{"a b": "x"}), "attribute name"),
        (attributes(é="x"), "attribute name"),
        (attributes(**{"\ud800": "x"}), "attribute name"),
        (attributes(**{"a" * 257: "x"}), "attribute name"),
        (attributes(a=""), "at least one character"),
        (attributes(a=None), "at least one character"),
        (attributes(a=True), "at least one character"),
        (attributes(a=[]), "at least one character"),
        (attributes(a="\x00"), "U+0000"),
        (b'{"message": "x", "attributes": {"a": 1e999}}', "number"),
        (b'{"message": "x", "attributes": {"a": -1e999}}', "number"),
        (b'{"message": "x", "attributes": {"a": 1e200}}', "38 digits"),
        (b'{"message": "x", "attributes": {"a": 1e-300}}', "38 digits"),
        (b'{"message": "x", "attributes": {"a": 1' + b"0" * 38 + b"}}", "38 digits"),
        (b'{"message": "x", "attributes": {"a": 1' + b"0" * 400 + b"}}", "38 digits"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
async def test_bad_body(autojump_clock: MockClock, body: bytes, word: str) -> None:
    async with running() as held:
        status, answer, _ = await held.send(body)
        message = assert_error(status, answer, 400)
        assert word in message
        assert len(message) < 1000
        assert held.queue.calls["send"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x" * request_bodies.MESSAGE_LIMIT},
        {"message": "\U0001f600é\t\r\n"},
        {"message": "\U00010000\ue000\ufffd"},
        {"message": "x", "attributes": None, "delay_seconds": None, "group_id": None, "deduplication_id": None},
        {"message": "x", "attributes": {"a" * 256: "y", "b.c-d_e": 10**37, "n": -(10**37), "z": 0, "f": -0.25}},
        {"message": "x", "delay_seconds": 900},
        {"message": "x", "delay_seconds": 0},
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bodies_at_the_limits(autojump_clock: MockClock, body: object) -> None:
    async with running(for_ever) as held:
        status, answer, _ = await held.send(body)
        assert status == 200, answer
        assert held.queue.calls["send"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x" * (request_bodies.MESSAGE_LIMIT + 1)},
        {"message": "é" * (request_bodies.MESSAGE_LIMIT // 2) + "x"},
        {"message": "x" * request_bodies.MESSAGE_LIMIT, "attributes": {"a": "b"}},
        b" " * (request_bodies.BODY_LIMIT + 1),
    ],
    ids=["characters", "bytes", "with attributes", "body"],
)
async def test_too_large(autojump_clock: MockClock, body: object) -> None:
    async with running() as held:
        status, answer, _ = await held.send(body)
        assert_error(status, answer, 413)
        assert held.queue.calls["send"] == 0


async def test_a_message_of_the_longest_json_form_fits_into_the_body_limit(autojump_clock: MockClock) -> None:
    body = b'{"message": "' + b"\\u0041" * request_bodies.MESSAGE_LIMIT + b'"}'
    async with running(for_ever) as held:
        assert (await held.send(body))[0] == 200


class Broken:
    """A further handler that has a fault of its own."""

    name = "broken"
    after = ()

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    async def wait_drained(self, deadline: float) -> str | None: ...

    async def health(self) -> bool:
        raise ZeroDivisionError("a secret of the inside")

    def statistics(self) -> object: ...

    def drain(self) -> Mapping[str, object]:
        return {}


@pytest.mark.expects_errors
async def test_a_handler_whose_health_breaks_is_not_healthy_and_tells_nothing_of_the_inside(
    autojump_clock: MockClock,
) -> None:
    async with running() as held:
        held.core.manager.handlers = (*held.core.manager.handlers, Broken())
        answer = await held.client.get("/health")
        assert answer.status_code == 503
        body = await answer.get_json()
        assert body["handlers"] == {"http": True, "sqs": True, "broken": False}
        assert "secret" not in str(body)
        assert (await held.get("/health/live"))[0] == 200


async def test_head_is_get_without_a_body(autojump_clock: MockClock) -> None:
    async with running() as held:
        await run(held)
        for path in ("/health", "/metrics", "/messages/stats", "/queue/info"):
            assert (await held.client.head(path)).status_code == 200


# -- the description --


async def test_openapi_is_valid_and_covers_exactly_the_routes(autojump_clock: MockClock) -> None:
    import openapi_spec_validator  # a second, which only the worker that runs this needs to spend

    openapi_spec_validator.validate(DESCRIPTION, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    async with running() as held:
        await run(held)
        _, served, _ = await held.get("/openapi.json")
        assert served == DESCRIPTION
        described = {(path, method.upper()) for path, item in served["paths"].items() for method in item}
        there = {
            (rule.rule, method)
            for rule in api.make(held.core).url_map.iter_rules()
            for method in rule.methods or ()
            if method not in ("HEAD", "OPTIONS")
        }
        assert described == there
        sendable = served["paths"]["/messages/send"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(sendable["properties"]) == set(request_bodies.Outgoing.__slots__)
        assert (await held.send(examples.SEND))[0] == 200
