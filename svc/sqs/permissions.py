"""The least IAM policy for what is switched on, as `svc iam` prints it. Pure: it calls nothing.

`tests/sqs/test_permissions.py` holds it to the calls that the service, `svc init` and `svc dlq` really make.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from svc.settings import Settings, partition_of, queue_address

Who = Literal["run", "init", "dlq"]
"""Which command is to be allowed."""

_BATCHES = {"DeleteMessageBatch": "DeleteMessage", "ChangeMessageVisibilityBatch": "ChangeMessageVisibility"}

QUEUE: dict[Who, tuple[str, ...]] = {
    "run": ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueAttributes"),
    "init": ("CreateQueue", "GetQueueUrl", "GetQueueAttributes", "SetQueueAttributes", "SendMessage"),
    "dlq": ("GetQueueAttributes", "SendMessage"),
}
"""On the queue. `run` needs SendMessage besides where messages are sent over the API, and all GetQueueUrl where a name is looked
up."""

DEAD_LETTERS: dict[Who, tuple[str, ...]] = {
    "run": ("GetQueueUrl", "GetQueueAttributes", "SendMessage"),
    "init": ("CreateQueue", "GetQueueUrl", "GetQueueAttributes"),
    "dlq": ("GetQueueUrl", "GetQueueAttributes", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"),
}
"""On the dead-letter queue. `run` has to receive there too where an operator may look from the page (API_TOKEN)."""

LOOKS = ("ReceiveMessage", "ChangeMessageVisibility")

MOVE_TASK = ("StartMessageMoveTask", "ListMessageMoveTasks", "CancelMessageMoveTask")
"""What `svc dlq redrive --with-aws` needs on the dead-letter queue besides what `dlq` needs: AWS moves with the caller's
permissions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is not in the settings."""

    who: Sequence[Who] = ("run",)
    account: str | None = None
    """Of the queue, where its address does not tell."""
    dead_letters: str | None = None
    """Name of the dead-letter queue, if not SQS_DLQ_NAME."""
    kms_key: str | None = None
    """ARN of the queue's own KMS key."""
    sends: bool = True
    """Whether messages are sent over the API."""
    with_aws: bool = False
    """Whether SQS's own move task is used (`svc dlq redrive --with-aws`)."""


def action_of(operation: str) -> str:
    """The IAM action of an operation as the SDK names it (`delete_message_batch`)."""
    name = "".join(part.capitalize() for part in operation.split("_"))
    return _BATCHES.get(name, name)


def policy(settings: Settings, asked: Asked) -> dict[str, Any]:
    """The policy of who runs the service: the role of SQS_ROLE_ARN, where there is one."""
    queue, dead = _arns(settings, asked)
    actions = [action for who in asked.who for action in QUEUE[who]]
    if asked.sends and "run" in asked.who:
        actions.append("SendMessage")
    if "://" not in settings.sqs_queue_url:
        actions.append("GetQueueUrl")
    statements = [_statement("Queue", actions, queue)]
    if dead is not None:
        on_dead = [action for who in asked.who for action in DEAD_LETTERS[who]]
        if settings.api_token is not None and "run" in asked.who:
            on_dead += LOOKS
        if asked.with_aws and "dlq" in asked.who:
            on_dead += MOVE_TASK
        statements.append(_statement("DeadLetters", on_dead, dead))
    if asked.kms_key is not None:
        statements.append(_kms(settings, asked, with_dead_letters=dead is not None))
    if settings.cloudwatch_namespace is not None and "run" in asked.who:
        statements.append(
            {
                "Sid": "Metrics",
                "Effect": "Allow",
                "Action": "cloudwatch:PutMetricData",
                "Resource": "*",
                "Condition": {"StringEquals": {"cloudwatch:namespace": settings.cloudwatch_namespace}},
            }
        )
    if settings.sqs_role_arn is None and "run" in asked.who:
        statements += _of_the_task(settings, asked)
    return {"Version": "2012-10-17", "Statement": statements}


def queue_policy(settings: Settings, asked: Asked, principal: str) -> dict[str, Any]:
    """For the queue, where it belongs to another account than who runs the service: `principal` is the latter's ARN. Both are
    needed then, this one and that of `policy`."""
    queue, _ = _arns(settings, asked)
    actions = [action for who in asked.who for action in QUEUE[who]]
    if asked.sends and "run" in asked.who:
        actions.append("SendMessage")
    return {
        "Version": "2012-10-17",
        "Statement": [{**_statement("Service", actions, queue), "Principal": {"AWS": principal}}],
    }


def assume_policy(settings: Settings) -> dict[str, Any]:
    """For the identity that assumes SQS_ROLE_ARN, which needs nothing else for the queue."""
    assert settings.sqs_role_arn is not None
    role = {"Sid": "Role", "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": settings.sqs_role_arn}
    return {"Version": "2012-10-17", "Statement": [role, *_of_the_task(settings, Asked())]}


def _of_the_task(settings: Settings, asked: Asked) -> list[dict[str, Any]]:
    """What the role of an ECS task needs, whatever role the queue is used with: the agent asks AWS in the task's name."""
    if settings.ecs_task_protection == "off":
        return []
    account = asked.account or "*"
    tasks = f"arn:{partition_of(settings.aws_region)}:ecs:{settings.aws_region}:{account}:task/*"
    return [{"Sid": "Protection", "Effect": "Allow", "Action": "ecs:UpdateTaskProtection", "Resource": tasks}]


def _arns(settings: Settings, asked: Asked) -> tuple[str, str | None]:
    address = queue_address(settings.sqs_queue_url)
    account = address.account or settings.sqs_queue_owner or asked.account or "*"
    # An emulator's account is nobody's.
    account = asked.account or "*" if re.fullmatch("0+", account) else account
    common = f"arn:{partition_of(settings.aws_region)}:sqs:{settings.aws_region}:{account}"
    dead = asked.dead_letters or settings.sqs_dlq_name
    return f"{common}:{address.name}", None if dead is None else f"{common}:{dead}"


def _statement(sid: str, actions: Iterable[str], resource: str) -> dict[str, Any]:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": sorted({f"sqs:{action}" for action in actions}),
        "Resource": resource,
    }


def _kms(settings: Settings, asked: Asked, *, with_dead_letters: bool) -> dict[str, Any]:
    # SQS developer guide, "Key management", permissions of a consumer and of a producer: who sends needs both.
    sends = asked.sends or with_dead_letters or set(asked.who) != {"run"}
    return {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"] if sends else ["kms:Decrypt"],
        "Resource": asked.kms_key,
    }
