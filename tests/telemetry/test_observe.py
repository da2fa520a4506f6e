"""docker/: what Prometheus and Grafana are given. Alerts fire, expressions parse, and both use metrics that there are.

promtool is the judge of rules and expressions (Debian's package `prometheus` has it). Without it these tests are skipped, except
where CI=true says that it has to be there.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from svc.settings import load
from tests.telemetry.test_metrics import everything

DOCKER = Path(__file__).parent.parent.parent / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER.parent / "compose.yml").read_text())["services"]
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/svc.json").read_text())


def promtool(*arguments: str | Path) -> str:
    found = shutil.which("promtool")
    if found is None:
        why = "promtool is not installed: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    ran = subprocess.run([found, *arguments], cwd=DOCKER, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def expressions() -> Iterator[str]:
    """Every PromQL expression, with Grafana's variables filled in."""
    yield from (rule["expr"] for rule in ALERTS)
    written = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    written += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    for text in written:
        filled = text.replace("$__rate_interval", "1m").replace("$job", "svc").replace("$instance", ".*")
        assert "$" not in filled
        yield filled


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_in_its_test_and_is_silent_before() -> None:
    promtool("test", "rules", "alerts_test.yml")
    looks = [
        look
        for test in yaml.safe_load((DOCKER / "alerts_test.yml").read_text())["tests"]
        for look in test["alert_rule_test"]
    ]
    for firing in (True, False):
        names = {look["alertname"] for look in looks if bool(look["exp_alerts"]) is firing}
        assert names == {rule["alert"] for rule in ALERTS}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "what_to_do"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_reference_lists_the_alerts() -> None:
    reference = (DOCKER.parent / "docs" / "reference" / "alerts.md").read_text("utf-8")
    rows = re.findall(r"^\| `(Svc\w+)` \| .+ \| (\w+) \|$", reference, re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS]


def test_every_expression_parses(tmp_path: Path) -> None:
    rules = [{"record": f"check:number:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "check", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")


async def test_expressions_use_metrics_and_labels_that_a_scrape_has() -> None:
    there: dict[str, dict[str, set[str]]] = {
        "svc_last_drain_seconds": {},
        "up": {},
    }  # the first: once there was a drain
    for family in everything().values():
        for sample in family.samples:
            labels = there.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    used = set()
    for text in expressions():
        for name, matchers in re.findall(r"\b((?:svc|process|python)_[a-z_]+|up)\b(?:\{([^}]*)\})?", text):
            assert name in there, f"{name} in: {text}"
            used.add(name)
            for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"', matchers):
                if label in ("job", "instance"):
                    continue
                values = value.split("|") if operator == "=~" else [value]
                assert set(values) <= there[name].get(label, set()), f"{label}{operator}{value} in: {text}"
    assert len(used) > 20


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((DOCKER / "grafana/datasource.yml").read_text())["datasources"]
    (port,) = COMPOSE["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{port.rpartition(':')[2]}"
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row"} == {source["uid"]}
    (provider,) = yaml.safe_load((DOCKER / "grafana/dashboards.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["grafana"]["volumes"])
    assert mounts["./docker/grafana/svc.json"].startswith(provider["options"]["path"] + "/")


def test_prometheus_scrapes_every_instance_of_compose() -> None:
    (scrape,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (names,) = scrape["dns_sd_configs"]
    assert names["names"] == ["sqs-service"]
    assert names["names"][0] in COMPOSE
    assert names["port"] == load({}).http_port
    assert scrape["job_name"] == "svc"  # as in alerts.yml
