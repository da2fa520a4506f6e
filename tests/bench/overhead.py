"""What it costs to be seen: CPU per message of `svc run` with nobody looking, with its metrics, with traces, and with
CloudWatch; in turn, within one run, so that the ratios can be trusted where the figures cannot."""

import sys
from dataclasses import dataclass

from .consumers import SVC, CannotRun, Place, Svc
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


VARIANTS: list[tuple[str, Svc, dict[str, str]]] = [
    ("nobody looks", Bare("svc-bare", "", ""), {}),
    ("metrics, as it comes (OpenTelemetry installed, off)", SVC, {}),
    ("traces on, none sampled", SVC, NOBODY | {"OTEL_TRACES_SAMPLER": "always_off"}),
    ("traces on, one in a hundred sampled", SVC, ONE_IN_A_HUNDRED),
    ("traces on, all sampled", SVC, NOBODY | {"OTEL_TRACES_SAMPLER": "always_on"}),
    ("CloudWatch", SVC, {"CLOUDWATCH_NAMESPACE": "Bench", "AWS_ENDPOINT_URL_CLOUDWATCH": "http://127.0.0.1:9"}),
]  # fmt: skip


def overhead(
    stub: Stub, etcd: str, *, repeats: int, backlog: int, seconds: float, core: int | None
) -> list[dict[str, object]]:
    """For each variant its `title` and the seconds of CPU per message of each run (`cpu_per_message`)."""
    found: list[list[float]] = [[] for _ in VARIANTS]
    for repeat in range(repeats):
        turn = list(enumerate(VARIANTS))
        for number, (title, consumer, settings) in turn if repeat % 2 == 0 else reversed(turn):
            place = Place(stub.url, f"overhead-{number}-{repeat}", etcd, {"LOG_LEVEL": "warning", **settings})
            try:
                done = saturate(consumer, stub, place, backlog=backlog, seconds=seconds, core=core)
            except CannotRun as error:
                print(f"{title}: {error}", file=sys.stderr)
                continue
            found[number].append(done.cpu_per_message)
            print(f"        {title:55} {done.cpu_per_message * 1e6:6.1f} µs/message", file=sys.stderr, flush=True)
    return [
        {"title": title, "cpu_per_message": runs} for (title, _, _), runs in zip(VARIANTS, found, strict=True) if runs
    ]
