"""Traces: complete for every way that a message can go, and nothing at all when they are not asked for."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import quart
import structlog
import trio
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from trio.testing import MockClock

from svc import Batch, Message, Reject, Retry, __version__, processor, processors
from svc.api import app as api
from svc.core import Core
from svc.processors import AnyProcess
from svc.settings import load
from svc.sqs.wire import MAX_MESSAGE_BYTES
from svc.telemetry import tracing
from svc.telemetry.spans import Spans
from svc.testing import ScriptedQueue, SimulatedSwitch, event_body, s3_body, sns_body

SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Traced:
    """A service whose spans end in memory."""

    core: Core
    client: quart.typing.TestClientProtocol
    queue: ScriptedQueue
    exporter: InMemorySpanExporter

    def spans(self, operation: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(operation)]

    def one(self, operation: str) -> ReadableSpan:
        (span,) = self.spans(operation)
        return span

    async def send(self, text: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        answer = await self.client.post("/messages/send", json={"message": text, **more}, headers=headers or {})
        assert answer.status_code == 200, await answer.get_data(True)


@asynccontextmanager
async def traced(process: AnyProcess, **variables: str) -> AsyncIterator[Traced]:
    name = "orders.fifo" if variables.pop("fifo", None) else "orders"
    settings = load(
        {"SQS_QUEUE_URL": f"https://sqs.eu-central-1.amazonaws.com/123456789012/{name}", "AWS_ENDPOINT": "",
         "SQS_WAIT_TIME_SECONDS": "1", **variables}
    )  # fmt: skip
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans, queue = Spans(provider, settings), ScriptedQueue(fifo=name.endswith(".fifo"))
    spans.within_envelope = partial(processors.sender_context, process)
    core = Core(settings, spans.queue(queue), process, SimulatedSwitch().watcher, observer=spans)
    app = api.make(core)
    app.asgi_app = spans.within(app.asgi_app)  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.testing.wait_all_tasks_blocked()
        yield Traced(core, app.test_client(), queue, exporter)
        core.manager.stop()
    assert not spans._held  # nothing is kept of what has ended
    assert not spans.has_failed


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def identity(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_the_trace_of_a_message_sent_through_the_api_is_complete(autojump_clock: MockClock) -> None:
    seen: list[dict[str, Any]] = []

    async def work(message: Message) -> None:
        seen.append(dict(structlog.contextvars.get_contextvars()))
        with trace.get_tracer_provider().get_tracer("user").start_as_current_span("theirs"):
            seen.append({"inner": trace.get_current_span().get_span_context().trace_id})

    async with traced(work) as held:
        await held.send("hello", headers={"traceparent": SENDER})
        await trio.sleep(3)
        names = [span.name for span in held.spans()]
        # In the order in which they ended.
        assert names == ["send orders", "receive orders", "process orders", "delete orders", "consume orders"]
        send, receive, process, delete, consume = held.spans()
        assert {span.context.trace_id for span in held.spans() if span.context} == {0x0AF7651916CD43DD8448EB211C80319C}
        assert parent(send) == 0xB7AD6B7169203331
        assert parent(consume) == identity(send)
        assert [link.context.span_id for link in consume.links] == [identity(send)]
        assert {parent(span) for span in (receive, process, delete)} == {identity(consume)}

        assert [span.kind for span in held.spans()] == [
            SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.CLIENT, SpanKind.CONSUMER,
        ]  # fmt: skip
        kinds = {
            span.attributes["messaging.operation.type"] for span in (send, receive, process, delete) if span.attributes
        }
        assert kinds == {"send", "receive", "process", "settle"}
        (message_id,) = held.queue.deleted
        assert consume.attributes is not None
        assert consume.attributes == {
            "messaging.system": "aws_sqs",
            "messaging.destination.name": "orders",
            "messaging.operation.name": "consume",
            "messaging.message.id": message_id,
            "server.address": "sqs.eu-central-1.amazonaws.com",
            "server.port": 443,
            "svc.receive_count": 1,
            "svc.outcome": "processed",
        }
        assert all(span.status.status_code is StatusCode.UNSET for span in held.spans())

        logged, inner = seen
        assert logged["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert logged["span_id"] == f"{identity(process):016x}"
        assert inner["inner"] == 0x0AF7651916CD43DD8448EB211C80319C


async def test_a_message_that_nobody_traced_begins_a_trace(autojump_clock: MockClock) -> None:
    async def work(message: Message) -> None:
        pass

    async with traced(work) as held:
        held.queue.put("from elsewhere")
        held.queue.put("with rubbish", attributes={"traceparent": "not a context"})
        held.queue.put("with a number", attributes={"traceparent": 1})
        await trio.sleep(3)
        consumed = held.spans("consume")
        assert [parent(span) for span in consumed] == [None, None, None]
        assert not any(span.links for span in consumed)
        assert len({span.context.trace_id for span in consumed if span.context}) == 3


@pytest.mark.parametrize(
    ("envelope", "body", "joined"),
    [
        ("sns", sns_body("hello", attributes={"traceparent": SENDER}), True),
        ("sns", sns_body("hello"), False),
        ("sns", sns_body("hello", attributes={"traceparent": b"no text"}), False),
        ("sns", "no envelope", False),
        ("eventbridge", event_body({"id": 7, "traceparent": SENDER}), True),
        ("eventbridge", event_body([7]), False),
        (("sns", "eventbridge"), sns_body(event_body({"traceparent": SENDER})), True),
        (("sns", "eventbridge"), sns_body(event_body({}), attributes={"traceparent": SENDER}), True),
        ("s3", s3_body("a.csv"), False),
    ],
)
async def test_the_context_within_an_envelope_continues_the_trace(
    envelope: Any, body: str, joined: bool, autojump_clock: MockClock
) -> None:
    @processor(envelope=envelope)
    async def work(message: Message) -> None:
        pass

    async with processors.opened(work, None, threads=1) as process, traced(process) as held:
        held.queue.put(body)
        await trio.sleep(3)
        consumed = held.one("consume")
        assert consumed.context is not None
        assert (f"{consumed.context.trace_id:032x}" == SENDER.split("-")[1]) is joined
        assert bool(consumed.links) is joined


@pytest.mark.expects_errors
async def test_each_message_of_a_batch_has_spans_of_its_own(autojump_clock: MockClock) -> None:
    current: list[int] = []

    @processor(batch=10, linger=1)
    async def work(batch: Batch[str]) -> None:
        current.append(trace.get_current_span().get_span_context().span_id)
        await trio.sleep(2)
        batch[1].fail(ValueError("no"))

    async with processors.opened(work, None, threads=1) as process, traced(process) as held:
        held.queue.put_all("a", "b")
        await trio.sleep(5)
        first, second = held.spans("process")
        assert [span.status.status_code.name for span in (first, second)] == ["UNSET", "ERROR"]
        assert len({span.context.trace_id for span in (first, second) if span.context}) == 2
        assert current == [identity(first)]  # what the processor traces itself hangs below the first one's
        held.queue.fail("receive", seconds=1e9)


@pytest.mark.expects_errors
async def test_every_end_of_a_message_ends_its_spans(autojump_clock: MockClock) -> None:
    async def work(message: Message) -> None:
        match message.body:
            case "failed":
                raise ValueError("no")
            case "retried":
                raise Retry("later", after=3600)
            case "rejected":
                raise Reject("never")
            case "lost" | "released":
                await trio.sleep_forever()

    async with traced(work, SQS_VISIBILITY_TIMEOUT_SECONDS="30", DRAIN_TIMEOUT="10s") as held:
        held.queue.put_all("failed", "retried", "rejected", "lost")
        await trio.sleep(1)
        held.queue.let_lease_run_out("lost")
        await trio.sleep(9)
        held.queue.fail("receive", seconds=1e9)  # what failed would come again
        await trio.sleep(25)
        bodies = {held.queue.id_of(body): body for body in ("failed", "retried", "rejected", "lost")}
        found = {}
        for span in held.spans("consume"):
            assert span.attributes is not None
            body = bodies[str(span.attributes["messaging.message.id"])]
            children = [s for s in held.spans() if parent(s) == identity(span)]
            assert [child.name for child in children][:2] == ["receive orders", "process orders"], body
            settled = [child.name.split()[0] for child in children[2:]]
            process = children[1]
            found[body] = (
                span.attributes["svc.outcome"], span.status.status_code.name, settled,
                process.status.status_code.name, [event.name for event in process.events],
            )  # fmt: skip
    assert found == {
        "failed": ("failed", "ERROR", ["change_visibility"], "ERROR", ["exception"]),
        "retried": ("released", "UNSET", ["change_visibility"], "UNSET", ["Retry"]),
        "rejected": ("rejected", "UNSET", ["dead_letter", "delete"], "UNSET", ["Reject"]),
        "lost": ("lost", "ERROR", [], "UNSET", ["cancelled"]),
    }


@pytest.mark.expects_errors  # the drain runs out of time
async def test_what_a_drain_gives_back_is_no_error(autojump_clock: MockClock) -> None:
    async def work(message: Message) -> None:
        with trio.CancelScope(shield=True):  # ignores its cancellation until all is over
            await trio.sleep(60)

    async with traced(work, DRAIN_TIMEOUT="10s") as held:
        held.queue.put("stubborn")
        await trio.sleep(1)
        held.core.manager.stop()
        await trio.sleep(12)
        consume = held.one("consume")
        assert consume.attributes is not None
        assert consume.attributes["svc.outcome"] == "released"
        assert consume.status.status_code is StatusCode.UNSET
        assert held.one("change_visibility").parent is not None
        assert held.spans("process") == []
    assert held.one("process")


async def test_fifo_messages_of_a_group_have_a_context_each(autojump_clock: MockClock) -> None:
    seen = []

    async def work(message: Message) -> None:
        seen.append(structlog.contextvars.get_contextvars()["trace_id"])

    async with traced(work, fifo="yes") as held:
        for text in "abc":
            await held.send(text, group_id="one", deduplication_id=text)
        await trio.sleep(5)
        sent = [f"{span.context.trace_id:032x}" for span in held.spans("send") if span.context]
    assert seen == sent
    assert len(set(sent)) == 3


@pytest.mark.parametrize(
    ("given", "carried"),
    [
        ({}, True),
        ({f"a{n}": "1" for n in range(9)}, True),
        ({f"a{n}": "1" for n in range(10)}, False),
        ({"traceparent": SENDER}, "as given"),
    ],
)
async def test_the_context_takes_no_more_than_the_place_there_is(
    given: dict[str, Any], carried: object, autojump_clock: MockClock
) -> None:
    got = []

    async def work(message: Message) -> None:
        got.append(dict(message.attributes))

    async with traced(work) as held:
        await held.send("text", attributes=given)
        await trio.sleep(3)
        send, consume = held.one("send"), held.one("consume")
        added = set(got[0]) - set(given)
        assert added == ({"traceparent"} if carried is True else set())
        if carried == "as given":
            assert got[0]["traceparent"] == SENDER
            assert parent(send) == parent(consume) == 0xB7AD6B7169203331
        else:
            assert parent(consume) == (identity(send) if carried else None)


async def test_a_message_at_the_size_limit_is_sent_without_a_context(autojump_clock: MockClock) -> None:
    async def work(message: Message) -> None:
        assert not message.attributes

    async with traced(work) as held:
        await held.send("x" * MAX_MESSAGE_BYTES)
        await trio.sleep(3)
        assert held.one("consume").attributes["svc.outcome"] == "processed"  # type: ignore[index]


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_when_traces_are_on(environ: dict[str, str], on: bool) -> None:
    assert tracing.asked_for(environ) is on


async def test_off_it_opens_nothing() -> None:
    async with tracing.opened(load({}), {}) as spans:
        assert spans is None


async def test_without_the_extra_a_warning_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "svc.telemetry.spans", None)
    async with tracing.opened(load({}), {"OTEL_TRACES_EXPORTER": "otlp"}) as spans:
        assert spans is None
    assert "pip install 'svc[otel]'" in caplog.text


@pytest.mark.slow
def test_nothing_is_imported_before_spans_leave_by_otlp_beside_etcds_messages_in_one_process() -> None:
    """OpenTelemetry and svc/etcd both live on protobuf."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    code = """
import sys
import trio
from svc import service
from svc.cli import main as cli
from svc.etcd import watcher
from svc.telemetry import tracing
from svc.settings import load

async def main():
    assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    async with tracing.opened(load({})) as spans:
        span, carried = spans.sending("hello", None)
        span.end()
        print(carried["traceparent"].split("-")[1])

trio.run(main)
"""
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        environ = os.environ | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        command = [sys.executable, "-W", "ignore", "-c", code]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert told["service.name"] == "svc"
    assert told["service.version"] == __version__
    assert told["deployment.environment"] == "test"
    (span,) = resource.scope_spans[0].spans
    assert span.name == "send test-queue"
    assert span.trace_id.hex() == ran.stdout.strip()


SET_UP = """
import sys
import trio
from svc.settings import load
from svc.telemetry import logs, tracing

logs.configure("json", "info")

async def main():
    async with tracing.opened(load({})) as spans:
        print(spans is not None)

trio.run(main)
"""


@pytest.mark.parametrize(
    ("variable", "value", "traced"),
    [
        pytest.param("OTEL_BSP_SCHEDULE_DELAY", "0", False, marks=pytest.mark.slow),
        pytest.param("OTEL_ATTRIBUTE_COUNT_LIMIT", "-1", False, marks=pytest.mark.slow),
        pytest.param("OTEL_PYTHON_TRACER_PROVIDER", "nonsense", False, marks=pytest.mark.slow),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "nonsense", True),
    ],
)
def test_variables_that_opentelemetry_cannot_use_are_a_warning(variable: str, value: str, traced: bool) -> None:
    environ = os.environ | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    command = [sys.executable, "-W", "ignore", "-c", SET_UP]
    environ |= {variable: value}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == str(traced)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["warning"] * len(lines)
    assert any(("OTEL_*" in line["event"]) is not traced for line in lines)
    assert "Traceback" not in ran.stderr
