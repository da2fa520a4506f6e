"""CloudWatch: once a minute in virtual time, against moto, and never in the way of the service."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from svc.core import Core
from svc.devstack.stack import Etcd, Moto
from svc.maintenance.phases import Phase
from svc.settings import BadSettings, Settings, load
from svc.sqs import aws_client
from svc.telemetry.cloudwatch import CALL, EVERY, KEPT, LAST, Figures, Publisher
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService
from tests.live import stand
from tests.roads import ROADS

SETTINGS = Settings(sqs_queue_url="http://sqs/000000000000/orders", cloudwatch_namespace="Shop/svc")

FAILING = "CloudWatch does not take the figures; tried again every minute"
OVER = "CloudWatch takes the figures again"


class Refused(Exception):
    """As botocore's ClientError."""

    response = {"Error": {"Code": "AccessDenied", "Message": "not authorized to perform: cloudwatch:PutMetricData"}}  # noqa: RUF012


class CloudWatch:
    """What was published, by second; `trouble` is raised instead, `hangs` never answers."""

    def __init__(self) -> None:
        self.put: list[tuple[float, dict[str, Any]]] = []
        self.trouble: BaseException | None = None
        self.cannot_open: Exception | None = None
        self.hangs = False
        self.opened = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[list[Callable[..., Any]]]:
        self.opened += 1
        if self.cannot_open is not None:
            raise self.cannot_open
        yield [self.call]

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        assert operation == "put_metric_data"
        if self.hangs:
            await trio.sleep_forever()
        if self.trouble is not None:
            raise self.trouble
        assert request["Namespace"] == "Shop/svc"
        values = {}
        for datum in request["MetricData"]:
            assert datum["Dimensions"] == [{"Name": "QueueName", "Value": "orders"}]
            values[datum["MetricName"]] = datum["Value"] if "Value" in datum else datum["StatisticValues"]
        self.put.append((trio.current_time(), values))
        return {}


@asynccontextmanager
async def publishing(
    cloudwatch: CloudWatch, queue: SimulatedQueue, work: Callable[..., Any]
) -> AsyncIterator[tuple[SimulatedService, trio.Event, trio.Event]]:
    """A service whose figures go to `cloudwatch`; the first event stops the publishing, the second is set when it has ended."""
    figures, stop, ended = Figures(), trio.Event(), trio.Event()
    async with (
        SimulatedService(queue, work, make_core=partial(Core, observer=figures)) as service,
        trio.open_nursery() as nursery,
    ):
        core = service.core
        look = lambda: (core.worker.statistics(), core.manager.state())  # noqa: E731
        publisher = Publisher(SETTINGS, figures, look, cloudwatch.open)

        async def publish() -> None:
            await publisher.run(stop)
            ended.set()

        nursery.start_soon(publish)
        yield service, stop, ended
        stop.set()


async def done(message: object) -> None:
    await trio.sleep(2)


async def test_the_figures_of_each_minute_go_out_once(autojump_clock) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    for number in range(3):
        queue.put(str(number))
    async with publishing(cloudwatch, queue, done):
        await trio.sleep(EVERY + 1)
        queue.put("later")
        await trio.sleep(EVERY)
    (first_at, first), (second_at, second), (_, rest) = cloudwatch.put
    assert (first_at, second_at) == (60, 120)
    assert {name: first[name] for name in ("MessagesProcessed", "MessagesFailed", "MessagesInFlight", "Draining")} == {
        "MessagesProcessed": 3, "MessagesFailed": 0, "MessagesInFlight": 0, "Draining": 0,
    }  # fmt: skip
    assert first["ProcessingTime"] == {"SampleCount": 3, "Sum": 6, "Minimum": 2, "Maximum": 2}
    assert second["MessagesProcessed"] == second["ProcessingTime"]["SampleCount"] == 1
    assert first["Receives"] >= first["EmptyReceives"] > 0
    assert first["SqsRequests"] > first["Receives"]
    assert rest["MessagesProcessed"] == 0
    assert "ProcessingTime" not in rest  # CloudWatch refuses a set of no values


async def test_a_drain_is_seen(autojump_clock) -> None:
    async def long(message: object) -> None:
        await trio.sleep(70)

    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    queue.put("long")
    async with publishing(cloudwatch, queue, long) as (service, _, _):
        await trio.sleep(50)
        service.maintenance("on")
        await trio.sleep(80)
    (_, first), (_, second), _ = cloudwatch.put
    assert (first["Draining"], first["MessagesInFlight"]) == (1, 1)
    assert (second["InMaintenance"], second["Drains"], second["MessagesInFlight"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "trouble", [Refused(), OSError("no way"), RuntimeError("a secret"), ExceptionGroup("x", [KeyError()])]
)
async def test_what_could_not_be_sent_goes_with_the_next_minute(autojump_clock, trouble: Exception) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    queue.put("a")
    cloudwatch.trouble = trouble
    with capture_logs() as lines:
        async with publishing(cloudwatch, queue, done):
            await trio.sleep(EVERY * 2 + 1)
            cloudwatch.trouble = None
            queue.put("b")
            await trio.sleep(EVERY)
    assert cloudwatch.put[0][0] == 180
    assert cloudwatch.put[0][1]["MessagesProcessed"] == 2
    told = [line for line in lines if "CloudWatch" in line["event"]]
    assert [line["event"] for line in told] == [FAILING, OVER]
    assert "secret" not in told[0]["error"]
    assert told[1]["after_seconds"] == 120
    if isinstance(trouble, Refused):
        assert "the role needs cloudwatch:PutMetricData" in told[0]["error"]


async def test_sums_are_not_kept_for_ever(autojump_clock) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    queue.put("a")
    cloudwatch.trouble = Refused()
    async with publishing(cloudwatch, queue, done):
        await trio.sleep(KEPT + EVERY + 1)
        cloudwatch.trouble = None
        await trio.sleep(EVERY)
    assert cloudwatch.put[0][1]["MessagesProcessed"] == 0


async def test_a_client_that_cannot_be_opened_is_tried_again(autojump_clock) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    queue.put("a")
    cloudwatch.cannot_open = AttributeError("of any kind")
    with capture_logs() as lines:
        async with publishing(cloudwatch, queue, done):
            await trio.sleep(EVERY * 3 + 1)
            assert cloudwatch.opened == 4
            cloudwatch.cannot_open = None
            await trio.sleep(EVERY * 2)
    assert cloudwatch.put[0][1]["MessagesProcessed"] == 1
    assert [line["event"] for line in lines if "CloudWatch" in line["event"]] == [FAILING, OVER]


async def test_one_that_hangs_is_given_up_and_holds_up_no_stop(autojump_clock) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    cloudwatch.hangs = True
    with capture_logs() as lines:
        async with publishing(cloudwatch, queue, done) as (_, stop, publisher_ended):
            await trio.sleep(EVERY + CALL + 1)
            (line,) = [line for line in lines if "CloudWatch" in line["event"]]
            assert line["error"] == "no answer within 10 s"
            queue.put("still at work")
            await trio.sleep(3)
            assert len(queue.deleted) == 1
            stopped = trio.current_time()
            stop.set()
            await publisher_ended.wait()
            assert trio.current_time() <= stopped + LAST


async def test_the_stop_publishes_the_last_figures(autojump_clock) -> None:
    cloudwatch, queue = CloudWatch(), SimulatedQueue()
    queue.put("a")
    async with publishing(cloudwatch, queue, done):
        await trio.sleep(5)
    assert [(at, values["MessagesProcessed"]) for at, values in cloudwatch.put] == [(5, 1)]


@pytest.mark.parametrize("value", ["AWS/SQS", ":x", "a" * 256, "a*b", "a\tb"])
def test_a_namespace_that_cloudwatch_would_refuse_is_told(value: str) -> None:
    with pytest.raises(BadSettings, match=r"CLOUDWATCH_NAMESPACE holds .* it must be 1 to 255 letters"):
        load({"CLOUDWATCH_NAMESPACE": value})


@pytest.mark.parametrize("value", ["a", "Shop/svc #1: x-y_z.", "AWSx/y"])
def test_one_that_it_takes_is_taken(value: str) -> None:
    assert load({"CLOUDWATCH_NAMESPACE": value}).cloudwatch_namespace == value


# -- real parts --


async def sums(moto: Moto, namespace: str, queue: str, *names: str) -> dict[str, float]:
    """What moto's CloudWatch has of the queue, by metric: the sum over the last hours."""
    now = datetime.now(UTC)
    found = {}
    settings = Settings(sqs_transport=ROADS[0])
    async with aws_client.opened(settings, [aws_client.Pool(1)], "cloudwatch") as (call,):
        for name in names:
            answer = await call(
                "get_metric_statistics", Namespace=namespace, MetricName=name, Statistics=["Sum"], Period=60,
                StartTime=now - timedelta(hours=1), EndTime=now + timedelta(minutes=1),
                Dimensions=[{"Name": "QueueName", "Value": queue}],
            )  # fmt: skip
            found[name] = sum(point["Sum"] for point in answer["Datapoints"])
    return found


@pytest.fixture
def at_moto(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Moto:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", moto.url)
    return moto


@pytest.mark.parametrize("road", ROADS)
async def test_moto_takes_it_on_every_road(at_moto: Moto, queue_name: str, road: aws_client.Road) -> None:
    settings = Settings(
        sqs_queue_url=at_moto.queue_url(queue_name), cloudwatch_namespace="Test/roads", sqs_transport=road
    )
    figures, stop = Figures(), trio.Event()
    figures.minute.counts["MessagesProcessed"] = 1
    for seconds in (1.0, 3.0):
        figures.minute.times["ProcessingTime"].add(seconds)
    idle = SimpleNamespace(counts=SimpleNamespace(in_flight=0), breaker=None)
    stop.set()
    await Publisher(settings, figures, lambda: (idle, SimpleNamespace(phase=Phase.RUNNING))).run(stop)
    published = await sums(at_moto, "Test/roads", queue_name, "MessagesProcessed", "ProcessingTime")
    assert published == {"MessagesProcessed": 1, "ProcessingTime": 4}


async def test_a_real_service_publishes_at_its_stop(
    at_moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    environ = {"CLOUDWATCH_NAMESPACE": "Test/live", "WORK_SECONDS": "0"}
    async with stand(at_moto, etcd.endpoint, queue_name, key_prefix, tmp_path / "record", **environ) as t:
        await t.send(["a", "b"])
        service = await t.start()
        await service.figure("messages_processed", 2)
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
    published = await sums(at_moto, "Test/live", queue_name, "MessagesProcessed", "Drains", "DrainsExpired")
    assert published == {"MessagesProcessed": 2, "Drains": 1, "DrainsExpired": 0}


async def test_a_cloudwatch_that_is_not_there_is_told_and_stops_nothing(
    moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    environ = {
        "CLOUDWATCH_NAMESPACE": "Test/live",
        "AWS_ENDPOINT_URL_CLOUDWATCH": "http://127.0.0.1:1",
        "WORK_SECONDS": "0",
    }
    async with stand(moto, etcd.endpoint, queue_name, key_prefix, tmp_path / "record", **environ) as t:
        await t.send(["a"])
        service = await t.start()
        await service.figure("messages_processed", 1)
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        assert (await service.logged(FAILING))["error"] == "EndpointConnectionError"
        await service.logged("stopped")
