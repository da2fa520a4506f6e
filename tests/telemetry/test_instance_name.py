"""What an instance is called where it runs."""

import json

import pytest
import trio

from svc.etcd.registration import identity
from svc.settings import load
from svc.telemetry.instance_name import PATIENCE, instance_name
from tests.telemetry.small_agent import small_agent

LONG = "x" * 101


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, None),
        ({"HOSTNAME": "laptop"}, None),
        ({"HOSTNAME": "orders-7d9f-x2x", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "orders-7d9f-x2x"),
        ({"POD_NAME": "orders-0", "HOSTNAME": "other", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "orders-0"),
        ({"POD_NAME": "orders-0"}, "orders-0"),
        ({"POD_NAME": "a/b"}, None),
        ({"POD_NAME": LONG}, None),
        ({"POD_NAME": "", "HOSTNAME": "h"}, None),
    ],
)
async def test_a_pod(environ: dict[str, str], name: str | None) -> None:
    assert await instance_name(environ) == name


async def test_a_task() -> None:
    with small_agent() as agent:
        environ = {"ECS_CONTAINER_METADATA_URI_V4": f"{agent.url}/v4/container", "POD_NAME": "other"}
        assert await instance_name(environ) == "158d1c8083dd49d6b527399fd6414f5c"
        for arn in ("arn:aws:ecs:us-west-2:1:task/abc-1", "arn:aws-cn:ecs:cn-north-1:1:task/long/abc-1"):
            agent.answer = json.dumps({"TaskARN": arn}).encode()
            assert await instance_name(environ) == "abc-1"


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b"[" * 9000, b'{"TaskARN": 5}', b'{"TaskARN": "x"}', b"x" * 70_000,
        b'{"TaskARN": "arn:aws:ecs:r:1:task/c/../../x\\n"}', b'{"TaskARN": "arn:aws:ecs:r:1:task/c/"}',
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
async def test_an_odd_answer_is_no_name(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with small_agent() as agent:
        agent.answer = answer
        assert await instance_name({"ECS_CONTAINER_METADATA_URI_V4": f"{agent.url}/v4/container"}) is None
    assert "metadata of the ECS task cannot be read" in caplog.text


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "https://127.0.0.1:1", "x", "http://", "http://[x", "http://a:b/c"]
)
async def test_nobody_is_there(url: str) -> None:
    assert await instance_name({"ECS_CONTAINER_METADATA_URI_V4": url}) is None


async def test_an_agent_that_never_ends_holds_the_start_up_for_a_moment_only() -> None:
    with small_agent() as agent, trio.fail_after(PATIENCE + 3):
        agent.drip = 0.1
        assert await instance_name({"ECS_CONTAINER_METADATA_URI_V4": f"{agent.url}/v4/container"}) is None


def test_an_id_of_ones_own_goes_first() -> None:
    assert identity(load({"INSTANCE_ID": "mine"}), "pod").id == "mine"
    assert identity(load({}), "pod").id == "pod"
    assert identity(load({})).id.count("-") >= 2
