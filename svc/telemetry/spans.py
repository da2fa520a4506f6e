"""The spans of a message, and the sender's context in its attributes or within its envelope. Only here is OpenTelemetry
imported, and only when `tracing.py` finds that traces are asked for.

    send orders                     POST /messages/send; its context travels in the message attribute `traceparent` (W3C)
      └─ consume orders             from the receive that brought the message until its settlement, child of the sender and linked
           ├─ receive orders
           ├─ process orders        current while the processor runs: what it traces itself hangs below
           └─ delete orders         the settlement: delete, change_visibility or dead_letter

Each delivery has a `consume` span of its own, in the sender's trace. Names and attributes follow OpenTelemetry's semantic
conventions for messaging; what they have no name for is called `svc.…`. What is told of the work (`consumer/observer.py`)
begins and ends
the spans, and nothing that goes wrong here may touch the work.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import structlog
import trio
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from svc import __version__
from svc.consumer.ledger import Entry, Outcome
from svc.consumer.observed_queue import ObservedQueue
from svc.consumer.observer import UNOBSERVED, Action, BatchReason, Result
from svc.consumer.queue import Queue, Received
from svc.maintenance.handler import DrainReport
from svc.processors import CONTEXT_NAMES, Message, Reject, Retry
from svc.settings import Settings, queue_address
from svc.sqs.wire import MAX_ATTRIBUTES, MAX_MESSAGE_BYTES

log = structlog.get_logger(__name__)

PROPAGATOR = TraceContextTextMapPropagator()
NO_SENDER = Context()

TELLS = (Outcome.FAILED, Outcome.LOST)
"""Outcomes that make the span of a message one with an error."""

Tell = TypeVar("Tell", bound=Callable[..., None])


def provider() -> TracerProvider:
    """The one that the process has, if a processor's module has set one; else one that exports by OTLP over HTTP, made from the
    standard OTEL_* variables."""
    try:
        held = trace.get_tracer_provider()
    except StopIteration:  # which a coroutine must not let out
        raise LookupError("there is no tracer provider of the name that OTEL_PYTHON_TRACER_PROVIDER holds") from None
    if isinstance(held, TracerProvider):
        return held
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "svc"}))
    # Not shut down at the exit of the interpreter: what `tracing.FLUSH_SECONDS` was too short for would hold it up for 5 s more.
    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(made)
    return made


def _harmless(tell: Tell) -> Tell:
    """An observer is called in the middle of decisions, and much of this is a library with plug-ins: what it raises is logged,
    once, and goes no further."""

    @functools.wraps(tell)
    def guarded(self: "Spans", *args: Any) -> None:
        try:
            tell(self, *args)
        except Exception as error:
            if not self.has_failed:
                log.warning("tracing failed; the work goes on", error=repr(error), exc_info=error)
            self.has_failed = True

    return cast(Tell, guarded)


class _Held:
    """The spans of one delivery in flight."""

    __slots__ = ("consume", "context", "ended", "process", "settle", "token")

    def __init__(self, consume: Span) -> None:
        self.consume = consume
        self.context = trace.set_span_in_context(consume)
        self.process: Span | None = None
        self.token: Token[Context] | None = None
        self.settle: Span | None = None
        self.ended = False


class Spans:
    """An `observer.Observer`."""

    def __init__(self, provider: TracerProvider, settings: Settings) -> None:
        self._tracer = provider.get_tracer("svc", __version__)
        self._held: dict[str, _Held] = {}  # by receipt
        self.has_failed = False
        self.within_envelope: Callable[[Message], Mapping[str, str]] = lambda message: {}
        """The sender's context of a message that has none among its own attributes."""
        url = urlsplit(settings.sqs_queue_url)
        self._queue = queue_address(settings.sqs_queue_url).name
        server = urlsplit(settings.aws_endpoint) if settings.aws_endpoint else url
        self._common: dict[str, AttributeValue] = {
            "messaging.system": "aws_sqs",
            "messaging.destination.name": self._queue,
            "server.address": server.hostname or "",
            "server.port": server.port or (443 if server.scheme == "https" else 80),
        }

    def _start(
        self, operation: str, kind: str, span_kind: SpanKind, parent: Context, *, at: int | None = None, **more: Any
    ) -> Span:
        attributes = self._common | {"messaging.operation.name": operation}
        if kind:
            attributes["messaging.operation.type"] = kind
        links = more.pop("links", None)
        return self._tracer.start_span(
            f"{operation} {self._queue}",
            context=parent,
            kind=span_kind,
            attributes=attributes | more.pop("attributes", {}),
            links=links,
            start_time=at,
        )

    # -- the sender's side --

    def queue(self, queue: Queue) -> Queue:
        """The queue, whose sends are traced and carry the context."""
        return _TracedQueue(queue, self)

    def sending(self, body: str, attributes: Mapping[str, str | int | float] | None) -> tuple[Span, dict[str, Any]]:
        """A span for a send, and the attributes with its context: as many as fit beside what the sender gave. A context that the
        sender gave stands."""
        given: dict[str, Any] = dict(attributes or {})
        given_context = PROPAGATOR.extract(_carrier(given)) if "traceparent" in given else context.get_current()
        span = self._start("send", "send", SpanKind.PRODUCER, given_context)
        carrier: dict[str, str] = {}
        if "traceparent" not in given:
            PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        size = len(body.encode()) + sum(len(name) + len(str(value)) + 6 for name, value in given.items())
        for name in CONTEXT_NAMES:  # a tracestate alone says nothing
            value = carrier.get(name)
            if value is None or name in given or len(given) >= MAX_ATTRIBUTES:
                break
            size += len(name) + len(value) + 6  # "String"
            if size > MAX_MESSAGE_BYTES:
                break
            given[name] = value
        return span, given

    def within(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """An ASGI application in which a client's `traceparent` header is the current context."""

        async def with_context(scope: Any, receive: Any, send: Any) -> None:
            headers = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in (scope.get("headers") or ())
                if name in (b"traceparent", b"tracestate")
            }
            if headers:
                context.attach(PROPAGATOR.extract(headers, Context()))  # the task ends with the request
            await app(scope, receive, send)

        return with_context

    # -- the observer's side --

    @_harmless
    def landed(self, entry: Entry) -> None:
        message = entry.message
        parent, links = NO_SENDER, None
        if carrier := _carrier(message.attributes) or self.within_envelope(message):
            parent = PROPAGATOR.extract(carrier, Context())
            sender = trace.get_current_span(parent).get_span_context()
            links = [Link(sender)] if sender.is_valid else None
        now = time.time_ns()
        sent = now - int((trio.current_time() - entry.received_at) * 1e9)
        consume = self._start(
            "consume", "", SpanKind.CONSUMER, parent, at=sent,
            links=links,
            attributes={"messaging.message.id": message.id, "svc.receive_count": message.receive_count},
        )  # fmt: skip
        held = self._held[entry.delivery.receipt] = _Held(consume)
        if consume.is_recording():  # else nothing hangs below it
            self._start("receive", "receive", SpanKind.CLIENT, held.context, at=sent).end(now)

    def batch_begins(self, messages: int, reason: BatchReason) -> None:
        pass

    @_harmless
    def begins(self, entry: Entry) -> None:
        held = self._held[entry.delivery.receipt]
        if held.consume.is_recording():
            held.process = self._start(
                "process",
                "process",
                SpanKind.CONSUMER,
                held.context,
                attributes={"messaging.message.id": entry.message.id},
            )
            held.token = context.attach(trace.set_span_in_context(held.process, held.context))
        else:
            held.process = held.consume
            held.token = context.attach(held.context)
        found = held.process.get_span_context()
        structlog.contextvars.bind_contextvars(
            trace_id=trace.format_trace_id(found.trace_id), span_id=trace.format_span_id(found.span_id)
        )

    @_harmless
    def worked(self, entry: Entry, error: BaseException | None) -> None:
        held = self._held[entry.delivery.receipt]
        assert held.process is not None
        assert held.token is not None
        context.detach(held.token)
        match error:
            case None:
                pass
            case Retry() | Reject():
                held.process.add_event(type(error).__name__, {"reason": str(error)})
            case trio.Cancelled():
                held.process.add_event("cancelled")
            case _:
                held.process.set_attribute("error.type", type(error).__qualname__)
                held.process.record_exception(error)
                held.process.set_status(Status(StatusCode.ERROR, str(error)[:300]))
        held.process.end()
        held.process = None
        if held.ended:  # given back, or lost, while the processor still ran
            del self._held[entry.delivery.receipt]

    @_harmless
    def decided(self, entry: Entry) -> None:
        held = self._held[entry.delivery.receipt]
        assert entry.fate is not None
        if not held.consume.is_recording():
            return
        if held.settle is not None:
            held.settle.end()
        held.settle = self._start(entry.fate.action.value, "settle", SpanKind.CLIENT, held.context)

    @_harmless
    def ended(self, entry: Entry) -> None:
        held = self._held[entry.delivery.receipt]
        assert entry.ended is not None
        held.ended = True
        if held.process is None:
            del self._held[entry.delivery.receipt]
        held.consume.set_attribute("svc.outcome", entry.ended.value)
        if entry.ended in TELLS:
            held.consume.set_status(Status(StatusCode.ERROR, entry.ended.value))
        if held.settle is not None:
            if entry.ended is Outcome.LOST:
                held.settle.set_status(Status(StatusCode.ERROR, "not confirmed before the lease was over"))
            held.settle.end()
        held.consume.end()

    def extended(self, *, confirmed: int, refused: int, unanswered: int) -> None:
        pass

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        pass

    def received(self, deliveries: Sequence[Received]) -> None:
        pass

    def drain_ended(self, report: DrainReport) -> None:
        pass


class _TracedQueue(ObservedQueue):
    def __init__(self, queue: Queue, spans: Spans) -> None:
        super().__init__(queue, UNOBSERVED)
        self._spans = spans

    async def send(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: int | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        span, attributes = self._spans.sending(body, attributes)
        try:
            message_id = await self._queue.send(
                body, attributes=attributes, delay=delay, group_id=group_id, deduplication_id=deduplication_id
            )
            span.set_attribute("messaging.message.id", message_id)
            return message_id
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, str(error)[:300]))
            raise
        finally:
            span.end()


def _carrier(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Of a message's attributes those that carry a context; a binary one carries none."""
    return {name: value for name in CONTEXT_NAMES if isinstance(value := attributes.get(name), str)}
