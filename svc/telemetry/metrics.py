"""`GET /metrics`: what the service counts, in Prometheus' text format.

Two sources. What can be looked at is a snapshot, rendered at the scrape and kept nowhere else (`_Snapshots`). What a later look
cannot know (how long something took, how often it happened) is counted as it happens: `Metrics` is an `observer.Observer`.
Names and units follow Prometheus' conventions; every label has a fixed set of values, and no message, queue or host is one.

The observing methods run for each message: plain additions, which the official client turns into text at the scrape.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, product
from typing import get_args

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from svc.consumer.breaker_state import State
from svc.consumer.ledger import Entry, Outcome
from svc.consumer.observer import Action, BatchReason, Result, Unobserved
from svc.consumer.queue import MAX_BATCH, Received
from svc.consumer.worker import WorkerStatistics
from svc.database.figures import DatabaseStatistics
from svc.defects import Part
from svc.maintenance.gate import GateStatistics
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

WORK = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Seconds: from a processor that only writes to a cache to one that converts a film."""

WAIT = (0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 4 * 24 * 3600)
"""Seconds; SQS keeps messages for four days by default."""

CALL = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
"""Seconds; a long poll lasts up to 25."""

LAG = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
DRAIN = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 300, 900, 3600)
BATCH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
ENTRIES = tuple(range(1, MAX_BATCH + 1))

CAUSES = ("maintenance", "stop")
ENDED = tuple(outcome.value for outcome in DrainOutcome if outcome is not DrainOutcome.RUNNING)
BATCHED: tuple[Action, ...] = ("delete", "change_visibility")

Snapshots = tuple[WorkerStatistics, GateStatistics, MaintenanceState, Mapping[str, bool], DatabaseStatistics | None]
"""The last two: whether what holds the switch can be read, by what it is (`SWITCHES`); and the database, if there is one."""

SWITCHES = {
    "etcd": ("svc_etcd_connected", "1 while the maintenance key is watched."),
    "file": (
        "svc_maintenance_file_readable",
        "1 while MAINTENANCE_FILE can be read; absent with etcd, or without a file.",
    ),
}
"""Where the switch may be held, and the gauge for it."""

_LOST = Outcome.LOST  # of every message: Python 3.11 looks an Enum's member up in Python, each time


class Histogram:
    """Counts values by size. The client's own takes a lock and walks its buckets, 2 µs a value: this one takes a fifth of it, and
    one thread is all that writes here."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        """Upper bounds of the buckets, ascending, each included."""
        self.counts = [0] * (len(self.bounds) + 1)
        """Values in each bucket, and above the last."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics(Unobserved):
    """Observes the work, and renders it together with the snapshots that `look` takes."""

    def __init__(self, version: str, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time, which SQS tells of each message when it was sent."""
        self._version = version
        self._clock = clock
        self.working = Histogram(WORK)
        self.waited = Histogram(WAIT)
        self.batches: dict[BatchReason, Histogram] = {reason: Histogram(BATCH) for reason in get_args(BatchReason)}
        self.brought = Histogram((0, *ENTRIES))
        self.drained = Histogram(DRAIN)
        self.lag = Histogram(LAG)
        self.took = {action: Histogram(CALL) for action in get_args(Action)}
        self.entries: dict[Action, Histogram] = {action: Histogram(ENTRIES) for action in BATCHED}
        self.calls = dict.fromkeys(product(get_args(Action), get_args(Result)), 0)
        self.drains = dict.fromkeys(((cause, outcome) for cause in CAUSES for outcome in ENDED), 0)
        self.extensions = {"confirmed": 0, "refused": 0, "unanswered": 0}
        self.lost = {"work": 0, "settlement": 0}
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Observed(self))

    def look_at(self, look: Callable[[], Snapshots], defects: Mapping[Part, int]) -> None:
        """From now on the snapshots that `look` takes are part of the text, and so are the counts of `defects.Defects`. Once."""
        self._registry.register(_Snapshots(look, defects))

    def look_at_more(self, look: Callable[[], Iterable[Metric]]) -> None:
        """And so are these, from now on: what is there in some set-ups only."""
        self._registry.register(_More(look))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    # -- the observer's side --

    def batch_begins(self, messages: int, reason: BatchReason) -> None:
        self.batches[reason].observe(messages)

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        assert entry.began_at is not None
        assert entry.worked_until is not None
        self.working.observe(entry.worked_until - entry.began_at)

    def ended(self, entry: Entry) -> None:
        if entry.ended is _LOST:
            self.lost["work" if entry.fate is None else "settlement"] += 1

    def extended(self, *, confirmed: int, refused: int, unanswered: int) -> None:
        self.extensions["confirmed"] += confirmed
        self.extensions["refused"] += refused
        self.extensions["unanswered"] += unanswered

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        self.calls[action, result] += 1
        self.took[action].observe(seconds)
        if action in self.entries:
            self.entries[action].observe(entries)

    def received(self, deliveries: Sequence[Received]) -> None:
        self.brought.observe(len(deliveries))
        now = self._clock()
        for delivery in deliveries:
            if (sent_at := delivery.message.sent_at) is not None:
                # SQS's clock against ours: a small difference must not count as a negative time.
                self.waited.observe(max(0.0, now - sent_at.timestamp()))

    def drain_ended(self, report: DrainReport) -> None:
        assert report.ended is not None
        self.drains[report.cause, report.outcome.value] += 1
        self.drained.observe(report.ended - report.began)

    def lagged(self, seconds: float) -> None:
        """The event loop was so late."""
        self.lag.observe(seconds)

    # -- rendering --

    def families(self) -> Iterable[Metric]:
        """Everything observed, as it stands now."""
        yield _gauge("svc_build_info", "Always 1; the version is the label.", {(("version", self._version),): 1})
        yield _histogram(
            "svc_message_processing_seconds", "How long the processor took, however it ended.", self.working
        )
        yield _histogram(
            "svc_message_queue_wait_seconds",
            "How long a message had been in the queue when it was received, since it was sent.",
            self.waited,
        )
        yield _histogram(
            "svc_batch_messages",
            "Messages in one call of a processor of batches, by why the batch left: full, waited long enough, or nothing to wait "
            "for (a drain, every place taken, half of a lease over, the next FIFO group did not fit).",
            {("reason", reason): held for reason, held in self.batches.items()},
        )
        yield _histogram(
            "svc_receive_messages",
            "Messages that a receive brought: its yield; le=0 counts the empty ones.",
            self.brought,
        )
        yield _counter(
            "svc_sqs_requests",
            "Calls to the queue, by what was asked and how it ended.",
            {(("action", action), ("result", result)): count for (action, result), count in self.calls.items()},
        )
        yield _histogram(
            "svc_sqs_request_seconds",
            "How long calls to the queue took; a receive includes its long poll.",
            {("action", action): held for action, held in self.took.items()},
        )
        yield _histogram(
            "svc_sqs_batch_entries",
            "Messages per batch call.",
            {("action", action): held for action, held in self.entries.items()},
        )
        yield _counter(
            "svc_lease_extensions",
            "Leases that were to be extended, by result.",
            {(("result", result),): count for result, count in self.extensions.items()},
        )
        yield _counter(
            "svc_leases_lost",
            "Leases lost, during the work or while its result was settled.",
            {(("during", during),): count for during, count in self.lost.items()},
        )
        yield _counter(
            "svc_drains",
            "Drains that have ended.",
            {(("cause", cause), ("outcome", outcome)): count for (cause, outcome), count in self.drains.items()},
        )
        yield _histogram("svc_drain_seconds", "How long drains took, however they ended.", self.drained)
        yield _histogram(
            "svc_event_loop_lag_seconds", "How much later than asked for a sleeping task woke up.", self.lag
        )


class _Observed(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()


class _More(Collector):
    def __init__(self, look: Callable[[], Iterable[Metric]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        return self._look()


class _Snapshots(Collector):
    def __init__(self, look: Callable[[], Snapshots], defects: Mapping[Part, int]) -> None:
        self._look = look
        self._defects = defects

    def collect(self) -> Iterable[Metric]:
        worker, gate, maintenance, switches, database = self._look()
        yield from _of_the_worker(worker)
        yield _gauge("svc_http_requests_under_way", "Gated requests without an answer yet.", gate.under_way)
        yield _counter("svc_http_requests_turned_away", "Requests answered 503 in maintenance.", gate.turned_away)
        yield from _of_the_maintenance(maintenance)
        for held_in, readable in switches.items():
            yield _gauge(*SWITCHES[held_in], readable)
        if database is not None:
            yield from _of_the_database(database)
        yield _counter(
            "svc_internal_errors",
            "Exceptions that nobody expected, defects of the service, by the part in which one call failed by them.",
            {(("part", part),): count for part, count in self._defects.items()},
        )


def _of_the_worker(worker: WorkerStatistics) -> Iterable[Metric]:
    counts = worker.counts
    yield _counter("svc_messages_received", "Deliveries received from the queue.", counts.received)
    yield _counter(
        "svc_messages",
        "Deliveries by how they ended.",
        {(("outcome", outcome.value),): getattr(counts, outcome.value) for outcome in Outcome},
    )
    yield _counter(
        "svc_duplicates",
        "Of the deliveries processed: deleted without a call of the processor, their effects had been committed before.",
        worker.duplicates,
    )
    yield _gauge("svc_messages_in_flight", "Deliveries received and not ended.", counts.in_flight)
    yield _gauge("svc_receives_outstanding", "Receives on the wire.", worker.receives_outstanding)
    yield _gauge("svc_queue_reachable", "1 unless receives fail.", worker.queue_error is None)
    if worker.breaker is not None:
        yield _gauge(
            "svc_breaker",
            "1 for the state that the circuit breaker is in.",
            {(("state", state.value),): worker.breaker.state is state for state in State},
        )
        yield _counter("svc_breaker_opened", "How often the circuit breaker has opened.", worker.breaker.opened)
    yield _counter(
        "svc_settlement_batches",
        "Batches of deletes and releases by why they left: full, waited long enough, or nothing else to wait for.",
        {(("reason", reason),): count for reason, count in worker.batches.items()},
    )


def _of_the_database(database: DatabaseStatistics) -> Iterable[Metric]:
    pool = database.pool
    yield _gauge("svc_database_reachable", "1 unless the database is needed and is not there.", database.error is None)
    yield _gauge(
        "svc_database_connections",
        "Connections of the pool.",
        {(("state", "in_use"),): pool.in_use, (("state", "idle"),): pool.idle},
    )
    yield _gauge("svc_database_connections_limit", "How many there may be at once.", pool.most)
    yield _gauge("svc_database_waiting", "Who waits for a connection.", pool.waiting)
    yield _counter("svc_database_requests", "How often a connection was asked for.", pool.requests)
    yield _counter("svc_database_waits", "How often a connection had to be waited for.", pool.waits)
    yield _counter("svc_database_wait_seconds", "How long connections were waited for altogether.", pool.wait_seconds)
    yield _counter(
        "svc_database_errors",
        "How often no connection was free in time, or could be made, or one was lost.",
        pool.errors,
    )


def _of_the_maintenance(state: MaintenanceState) -> Iterable[Metric]:
    yield _gauge(
        "svc_phase",
        "1 for the phase that the service is in.",
        {(("phase", phase.value),): state.phase is phase for phase in Phase},
    )
    yield _gauge(
        "svc_maintenance_requested",
        "1 while the maintenance key, as last read, asks for maintenance.",
        state.switch is not None and state.switch.on,
    )
    report = state.drain
    part = report.handlers.get("sqs", {}) if report is not None and report.ended is not None else {}
    yield _gauge(
        "svc_last_drain_unsettled_messages",
        "Messages whose delete or release the queue had not confirmed when the last drain ended.",
        _how_many(part.get("unsettled")),
    )
    yield _gauge(
        "svc_last_drain_unlanded_receives",
        "Receives that had no answer when the last drain ended.",
        _how_many(part.get("receives_unlanded")),
    )
    yield _gauge(
        "svc_last_drain",
        "1 for the outcome of the running or last drain.",
        {(("outcome", outcome.value),): report is not None and report.outcome is outcome for outcome in DrainOutcome},
    )
    if report is not None and report.ended is not None:
        yield _gauge("svc_last_drain_seconds", "Duration of the last drain.", report.ended - report.began)


def _how_many(figure: object) -> int:
    if isinstance(figure, int):
        return figure
    return len(figure) if isinstance(figure, tuple) else 0


Label = tuple[str, str]
"""Name and value."""

Samples = float | Mapping[tuple[Label, ...], float]
"""One value, or one for each combination of labels."""


def _gauge(name: str, text: str, samples: Samples) -> Metric:
    return _fill(GaugeMetricFamily(name, text), samples)


def _counter(name: str, text: str, samples: Samples) -> Metric:
    return _fill(CounterMetricFamily(name, text), samples, "_total")


def _fill(family: Metric, samples: Samples, suffix: str = "") -> Metric:
    for labels, value in samples.items() if isinstance(samples, Mapping) else [((), samples)]:
        family.add_sample(family.name + suffix, dict(labels), float(value))
    return family


def _histogram(name: str, text: str, held: Histogram | Mapping[Label, Histogram]) -> Metric:
    by_label: Mapping[Label | None, Histogram] = {None: held} if isinstance(held, Histogram) else dict(held.items())
    family = HistogramMetricFamily(name, text, labels=[label[0] for label in list(by_label)[:1] if label])
    for label, one in by_label.items():
        least = [*(repr(float(bound)) for bound in one.bounds), "+Inf"]
        buckets = list(zip(least, accumulate(one.counts), strict=True))
        family.add_metric([label[1]] if label else [], buckets, one.total)
    return family
