"""docs/reference/metrics.md, from what a scrape shows, and docs/reference/alerts.md, from `docker/alerts.yml`."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import trio
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from docs.generate.markdown import code, fenced, head, joined, table
from svc.core import Core
from svc.database.figures import DatabaseStatistics, PoolStatistics
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.processors import Message
from svc.settings import load
from svc.telemetry import scaling_metrics
from svc.telemetry.backlog import BacklogFigures
from svc.telemetry.metrics import SWITCHES, Metrics
from svc.telemetry.task_protection import ProtectionSnapshot
from svc.testing import SimulatedQueue, SimulatedSwitch

ALERTS = Path(__file__).parent.parent.parent / "docker" / "alerts.yml"


def metrics_page() -> str:
    return head(
        "Metrics",
        "svc/telemetry/metrics.py",
        "`GET /metrics` answers in every phase, in maintenance too, in Prometheus' text format. Beside these there are the "
        "metrics of the process (`process_…`, `python_…`). A label has the values that are listed and no others: no label "
        "holds a message id, a queue or a host.",
        table(
            ("metric", "type", "labels", "meaning"),
            (
                (code(exposed(one)), one.type, "; ".join(labels(one)), one.documentation)
                for one in trio.run(_families)
                if one.name.startswith("svc_")
            ),
        ).rstrip(),
        "What to look at first: [Observe](../observe.md#metrics).",
    )


async def _families() -> list[Metric]:
    """Of an instance that has drained once: some metrics are absent before."""
    metrics = Metrics("version")
    core = Core(load({}), SimulatedQueue(), _nothing, SimulatedSwitch().watcher, observer=metrics)
    ended = DrainReport(cause="maintenance", began=0, deadline=30, outcome=DrainOutcome.DRAINED, ended=1)
    state = replace(core.manager.state(), drain=ended)
    metrics.look_at(
        lambda: (core.worker.statistics(), core.gate.statistics(), state, dict.fromkeys(SWITCHES, True), _DATABASE),
        core.defects.counts,
    )
    metrics.look_at_more(lambda: scaling_metrics.of_the_backlog(BacklogFigures(0, 1, 0.0)))
    metrics.look_at_more(lambda: scaling_metrics.of_the_protection(ProtectionSnapshot(is_on=False, failures=0)))
    return list(text_string_to_metric_families(metrics.text().decode()))


_DATABASE = DatabaseStatistics("orders at db:5432", PoolStatistics(True, 3, 2, 1, 10, 0, 12, 4, 0.5, 1), None, None)


async def _nothing(message: Message) -> None:
    pass


def exposed(family: Metric) -> str:
    """The name as it stands in the text and in expressions."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels(family: Metric) -> Iterator[str]:
    for name in sorted({name for sample in family.samples for name in sample.labels} - {"le"}):
        values = sorted({sample.labels[name] for sample in family.samples})
        yield name if name == "version" else f"{name}: {', '.join(values)}"


def alerts_page() -> str:
    text = ALERTS.read_text("utf-8")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    when = dict(re.findall(r"# Fires when (.+)\n +- alert: (\w+)", text))
    meaning = {name: sentence for sentence, name in when.items()}
    parts = [
        head(
            "Alerts",
            "docker/alerts.yml",
            "The rules expect the job to be named `svc`. Thresholds are a beginning: what is late, or too much, is yours to "
            "decide. How to load them: [Observe](../observe.md#alerts-and-a-dashboard).",
            table(
                ("alert", "fires when", "severity"),
                ((code(one["alert"]), meaning[one["alert"]], one["labels"]["severity"]) for one in rules),
            ).rstrip(),
        )
    ]
    for one in rules:
        lasting = f"For {one['for']} at least:" if "for" in one else "At once:"
        parts.append(f"## {one['alert']}\n\n{one['annotations']['what_to_do']}\n\n{lasting}\n")
        parts.append(fenced(re.sub(r" (or|and on) ", r"\n\1 ", one["expr"].strip()), "text"))
    return joined(parts)
