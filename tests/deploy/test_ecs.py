"""docker/ecs-task.json and docker/ecs-scaling.json: their form against AWS's own models, and what they say against what the
service reads, publishes and needs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from svc import service
from svc.settings import Settings, load, queue_address, variable
from svc.telemetry.backlog import BacklogFigures
from svc.telemetry.cloudwatch import Figures, Publisher
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService

ROOT = Path(__file__).parent.parent.parent
TASK: dict[str, Any] = json.loads((ROOT / "docker/ecs-task.json").read_text())
SCALING: dict[str, Any] = json.loads((ROOT / "docker/ecs-scaling.json").read_text())
[CONTAINER] = TASK["containerDefinitions"]
ENVIRON: dict[str, str] = {entry["name"]: entry["value"] for entry in CONTAINER["environment"]}

FARGATE_LONGEST_STOP = 120
"""Seconds (ECS developer guide, "Task definition parameters", stopTimeout)."""


def faults(of: str, operation: str, given: dict[str, Any]) -> str:
    model = ServiceModel(Loader().load_service_model(of, "service-2"), of)
    report: str = ParamValidator().validate(given, model.operation_model(operation).input_shape).generate_report()
    return report


def test_the_forms_are_those_of_aws() -> None:
    assert faults("ecs", "RegisterTaskDefinition", TASK) == ""
    assert faults("application-autoscaling", "PutScalingPolicy", SCALING) == ""


def test_a_wrong_field_would_be_noticed() -> None:
    assert "stopTimout" in faults(
        "ecs", "RegisterTaskDefinition", {**TASK, "containerDefinitions": [{"stopTimout": 1}]}
    )
    assert "TargetValue" in faults(
        "application-autoscaling",
        "PutScalingPolicy",
        {**SCALING, "TargetTrackingScalingPolicyConfiguration": {"TargetValue": "many"}},
    )


def test_its_variables_make_usable_settings() -> None:
    secrets = {entry["name"]: "a-secret-value" for entry in CONTAINER["secrets"]}
    assert {*ENVIRON, *secrets} <= {variable(field) for field in Settings.model_fields}
    settings = load({**ENVIRON, **secrets})
    assert settings.aws_endpoint == ""
    assert settings.aws_region == "eu-central-1"
    assert settings.ecs_task_protection == "on"
    assert not secrets.keys() & ENVIRON.keys()  # a secret stands in no task definition


def test_the_stop_covers_the_drain() -> None:
    assert load(ENVIRON).drain_timeout + 1 + service.CLOSING <= CONTAINER["stopTimeout"] <= FARGATE_LONGEST_STOP


def test_its_health_check_asks_whether_it_lives() -> None:
    """Never /health, and never /health/ready: ECS replaces a task that is not healthy, and it is not ready in maintenance."""
    how, *command = CONTAINER["healthCheck"]["command"]
    assert (how, command[:3]) == ("CMD", ["python", "-IS", "-c"])
    [url] = [
        node.value
        for node in ast.walk(ast.parse(command[3]))
        if isinstance(node, ast.Constant) and "http" in str(node.value)
    ]
    port = CONTAINER["portMappings"][0]["containerPort"]
    assert url == f"http://127.0.0.1:{port}/health/live"
    assert port == Settings().http_port


def test_it_runs_without_root_and_without_capabilities() -> None:
    assert CONTAINER["user"] == "10001:10001"
    assert CONTAINER["readonlyRootFilesystem"] is True
    assert CONTAINER["linuxParameters"] == {"capabilities": {"drop": ["ALL"]}}
    assert [one["containerPath"] for one in CONTAINER["mountPoints"]] == ["/tmp"]


async def test_what_is_tracked_is_published(autojump_clock) -> None:
    """The metric, its namespace, its dimensions and its unit, as this very task publishes it."""
    wanted = SCALING["TargetTrackingScalingPolicyConfiguration"]["CustomizedMetricSpecification"]
    settings = load(ENVIRON)
    async with SimulatedService(SimulatedQueue(), _nothing) as held:
        look = lambda: (held.core.worker.statistics(), held.core.manager.state())  # noqa: E731
        publisher = Publisher(settings, Figures(), look, backlog=lambda: BacklogFigures(600, 3, None))
        data = {datum["MetricName"]: datum for datum in publisher._data(Figures().minute)}
    found = data[wanted["MetricName"]]
    assert found["Value"] == 200
    assert (found["Unit"], found["Dimensions"]) == (wanted["Unit"], wanted["Dimensions"])
    assert wanted["Namespace"] == settings.cloudwatch_namespace
    assert wanted["Statistic"] == "Average"  # every instance tells of the whole queue
    assert wanted["Dimensions"][0]["Value"] == queue_address(settings.sqs_queue_url).name
    assert "BacklogTime" not in data  # not known, so not told
    assert data["Backlog"]["Value"] == 600


async def _nothing(message: object) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "path", ["docker/ecs-task.json", "docker/ecs-scaling.json", "docker/keda.yaml", "docker/kubernetes.yaml"]
)
def test_the_pages_lead_to_it(path: str) -> None:
    pages = [page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md")]
    assert any(path in page for page in pages)
