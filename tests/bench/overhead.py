"""CPU per message of `svc run` in several variants: what it costs to be seen (nobody looking, metrics, traces, CloudWatch), and
what the kinds of processors cost. In turn, within one run, so that the ratios can be trusted where the figures cannot."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from svc.testing import event_body, s3_body, sns_body

from .consumers import PLAIN_BODY, SVC, CannotRun, Place, Svc
from .saturation import saturate
from .stubbed import Stub

NOBODY = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
"""Traces are on; nobody takes them."""


ONE_IN_A_HUNDRED = NOBODY | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}


@dataclass(frozen=True)
class Bare(Svc):
    """`svc run` without an observer (`bare.py`)."""

    def command(self, place: Place) -> list[str]:
        return [sys.executable, "-m", "tests.bench.bare", "run"]


Variant = tuple[str, Svc, dict[str, str]]

VARIANTS: list[Variant] = [
    ("nobody looks", Bare("svc-bare", "", ""), {}),
    ("metrics, as it comes (OpenTelemetry installed, off)", SVC, {}),
    ("traces on, none sampled", SVC, NOBODY | {"OTEL_TRACES_SAMPLER": "always_off"}),
    ("traces on, one in a hundred sampled", SVC, ONE_IN_A_HUNDRED),
    ("traces on, all sampled", SVC, NOBODY | {"OTEL_TRACES_SAMPLER": "always_on"}),
    ("CloudWatch", SVC, {"CLOUDWATCH_NAMESPACE": "Bench", "AWS_ENDPOINT_URL_CLOUDWATCH": "http://127.0.0.1:9"}),
]  # fmt: skip


def _processor(title: str, name: str, body: str = PLAIN_BODY) -> Variant:
    return (
        title,
        replace(SVC, body=body),
        {"MESSAGE_PROCESSOR": f"tests.bench.processors:{name}", "MAX_CONCURRENCY": "200"},
    )


EVENT = event_body(json.loads(PLAIN_BODY.replace("{n}", "0")))
"""A detail is JSON, not text: all of them have the same number."""

PROCESSORS: list[Variant] = [
    _processor("one message, on Trio", "nothing"),
    _processor("batches of 10, on Trio", "ten"),
    _processor("batches of 100, on Trio", "hundred"),
    _processor("one message, on asyncio", "nothing_on_asyncio"),
    _processor("batches of 10, on asyncio", "ten_on_asyncio"),
    _processor("batches of 100, on asyncio", "hundred_on_asyncio"),
    _processor("one message, in a thread", "nothing_in_a_thread"),
    _processor("batches of 100, in a thread", "hundred_in_a_thread"),
    _processor("a dict", "a_dict"),
    _processor("a Pydantic model", "a_model"),
    _processor("batches of 100 Pydantic models", "hundred_models"),
    _processor("a Pydantic model from SNS", "from_sns", sns_body(PLAIN_BODY)),
    _processor("a Pydantic model from EventBridge", "from_eventbridge", EVENT),
    _processor("an event of S3", "from_s3", s3_body("orders/1.csv")),
]


def overhead(
    variants: Sequence[Variant], stub: Stub, etcd: str, *, repeats: int, backlog: int, seconds: float, core: int | None
) -> list[dict[str, object]]:
    """For each variant its `title` and the seconds of CPU per message of each run (`cpu_per_message`)."""
    found: list[list[float]] = [[] for _ in variants]
    for repeat in range(repeats):
        turn = list(enumerate(variants))
        for number, (title, consumer, settings) in turn if repeat % 2 == 0 else reversed(turn):
            place = Place(
                stub.url, f"overhead-{number}-{repeat}-{len(variants)}", etcd, {"LOG_LEVEL": "warning", **settings}
            )
            try:
                done = saturate(consumer, stub, place, backlog=backlog, seconds=seconds, core=core)
            except CannotRun as error:
                print(f"{title}: {error}", file=sys.stderr)
                continue
            found[number].append(done.cpu_per_message)
            print(f"        {title:55} {done.cpu_per_message * 1e6:6.1f} µs/message", file=sys.stderr, flush=True)
    return [
        {"title": title, "cpu_per_message": runs} for (title, _, _), runs in zip(variants, found, strict=True) if runs
    ]
