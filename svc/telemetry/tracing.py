"""Traces: whether they are asked for, and their opening and closing. Off, nothing of OpenTelemetry is imported or called.

They are on when the extra `otel` is installed and the environment asks for them, in OpenTelemetry's own standard variables:
`OTEL_TRACES_EXPORTER` names `otlp`, or is unset while an OTLP endpoint is given (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`). `OTEL_SDK_DISABLED=true` and `OTEL_TRACES_EXPORTER=none` switch them off. Everything else
(sampler, resource, headers, batches) is read by OpenTelemetry itself, as AWS's variables are by botocore.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from svc.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from svc.telemetry.spans import Spans

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 2.0
"""How long the last spans may take to leave when the service ends."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


def asked_for(environ: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces."""

    def held(name: str) -> str:
        return environ.get(name, "").strip()

    if held("OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporters = held("OTEL_TRACES_EXPORTER").lower()
    if exporters:
        return "otlp" in [name.strip() for name in exporters.split(",")]
    return any(held(name) for name in ENDPOINTS)


@asynccontextmanager
async def opened(settings: Settings, environ: Mapping[str, str] | None = None) -> "AsyncIterator[Spans | None]":
    """The spans, to be told of the work; None when they are not asked for or cannot be had (a warning says why).

    At the end what is not exported yet gets `FLUSH_SECONDS`. A collector that is away costs spans and nothing else.
    """
    environ = os.environ if environ is None else environ
    if not asked_for(environ):
        yield None
        return
    try:
        from svc.telemetry.spans import Spans, provider
    except ImportError as error:
        log.warning("traces are asked for, but the extra is not installed: pip install 'svc[otel]'", missing=error.name)
        yield None
        return
    for name in PROTOCOLS:
        if environ.get(name, "http/protobuf").strip() not in ("", "http/protobuf"):
            log.warning("traces go by http/protobuf; the variable is ignored", variable=name)
    try:
        with _in_plain_words():
            held = provider()
            spans = Spans(held, settings)
    except Exception as error:
        # It is made from variables that only OpenTelemetry reads, and by plug-ins: all that it raises is about those.
        log.warning(
            "traces are asked for, but OpenTelemetry cannot be set up: check the OTEL_* variables; the work goes on without",
            error=str(error) or repr(error),
        )
        yield None
        return
    try:
        yield spans
    finally:
        with trio.move_on_after(FLUSH_SECONDS, shield=True):
            await trio.to_thread.run_sync(_flush, held, abandon_on_cancel=True)


def _flush(held: "TracerProvider") -> None:
    try:
        held.force_flush()
    except Exception as error:
        log.warning("the last traces could not be sent", error=repr(error))


@contextmanager
def _in_plain_words() -> Iterator[None]:
    """What OpenTelemetry logs of its variables becomes a warning of one line: it writes errors with a traceback for values
    that it replaces by its defaults."""
    said: list[logging.LogRecord] = []
    theirs, listener = logging.getLogger("opentelemetry"), logging.Handler(logging.WARNING)
    listener.emit = said.append  # type: ignore[method-assign,assignment]
    propagated, theirs.propagate = theirs.propagate, False
    theirs.addHandler(listener)
    try:
        yield
    finally:
        theirs.removeHandler(listener)
        theirs.propagate = propagated
        for record in said:
            raised = record.exc_info[1] if record.exc_info else None
            log.warning("OpenTelemetry says", error=record.getMessage() + (f": {raised!r}" if raised else ""))
