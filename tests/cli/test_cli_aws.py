"""The command line beside AWS itself: what is refused, what is resolved, what is warned of. Nothing is sent anywhere."""

from pathlib import Path

from tests.cli.test_cli import NOWHERE, surroundings, svc

__all__ = ["surroundings"]  # a fixture

URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders"


async def test_the_simulated_processor_is_refused_at_aws(surroundings: dict[str, str]) -> None:
    """It deletes what somebody needs."""
    ended = await svc("run", environ={**surroundings, "SQS_QUEUE_URL": URL, "ETCD_ENDPOINTS": NOWHERE})
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert line.startswith("svc: MESSAGE_PROCESSOR is not set; against AWS itself it must be module:attribute")
    assert "svc.processors:simulated, on purpose" in line


async def test_config_tells_what_was_resolved_and_from_where(surroundings: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "aws-config"
    config.write_text("[profile prod]\nregion = sa-east-1\n")
    more = {"SQS_QUEUE": "orders", "AWS_PROFILE": "prod", "AWS_CONFIG_FILE": str(config)}
    ended = await svc("config", environ={**surroundings, **more})
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert {"SQS_QUEUE_URL=orders", "AWS_REGION=sa-east-1", "AWS_ENDPOINT="} <= set(lines)
    assert [line for line in lines if line.startswith("# ")] == [
        "# SQS_QUEUE_URL: from SQS_QUEUE",
        "# SQS_QUEUE: set",
        "# AWS_ENDPOINT: from the region",
        "# AWS_REGION: from the profile",
        "# requests go to https://sqs.sa-east-1.amazonaws.com",
    ]


async def test_a_region_that_contradicts_the_queue_is_exit_code_2(surroundings: dict[str, str]) -> None:
    ended = await svc("config", environ={**surroundings, "SQS_QUEUE_URL": URL, "AWS_REGION": "us-east-1"})
    assert ended.code == 2
    assert "'us-east-1'" in ended.err
    assert "'eu-central-1'" in ended.err


async def test_a_service_of_kubernetes_called_http(surroundings: dict[str, str]) -> None:
    ended = await svc("config", environ={**surroundings, "HTTP_PORT": "tcp://10.96.0.1:80"})
    assert ended.code == 2
    assert "enableServiceLinks: false" in ended.err


async def test_a_variable_with_a_typing_error_is_a_warning(surroundings: dict[str, str]) -> None:
    environ = {**surroundings, "SQS_QUEUE_ULR": URL, "HTTP_HOST": "192.0.2.1", "AWS_ENDPOINT": f"http://{NOWHERE}"}
    ended = await svc("run", environ={**environ, "ETCD_ENDPOINTS": NOWHERE})
    assert ended.code == 1  # it cannot listen there
    assert "SQS_QUEUE_ULR is no setting of this service; did you mean SQS_QUEUE_URL?" in ended.err
