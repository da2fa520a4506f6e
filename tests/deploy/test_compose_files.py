"""What can be said of compose.yml, docker/ and .dockerignore without a container engine."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from svc import service
from svc.api import app as api
from svc.settings import Settings, load, seconds, variable

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("sqs-service", "sqs-init", "sqs-orders", "sqs-orders-init")
OBSERVE = ("prometheus", "grafana")
DATABASE = ("sqs-orders", "sqs-orders-init", "postgres")
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
(IMAGE_PYTHON,) = set(re.findall(r"^FROM python:(3\.\d+)-slim", DOCKERFILE, re.MULTILINE))
OTEL_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
AWS_CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def environ(name: str) -> dict[str, str]:
    """The environment of a service, without the variables that are handed through from the shell."""
    return {key: str(value) for key, value in SERVICES[name]["environment"].items() if value is not None}


def image_environ() -> dict[str, str]:
    """The last ENV of the Dockerfile: that of the final stage."""
    text = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)[-1]
    return dict(pair.split("=", 1) for pair in text.replace("\\\n", " ").split())


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / "docker" / file).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


# -- compose.yml --


def test_the_services_are_those_that_the_documented_commands_name() -> None:
    plain = {"sqs-service", "sqs-front", "sqs-init", "localstack", "sqs-etcd", "queue-debug"}
    assert set(SERVICES) == {*plain, *OBSERVE, *DATABASE}
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["database"]} == set(DATABASE)
    assert {name for name in SERVICES if SERVICES[name].get("profiles") == ["observe"]} == set(OBSERVE)
    assert "etcd" in SERVICES["sqs-etcd"]["networks"]["default"]["aliases"]


def test_the_promised_ports_are_open_on_this_machine_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "sqs-front": ["127.0.0.1:8082:8082"],  # sqs-service publishes none, so that it can be scaled
        "localstack": ["127.0.0.1:4566:4566"],
        "sqs-etcd": ["127.0.0.1:2399:2379", "127.0.0.1:2400:2380"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


@pytest.mark.parametrize("name", OURS)
def test_every_environment_variable_is_one_that_the_service_reads(name: str) -> None:
    known = {variable(field) for field in Settings.model_fields}
    assert set(SERVICES[name]["environment"]) - AWS_CREDENTIALS - {OTEL_ENDPOINT} <= known
    assert set(environ(name)) >= AWS_CREDENTIALS


def test_the_settings_are_usable_and_name_the_other_services() -> None:
    settings = load(image_environ() | environ("sqs-service"))
    assert settings.http_host == "0.0.0.0"
    assert settings.http_port == 8082
    # What a command such as `etcdctl put /maintenance/sqs-service true` relies on.
    for field in ("sqs_queue_url", "aws_endpoint", "etcd_endpoints", "maintenance_key"):
        assert getattr(settings, field) == getattr(load({}), field)


def test_init_creates_the_queue_of_the_service_and_a_dead_letter_queue() -> None:
    settings = load(environ("sqs-init"))
    assert settings.sqs_queue_url == load(environ("sqs-service")).sqs_queue_url
    assert settings.sqs_dlq_name
    assert SERVICES["sqs-init"]["command"] == ["init", "--messages", "3"]
    assert SERVICES["sqs-init"]["restart"] == "no"


def test_orders_have_a_queue_a_key_and_a_database_of_their_own() -> None:
    settings = load(image_environ() | environ("sqs-orders"))
    assert settings.sqs_queue_url == load(environ("sqs-orders-init")).sqs_queue_url
    assert settings.sqs_queue_url != load(environ("sqs-service")).sqs_queue_url
    assert settings.maintenance_key != load(environ("sqs-service")).maintenance_key
    assert settings.database_url is not None
    assert environ("sqs-orders")["DATABASE_PASSWORD"] == environ("postgres")["POSTGRES_PASSWORD"]
    assert SERVICES["sqs-orders"]["build"]["args"] == {"EXTRA": "database"}


def test_the_service_has_more_time_to_stop_than_a_drain_and_its_end_take() -> None:
    settings = load(environ("sqs-service"))
    grace = seconds(SERVICES["sqs-service"]["stop_grace_period"])
    assert isinstance(grace, float)
    # As service.py arms its own hard end: 1 s for what the drain itself may overrun.
    assert grace > settings.drain_timeout + 1 + service.CLOSING + api.GRACE
    # Handed through from a shell, it would outgrow the grace period unnoticed.
    assert SERVICES["sqs-service"]["environment"]["DRAIN_TIMEOUT"] is not None


@pytest.mark.parametrize("name", [*OURS, "sqs-etcd", "queue-debug", "postgres", *OBSERVE])
def test_hardened(name: str) -> None:
    assert SERVICES[name]["read_only"] is True
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", OURS)
def test_the_service_can_write_to_tmp_and_nowhere_else(name: str) -> None:
    assert SERVICES[name]["tmpfs"] == ["/tmp"]
    assert "volumes" not in SERVICES[name]


def test_whatever_is_waited_for_can_be_waited_for() -> None:
    waited_for = [
        (name, condition["condition"])
        for parts in SERVICES.values()
        for name, condition in parts.get("depends_on", {}).items()
    ]
    assert ("sqs-init", "service_completed_successfully") in waited_for
    for name, condition in waited_for:
        if condition == "service_healthy":
            in_image = name in OURS and "HEALTHCHECK" in DOCKERFILE
            assert in_image or "test" in SERVICES[name]["healthcheck"], name


def test_localstack_is_healthy_only_once_its_sqs_is_loaded() -> None:
    # /_localstack/health is 200 before; the first call then took up to 5 s, which is as long as `svc init` waits.
    assert "Action=ListQueues" in SERVICES["localstack"]["healthcheck"]["test"][-1]


def test_nothing_stands_in_the_way_of_a_second_instance() -> None:
    for name, parts in SERVICES.items():
        assert "container_name" not in parts, name


def test_images_are_pinned_and_volumes_named() -> None:
    for name, parts in SERVICES.items():
        assert re.search(r":(v?\d+\.\d+(\.\d+)?|local)$", parts["image"]), name
    assert SERVICES["localstack"]["image"] == "localstack/localstack:4.14.0"
    etcd = re.fullmatch(r"quay\.io/coreos/etcd:v3\.5\.(\d+)", SERVICES["sqs-etcd"]["image"])
    assert etcd is not None
    assert int(etcd[1]) >= 9
    volumes = [volume.split(":") for parts in SERVICES.values() for volume in parts.get("volumes", [])]
    assert {source for source, *_ in volumes if not source.startswith("./")} == set(COMPOSE["volumes"])
    for source, _, *mode in volumes:
        if source.startswith("./"):
            assert (ROOT / source).is_file()
            assert mode == ["ro"]


# -- docker/ --


@pytest.mark.parametrize(
    "file", ["constraints.txt", "constraints-otel.txt", "constraints-database.txt", "build-constraints.txt"]
)
def test_constraints_hold_nothing_but_pins(file: str) -> None:
    for line in (ROOT / "docker" / file).read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
        assert "://" not in line
        assert " @ " not in line


@pytest.mark.parametrize(("table", "file"), [("project", "constraints.txt"), ("build-system", "build-constraints.txt")])
def test_every_dependency_is_pinned_within_its_range(table: str, file: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] if table == "project" else project["build-system"]["requires"]
    pinned = pins(file)
    there = {"python_version": IMAGE_PYTHON, "python_full_version": f"{IMAGE_PYTHON}.0"}
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate(there):
            continue  # of another Python
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("extra", ["otel", "database"])
def test_the_extras_of_the_image_are_pinned_beside_the_rest(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    more = pins(f"constraints-{extra}.txt")
    assert not set(more) & set(pins("constraints.txt"))
    for requirement in map(Requirement, project["optional-dependencies"][extra]):
        assert requirement.specifier.contains(more[canonicalize_name(requirement.name)]), requirement


def test_no_development_tool_is_in_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = {
        canonicalize_name(Requirement(line).name)
        for lines in project["optional-dependencies"].values()
        for line in lines
    } - {"svc", *(canonicalize_name(Requirement(line).name) for line in project["dependencies"])}
    assert not tools & set(pins("constraints.txt"))


def test_the_image_runs_without_root_and_takes_signals_itself() -> None:
    final = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER [1-9]\d*(:\d+)?$", final, re.MULTILINE)
    # Exec form: no shell between the signal and the service; env(1) is gone when svc runs.
    assert 'ENTRYPOINT ["env", "--block-signal=TERM,INT", "svc"]\nCMD ["run"]' in final
    assert "HEALTHCHECK" in final
    assert not DOCKERFILE.startswith("# syntax")


def test_the_build_sees_every_file_that_it_copies() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    seen = {line[1:] for line in ignore if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert seen == {path for paths in copied for path in paths.split()}
    for path in seen:
        assert (ROOT / path).exists(), path
