"""`GET /metrics`: the snapshots as Prometheus metrics, made at the scrape. Nothing is counted here."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from svc.core import WatcherSnapshot
from svc.gate import GateStatistics
from svc.maintenance import DrainOutcome, MaintenanceState, Phase
from svc.worker import WorkerStatistics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Snapshots = tuple[WorkerStatistics, GateStatistics, MaintenanceState, WatcherSnapshot]


class _Snapshots(Collector):
    def __init__(self, look: Callable[[], Snapshots], version: str) -> None:
        self._look = look
        self._version = version

    def collect(self) -> Iterable[Metric]:
        worker, gate, maintenance, etcd = self._look()
        counts = worker.counts
        yield _gauge("svc_build_info", "Version of the service.", [({"version": self._version}, 1)])
        yield _counter("svc_messages_received", "Deliveries received from the queue.", [({}, counts.received)])
        outcomes = ("processed", "failed", "released", "rejected", "lost")
        yield _counter(
            "svc_messages",
            "Deliveries by how they ended.",
            [({"outcome": outcome}, getattr(counts, outcome)) for outcome in outcomes],
        )
        yield _gauge("svc_messages_in_flight", "Deliveries received and not ended.", [({}, counts.in_flight)])
        yield _gauge("svc_receives_outstanding", "Receives on the wire.", [({}, worker.receives_outstanding)])
        yield _gauge("svc_queue_reachable", "1 unless receives fail.", [({}, worker.queue_error is None)])
        yield _gauge("svc_http_requests_under_way", "Gated requests without an answer yet.", [({}, gate.under_way)])
        yield _counter(
            "svc_http_requests_turned_away", "Requests answered 503 in maintenance.", [({}, gate.turned_away)]
        )
        yield _gauge(
            "svc_phase",
            "1 for the phase that the service is in.",
            [({"phase": phase.value}, maintenance.phase is phase) for phase in Phase],
        )
        yield _gauge("svc_etcd_connected", "1 while the maintenance key is watched.", [({}, etcd.connected)])
        report = maintenance.drain
        yield _gauge(
            "svc_last_drain",
            "1 for the outcome of the running or last drain.",
            [
                ({"outcome": outcome.value}, report is not None and report.outcome is outcome)
                for outcome in DrainOutcome
            ],
        )
        if report is not None and report.ended is not None:
            yield _gauge("svc_last_drain_seconds", "Duration of the last drain.", [({}, report.ended - report.began)])


def _gauge(name: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
    return _fill(GaugeMetricFamily(name, text), samples)


def _counter(name: str, text: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
    return _fill(CounterMetricFamily(name, text), samples, "_total")


def _fill(family: Metric, samples: list[tuple[dict[str, str], float]], suffix: str = "") -> Metric:
    for labels, value in samples:
        family.add_sample(family.name + suffix, labels, float(value))
    return family


class Metrics:
    """Renders the snapshots that `look` takes."""

    def __init__(self, look: Callable[[], Snapshots], version: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Snapshots(look, version))

    def text(self) -> bytes:
        return generate_latest(self._registry)
