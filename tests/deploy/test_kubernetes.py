"""docker/kubernetes.yaml: its form against Kubernetes' own schemas, and what it says against what the service reads."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from svc import service
from svc.settings import Settings, load, variable
from svc.telemetry import scaling_metrics
from svc.telemetry.backlog import BacklogFigures

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "docker/kubernetes.yaml").read_text()))
OLDEST = "1.30"
"""The oldest Kubernetes that the file says it is for."""


def document(kind: str) -> dict[str, Any]:
    (found,) = [one for one in DOCUMENTS if one["kind"] == kind]
    return found


POD = document("Deployment")["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", [one["kind"] for one in DOCUMENTS])
def test_the_form_is_that_of_kubernetes(kind: str, version: str) -> None:
    kubernetes_validate.validate(document(kind), version, strict=True)


def test_a_wrong_field_would_be_noticed() -> None:
    wrong = {**document("PodDisruptionBudget"), "spec": {"maxUnavailabel": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_its_variables_make_usable_settings() -> None:
    environ = {**document("ConfigMap")["data"], **document("Secret")["stringData"]}
    environ |= {entry["name"]: "pod-1" for entry in CONTAINER["env"]}
    assert set(environ) <= {variable(field) for field in Settings.model_fields}
    settings = load(environ)
    assert settings.aws_endpoint == ""


def test_services_of_the_namespace_do_not_become_settings() -> None:
    """A Service named `http` would set HTTP_PORT to `tcp://10.0.0.1:80`."""
    assert POD["enableServiceLinks"] is False


def test_the_grace_period_covers_the_drain() -> None:
    settings = load(document("ConfigMap")["data"])
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= before + settings.drain_timeout + 1 + service.CLOSING


def test_labels_select_the_pods_and_probes_ask_what_there_is() -> None:
    labels = document("Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert document(kind)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert document("Service")["spec"]["selector"].items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": Settings().http_port}
    paths = {probe: CONTAINER[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert {probe: asked["path"] for probe, asked in paths.items()} == {
        "startup": "/health/live",
        "liveness": "/health/live",  # never /health: a restart would throw the work in flight away
        "readiness": "/health/ready",
    }
    assert {asked["port"] for asked in paths.values()} == set(ports)


def test_what_keda_scales_by_is_there() -> None:
    """KEDA's schema is that of its cluster; what it can be held to without one: the target, its form, the metrics."""
    scaled = yaml.safe_load((ROOT / "docker/keda.yaml").read_text())
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"] == {"name": document("Deployment")["metadata"]["name"]}
    assert 0 < scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]
    known = {one.name for one in scaling_metrics.of_the_backlog(BacklogFigures(6, 3, 1.0))}
    for trigger in scaled["spec"]["triggers"]:
        held = trigger["metadata"]
        assert trigger["type"] == "prometheus"
        assert all(isinstance(value, str) for value in held.values())
        assert float(held["threshold"]) > 0
        assert held["ignoreNullValues"] == "false"  # what is not known scales nothing
        assert set(re.findall(r"svc_\w+", held["query"])) <= known
        # A total is for each pod; what is a mean already is compared as it is.
        assert trigger["metricType"] == ("AverageValue" if "backlog_messages" in held["query"] else "Value")


def test_it_runs_without_root_and_without_capabilities() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    held = CONTAINER["securityContext"]
    assert held["readOnlyRootFilesystem"]
    assert held["capabilities"] == {"drop": ["ALL"]}
    assert not held["allowPrivilegeEscalation"]
