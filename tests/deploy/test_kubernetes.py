"""docker/kubernetes.yaml: its form against Kubernetes' own schemas, and what it says against what the service reads."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from svc import service
from svc.settings import Settings, load, variable
from svc.sqs import permissions
from svc.telemetry import scaling_metrics
from svc.telemetry.backlog import BacklogFigures
from tests.deploy.test_ecs import ENVIRON
from tests.telemetry.test_observe import promtool

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


def test_its_role_may_reach_the_dead_letter_queue() -> None:
    """The role has the policy that `svc iam` prints for these variables. ECS's file names the same queues."""
    data = document("ConfigMap")["data"]
    statements = {one["Sid"]: one for one in permissions.policy(load(data), permissions.Asked())["Statement"]}
    assert statements["DeadLetters"]["Resource"] == "arn:aws:sqs:eu-central-1:123456789012:orders-dlq"
    assert {name: data[name] for name in ("SQS_QUEUE_URL", "SQS_DLQ_NAME")} == {
        name: ENVIRON[name] for name in ("SQS_QUEUE_URL", "SQS_DLQ_NAME")
    }


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


KEDA: dict[str, Any] = yaml.safe_load((ROOT / "docker/keda.yaml").read_text())

SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {"name": {"type": "string"}},
                },
                "minReplicaCount": {"type": "integer"},
                "maxReplicaCount": {"type": "integer"},
                "triggers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "prometheus"},
                            "metricType": {"enum": ["Value", "AverageValue"]},
                            "metadata": {
                                "type": "object",
                                "required": ["serverAddress", "query", "threshold"],
                                "additionalProperties": False,
                                "properties": {
                                    name: {"type": "string"}
                                    for name in ("serverAddress", "query", "threshold", "ignoreNullValues")
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What of a ScaledObject we use: kedacore/keda, config/crd/bases/keda.sh_scaledobjects.yaml (commit 756b2de), and of the
trigger's metadata what KEDA's page on its scaler "Prometheus" names; a trigger's metadata takes texts only."""


def test_the_form_is_that_of_keda() -> None:
    judge = jsonschema.Draft202012Validator(SCALED_OBJECT)
    assert [fault.message for fault in judge.iter_errors(KEDA)] == []
    for wrong in ("minReplicas", "scaleTarget"):
        assert not judge.is_valid({**KEDA, "spec": {**KEDA["spec"], wrong: 1}})
    number = {**KEDA["spec"]["triggers"][0]["metadata"], "threshold": 200}
    assert not judge.is_valid(
        {**KEDA, "spec": {**KEDA["spec"], "triggers": [{"type": "prometheus", "metadata": number}]}}
    )


def test_prometheus_answers_keda_with_one_figure(tmp_path: Path) -> None:
    """Of three pods, all of which tell of the whole queue and one of which is behind; and with none where nothing is known."""
    queries = [trigger["metadata"]["query"] for trigger in KEDA["spec"]["triggers"]]
    told = {"svc_queue_backlog_messages": ("600", "600", "540"), "svc_backlog_seconds": ("90", "100", "110")}
    series = [
        {"series": f'{name}{{job="svc", instance="{number}"}}', "values": f"{value} {value} stale"}
        for name, values in told.items()
        for number, value in enumerate(values)
    ]
    answers = [
        {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}] if at == "1m" else []}
        for query, value in zip(queries, (600, 100), strict=True)
        for at in ("1m", "3m")
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": answers}
    (tmp_path / "keda.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    promtool("test", "rules", tmp_path / "keda.yml")


def test_what_keda_scales_by_is_there() -> None:
    scaled = KEDA
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
