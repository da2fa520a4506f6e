"""What `GET /metrics` counts: exact in virtual time, named in the reference, and as Prometheus would have it."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from svc import Batch, Message, processor
from svc.core import Core
from svc.database.figures import DatabaseStatistics, PoolStatistics
from svc.settings import load
from svc.telemetry import scaling_metrics
from svc.telemetry.backlog import BacklogFigures
from svc.telemetry.loop_delay import measure_lag
from svc.telemetry.loop_state import loop_state
from svc.telemetry.metrics import Metrics
from svc.telemetry.task_protection import ProtectionSnapshot
from svc.testing import EPOCH, Fault, ScriptedQueue, SimulatedQueue, SimulatedService, SimulatedSwitch
from svc.wakeup import REST, next_tick

REFERENCE = Path(__file__).parent.parent.parent / "docs" / "reference" / "metrics.md"


def new_metrics() -> Metrics:
    """On the clock of the simulated queue."""
    return Metrics("1.2.3", clock=lambda: EPOCH.timestamp() + trio.current_time())


def watched(metrics: Metrics, core: Core, database: DatabaseStatistics | None = None) -> Metrics:
    metrics.look_at(
        lambda: (
            core.worker.statistics(),
            core.gate.statistics(),
            core.manager.state(),
            {"etcd": core.watcher.snapshot().connected, "file": True},
            database,
        ),
        core.defects.counts,
    )
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}


def samples(metrics: Metrics) -> Mapping[str, float]:
    """As in Prometheus' expressions: name{label="value"} → value. Buckets and zeros are left out."""
    found = {}
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.value and not sample.name.endswith("_bucket") and sample.name.startswith("svc_"):
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


async def test_batches_are_counted_by_size_and_reason_and_their_messages_as_any(autojump_clock: MockClock) -> None:
    @processor(batch=4, linger=2)
    async def work(batch: Batch) -> None: ...

    queue, metrics = SimulatedQueue(), new_metrics()
    for number in range(9):
        queue.put(str(number))
    service = SimulatedService(queue, work, make_core=lambda *args, **options: Core(*args, **options, observer=metrics))
    async with service:
        watched(metrics, service.core)
        await service.idle()
        found = samples(metrics)
    assert found['svc_batch_messages_count{reason="size"}'] == 2
    assert found['svc_batch_messages_sum{reason="size"}'] == 8
    assert found['svc_batch_messages_sum{reason="time"}'] == 1
    assert found["svc_message_processing_seconds_count"] == 9
    assert found['svc_messages_total{outcome="processed"}'] == 9


@pytest.mark.expects_errors  # a processor that fails, and a drain that runs out of time
async def test_every_figure_of_a_life_with_a_drain(autojump_clock: MockClock) -> None:
    async def work(message: Message) -> None:
        seconds = message.json()
        await trio.sleep(abs(seconds))
        if seconds < 0:
            raise ValueError("below zero")

    queue = SimulatedQueue(faults=[Fault("error", "delete", nth=1)])
    switch, metrics = SimulatedSwitch(), new_metrics()
    for seconds in (2, 2, -1, 1000):
        queue.put(str(seconds))
    await trio.sleep(3)
    settings = load({"SQS_WAIT_TIME_SECONDS": "5", "DRAIN_TIMEOUT": "10s", "RETRY_BACKOFF": "off"})
    core = Core(settings, queue, work, switch.watcher, observer=metrics)
    watched(metrics, core)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.sleep_until(25)
        switch.set("on")
        await trio.sleep_until(40)
        found = dict(samples(metrics))
        nursery.cancel_scope.cancel()

    receives = found.pop("svc_receive_messages_count")
    assert found.pop('svc_sqs_requests_total{action="receive",result="ok"}') == receives
    assert found.pop('svc_sqs_request_seconds_count{action="receive"}') == receives
    # One brought four at 3; the others waited 5 s each in vain, the last from 23 until 28, when the drain had begun.
    assert receives == 1 + 5
    assert found.pop('svc_sqs_request_seconds_sum{action="receive"}') == 25
    assert found == {
        'svc_build_info{version="1.2.3"}': 1,
        "svc_messages_received_total": 4,
        'svc_messages_total{outcome="processed"}': 2,
        'svc_messages_total{outcome="failed"}': 1,
        'svc_messages_total{outcome="released"}': 1,
        "svc_queue_reachable": 1,
        'svc_breaker{state="closed"}': 1,
        "svc_receive_messages_sum": 4,
        "svc_message_queue_wait_seconds_count": 4,
        "svc_message_queue_wait_seconds_sum": 4 * 3,
        "svc_message_processing_seconds_count": 4,
        # From 3 on; the drain began at 25, and a second before its end the longest was cancelled.
        "svc_message_processing_seconds_sum": 2 + 2 + 1 + 31,
        # Both deletes leave together, after 0.1 s; the first try fails at once.
        'svc_sqs_requests_total{action="delete",result="unavailable"}': 1,
        'svc_sqs_requests_total{action="delete",result="ok"}': 1,
        'svc_sqs_request_seconds_count{action="delete"}': 2,
        'svc_sqs_batch_entries_count{action="delete"}': 2,
        'svc_sqs_batch_entries_sum{action="delete"}': 4,
        # The heartbeat at 23, with a third of the lease left; the release at 34.
        'svc_sqs_requests_total{action="change_visibility",result="ok"}': 2,
        'svc_sqs_request_seconds_count{action="change_visibility"}': 2,
        'svc_sqs_batch_entries_count{action="change_visibility"}': 2,
        'svc_sqs_batch_entries_sum{action="change_visibility"}': 2,
        'svc_lease_extensions_total{result="confirmed"}': 1,
        'svc_sqs_requests_total{action="attributes",result="ok"}': 1,
        'svc_sqs_request_seconds_count{action="attributes"}': 1,
        'svc_settlement_batches_total{reason="time"}': 2,
        'svc_settlement_batches_total{reason="flush"}': 1,
        'svc_phase{phase="maintenance"}': 1,
        "svc_maintenance_requested": 1,
        "svc_etcd_connected": 1,
        "svc_maintenance_file_readable": 1,
        'svc_drains_total{cause="maintenance",outcome="expired"}': 1,
        "svc_drain_seconds_count": 1,
        "svc_drain_seconds_sum": 9,
        'svc_last_drain{outcome="expired"}': 1,
        "svc_last_drain_seconds": 9,
    }


async def test_a_lease_that_is_lost_is_counted_where_it_was_lost(autojump_clock: MockClock) -> None:
    async def for_ever(message: Message) -> None:
        await trio.sleep_forever()

    queue, switch, metrics = ScriptedQueue(), SimulatedSwitch(), new_metrics()
    message = queue.put("taken")
    settings = load({"SQS_VISIBILITY_TIMEOUT_SECONDS": "30", "SQS_WAIT_TIME_SECONDS": "1"})
    core = Core(settings, queue, for_ever, switch.watcher, observer=metrics)
    watched(metrics, core)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.sleep_until(1)
        queue.let_lease_run_out(message)
        await trio.sleep_until(31)
        found = samples(metrics)
        nursery.cancel_scope.cancel()
    assert found['svc_messages_total{outcome="lost"}'] == 1
    assert found['svc_leases_lost_total{during="work"}'] == 1
    assert found['svc_lease_extensions_total{result="refused"}'] >= 2  # tried again until the lease was over


async def test_the_event_loop_s_lag_is_what_a_sleeper_oversleeps() -> None:
    lags: list[float] = []
    metrics = new_metrics()

    def tell(seconds: float) -> None:
        lags.append(seconds)
        metrics.lagged(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(measure_lag, tell, every=0.2))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        while trio.current_time() < began + 0.4:  # a loop without a checkpoint: it holds everything up
            pass
        with trio.fail_after(10):
            while not lags:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert lags[0] >= 0.2  # due after 0.2 s, woken after 0.4 s at the earliest
    assert samples(metrics)["svc_event_loop_lag_seconds_sum"] == pytest.approx(sum(lags))


async def test_an_idle_loop_is_looked_at_rarely_and_no_hold_up_is_missed(autojump_clock) -> None:
    lags: list[float] = []
    state = loop_state()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_lag, lags.append)
        await trio.sleep(10.5)
        passes = state.passes
        await trio.sleep(600)
        assert state.passes - passes <= 2 * 600 / REST + 2  # one of two is this clock's
        assert len(lags) == 610
        assert not any(lags)
        state.longest = 3.0  # it stood for so long, between two looks
        await trio.sleep(10)
        assert sum(lags) == 3.0
        await trio.sleep_until(next_tick(REST) - 1)
        state.longest = 3.0
        autojump_clock.jump(3.0)  # it stands from before the look until after it
        await trio.sleep(10)
        assert sum(lags) == 6.0  # one hold-up, told once
        nursery.cancel_scope.cancel()


# -- names, units, labels --


def everything() -> dict[str, Metric]:
    """Every family that there can be."""
    metrics = new_metrics()
    core = Core(load({}), SimulatedQueue(), _nothing, SimulatedSwitch().watcher, observer=metrics)
    metrics.look_at_more(lambda: scaling_metrics.of_the_backlog(BacklogFigures(0, 1, 0.0)))
    metrics.look_at_more(lambda: scaling_metrics.of_the_protection(ProtectionSnapshot(is_on=False, failures=0)))
    pool = PoolStatistics(True, 3, 2, 1, 10, 0, 12, 4, 0.5, 1)
    return families(watched(metrics, core, DatabaseStatistics("orders at db:5432", pool, None, None)))


async def _nothing(message: Message) -> None:
    pass


def exposed(family: Metric) -> str:
    """The name as it stands in the text and in expressions."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels(family: Metric) -> Iterator[str]:
    for name in sorted({name for sample in family.samples for name in sample.labels} - {"le"}):
        values = sorted({sample.labels[name] for sample in family.samples})
        yield name if name == "version" else f"{name}: {', '.join(values)}"


async def test_names_and_units_follow_prometheus_conventions() -> None:
    for family in everything().values():
        assert re.fullmatch(r"(svc|process|python)_[a-z0-9_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert re.search(r"_(seconds|messages|entries)$", family.name), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|percent|count|sum|bucket|total)$", family.name), family.name


async def test_labels_are_bounded_and_all_their_values_there_from_the_start() -> None:
    for family in everything().values():
        if family.name.startswith("svc_"):
            assert len({tuple(sample.labels.items()) for sample in family.samples}) <= 120, family.name


async def test_the_reference_names_every_metric_with_its_labels() -> None:
    expected = {
        (exposed(family), family.type, "; ".join(labels(family)))
        for family in everything().values()
        if family.name.startswith("svc_")
    }
    expected |= {("svc_last_drain_seconds", "gauge", "")}  # there after the first drain
    rows = re.findall(r"^\| `(svc_\w+)` \| (\w+) \| (.*?) \| .+ \|$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    assert {(name, kind, told.replace("`", "")) for name, kind, told in rows} == expected
