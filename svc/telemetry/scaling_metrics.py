"""Metrics for those who scale: the backlog, and the protection of an ECS task. What is not known is left out."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from svc.telemetry.backlog import BacklogFigures
from svc.telemetry.task_protection import ProtectionSnapshot


def of_the_backlog(held: BacklogFigures | None) -> Iterable[Metric]:
    if held is None:
        return
    yield _gauge(
        "svc_queue_backlog_messages", "Messages that wait in the queue, as SQS says, once a minute.", held.messages
    )
    if held.instances is None or held.per_instance is None:
        return
    yield _gauge(
        "svc_queue_instances",
        "Instances that are registered for this queue; 1 without etcd, however many there are.",
        held.instances,
    )
    yield _gauge(
        "svc_backlog_per_instance_messages",
        "Messages that wait in the queue for each instance; without etcd all of them, because nobody counts the instances.",
        held.per_instance,
    )
    if held.seconds is not None:
        yield _gauge(
            "svc_backlog_seconds",
            "How long the messages that wait will take at the present rate of all instances (without etcd: of this one); "
            "absent while nothing is processed.",
            held.seconds,
        )


def of_the_protection(held: ProtectionSnapshot) -> Iterable[Metric]:
    yield _gauge(
        "svc_task_protected", "1 while the ECS task is protected from scale-in, as far as is known.", held.is_on
    )
    failures = CounterMetricFamily("svc_task_protection_failures", "Questions to the ECS agent that failed.")
    failures.add_metric([], held.failures)
    yield failures


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)
