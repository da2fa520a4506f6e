"""`svc iam`: the policy is that of the calls that are made, no more and no less."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from svc.cli.main import cli
from svc.devstack.stack import Moto
from svc.settings import load, queue_address
from svc.sqs import aws_client, creation, dead_letters
from svc.sqs.aws_client import Pool
from svc.sqs.calls import Call
from svc.sqs.permissions import Asked, action_of, policy
from svc.sqs.queue import SqsQueue

URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders"
KEY_ARN = "arn:aws:kms:eu-central-1:123456789012:key/k"

Made = set[tuple[str, str]]
"""Action and name of the queue."""


def recorded(call: Call, made: Made) -> Call:
    async def made_a_note(operation: str, **request: Any) -> dict[str, Any]:
        name = queue_address(request["QueueUrl"]).name if "QueueUrl" in request else request["QueueName"]
        made.add((action_of(operation), name))
        return await call(operation, **request)

    return made_a_note


def allowed(given: dict[str, Any]) -> Made:
    return {
        (action.removeprefix("sqs:"), statement["Resource"].rpartition(":")[2])
        for statement in given["Statement"]
        for action in statement["Action"]
    }


async def test_what_is_allowed_is_what_is_called(moto: Moto, queue_name: str) -> None:
    """Every call that the service, `svc init` and `svc dlq` can make."""
    name, dead = f"{queue_name}-iam", f"{queue_name}-iam-dead"
    settings = load({"SQS_QUEUE_URL": moto.queue_url(name), "AWS_ENDPOINT": moto.url, "SQS_DLQ_NAME": dead})
    run, init, dlq = Made(), Made(), Made()
    async with aws_client.opened(settings, [Pool(4)]) as [call]:
        await creation.create_by(recorded(call, init), settings, name, 2, lambda count: None)
        noting = recorded(call, run)
        queue = SqsQueue(settings.sqs_queue_url, poll=noting, call=noting)
        await queue.attributes()
        await queue.send("three")
        one, two, three = [
            *await queue.receive(limit=1, wait=0, visibility=30),
            *await queue.receive(limit=1, wait=0, visibility=30),
            *await queue.receive(limit=1, wait=0, visibility=30),
        ]
        await queue.change_visibility({one.receipt: 0})
        for delivery in (two, three):
            assert await queue.dead_letter(delivery, "no good")
        await queue.delete([two.receipt, three.receipt])
        found = await queue.dead_letter_queue()
        assert found is not None
        looks = Made()
        noting = recorded(call, looks)
        for_the_page = SqsQueue(settings.sqs_queue_url, poll=noting, call=noting)
        assert len(await for_the_page.look_at_dead_letters(10, seconds=5) or ()) == 2
        noting = recorded(call, dlq)
        source = SqsQueue(settings.sqs_queue_url, poll=noting, call=noting)
        url = await source._dead_letter_url()
        assert url is not None
        letters = SqsQueue(url, poll=noting, call=noting)
        assert len(await dead_letters.look(letters, 10)) == 2
        await dead_letters.depth(letters)
        moved = dead_letters.Moved()
        await dead_letters.redrive(letters, source, 10, moved)
        assert moved.count == 2
    with_token = settings.model_copy(update={"api_token": SecretStr("x" * 16)})
    assert allowed(policy(with_token, Asked(("run",)))) == run | looks
    for who, made in (("run", run), ("init", init), ("dlq", dlq)):
        assert allowed(policy(settings, Asked((who,)))) == made, who  # type: ignore[arg-type]


def shown(*arguments: str, code: int = 0, **environ: str) -> tuple[Any, str]:
    base = {"SQS_QUEUE_URL": URL, "AWS_CONFIG_FILE": "/nowhere"}
    ended = CliRunner().invoke(cli, ["iam", *arguments], env={**base, **environ})
    assert ended.exit_code == code, ended.output
    return (json.loads(ended.stdout) if code == 0 else None), ended.stderr


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log_level_kept: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_least_of_it() -> None:
    given, said = shown("--no-send")
    assert given == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Queue",
                "Effect": "Allow",
                "Action": ["sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"],
                "Resource": "arn:aws:sqs:eu-central-1:123456789012:orders",
            }
        ],
    }  # fmt: skip
    assert "without SQS_DLQ_NAME or --dlq" in said


def test_all_of_it() -> None:
    given, said = shown(
        "--for", "run", "--for", "dlq", "--kms-key", KEY_ARN, SQS_DLQ_NAME="orders-dead", CLOUDWATCH_NAMESPACE="Shop/svc"
    )  # fmt: skip
    queue, dead, key, metrics = given["Statement"]
    assert said == ""
    assert "sqs:SendMessage" in queue["Action"]
    assert dead["Resource"] == "arn:aws:sqs:eu-central-1:123456789012:orders-dead"
    assert {"sqs:ReceiveMessage", "sqs:SendMessage"} <= set(dead["Action"])
    assert key == {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": KEY_ARN,
    }
    assert metrics["Condition"] == {"StringEquals": {"cloudwatch:namespace": "Shop/svc"}}


def test_the_move_task_of_aws() -> None:
    given, _ = shown("--for", "dlq", "--with-aws", "--dlq", "dead")
    more = {"sqs:StartMessageMoveTask", "sqs:ListMessageMoveTasks", "sqs:CancelMessageMoveTask"}
    plain, _ = shown("--for", "dlq", "--dlq", "dead")
    assert set(given["Statement"][1]["Action"]) == {*plain["Statement"][1]["Action"], *more}


def test_the_protection_of_an_ecs_task_is_for_the_role_of_the_task() -> None:
    on = {"ECS_TASK_PROTECTION": "on"}
    wanted = {
        "Sid": "Protection", "Effect": "Allow", "Action": "ecs:UpdateTaskProtection",
        "Resource": "arn:aws:ecs:eu-central-1:*:task/*",
    }  # fmt: skip
    assert shown(**on)[0]["Statement"][-1] == wanted
    role = {**on, "SQS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"}
    assert wanted not in shown(**role)[0]["Statement"]
    assert shown("--assume", **role)[0]["Statement"][-1] == wanted
    assert wanted not in shown("--for", "dlq", **on)[0]["Statement"]
    assert len(shown()[0]["Statement"]) == 1


def test_who_only_consumes_needs_only_to_decrypt() -> None:
    given, _ = shown("--no-send", "--kms-key", KEY_ARN)
    assert given["Statement"][-1]["Action"] == ["kms:Decrypt"]


CASES: dict[str, tuple[dict[str, str], list[str], Callable[[dict[str, Any]], object], object]] = {
    "a name": (
        {"SQS_QUEUE_URL": "orders", "AWS_REGION": "cn-north-1"}, ["--account", "123456789012"],
        lambda given: given["Statement"][0]["Resource"], "arn:aws-cn:sqs:cn-north-1:123456789012:orders",
    ),
    "a name is looked up": (
        {"SQS_QUEUE_URL": "orders", "AWS_REGION": "us-gov-west-1", "SQS_QUEUE_OWNER": "123456789012"}, [],
        lambda given: "sqs:GetQueueUrl" in given["Statement"][0]["Action"], True,
    ),
    "an emulator's account is nobody's": (
        {"SQS_QUEUE_URL": "http://x/000000000000/q"}, [],
        lambda given: given["Statement"][0]["Resource"], "arn:aws:sqs:us-east-1:*:q",
    ),
    "another account's queue": (
        {}, ["--queue-policy", "arn:aws:iam::999999999999:role/x"],
        lambda given: given["Statement"][0]["Principal"], {"AWS": "arn:aws:iam::999999999999:role/x"},
    ),
    "who assumes the role": (
        {"SQS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"}, ["--assume"],
        lambda given: [given["Statement"][0][name] for name in ("Action", "Resource")],
        ["sts:AssumeRole", "arn:aws:iam::123456789012:role/x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_set_up(case: str) -> None:
    environ, arguments, look, expected = CASES[case]
    given, _ = shown(*arguments, **environ)
    assert look(given) == expected


def test_a_role_that_is_not_there() -> None:
    _, said = shown("--assume", code=2)
    assert "SQS_ROLE_ARN is not set" in said


async def test_a_receive_carries_its_attempt_id_where_aws_answers() -> None:
    asked: list[dict[str, object]] = []

    async def noting(operation: str, **request: object) -> dict[str, object]:
        asked.append(request)
        return {}

    def queue(name: str, *, at_aws: bool = True) -> SqsQueue:
        return SqsQueue(f"https://sqs.eu-west-1.amazonaws.com/1/{name}", poll=noting, call=noting, at_aws=at_aws)

    assert queue("q.fifo").repeats_receives
    assert not queue("q").repeats_receives
    assert not queue("q.fifo", at_aws=False).repeats_receives
    await queue("q.fifo").receive(limit=1, wait=0, visibility=30, attempt="one")
    await queue("q").receive(limit=1, wait=0, visibility=30)
    assert [request.get("ReceiveRequestAttemptId") for request in asked] == ["one", None]
