"""`svc init`: creates the queue and its dead-letter queue, where absent. Whatever exists is left as it is.

Nothing else of the program creates queues.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings, queue_address
from svc.sqs import answers, aws_client
from svc.sqs.aws_client import Pool
from svc.sqs.calls import Call, ask
from svc.sqs.queue import SqsQueue
from svc.sqs.wire import NoSuchQueue

DLQ_RETENTION_SECONDS = 1_209_600
"""14 days, SQS's longest. A dead letter keeps its age when it is moved, so that a dead-letter queue should keep
messages for longer than its source (SQS developer guide, "Using dead-letter queues": message retention)."""


@dataclass(frozen=True, slots=True)
class Created:
    """What `create()` found and made."""

    queue_url: str
    """As SQS gives it. Its host may differ from that of `SQS_QUEUE_URL`; calls go to `AWS_ENDPOINT` anyway."""
    queue_is_new: bool
    dead_letter_url: str | None
    """None without `SQS_DLQ_NAME`."""
    dead_letter_is_new: bool
    redrive: Literal["set", "kept", "none"]
    """Whether the redrive policy was set now, or the queue had one (kept as it was), or none is asked for."""
    sent: tuple[str, ...]
    """Ids of the first messages."""


async def create(
    settings: Settings, *, messages: int = 0, on_sent: Callable[[int], None] = lambda count: None
) -> Created:
    """Create the queue of `settings` and with `sqs_dlq_name` its dead-letter queue and redrive policy, where absent;
    then send `messages` first messages and tell `on_sent` how many are out. Whatever exists is left as it is, so that a
    second run changes nothing.

    A name that ends in `.fifo` makes a FIFO queue. Raises
    `QueueError`, at once when the endpoint is not up: whoever starts both orders the start.
    """
    name = queue_address(settings.sqs_queue_url).name
    fifo = name.endswith(".fifo")
    dead_letters = settings.sqs_dlq_name
    if dead_letters is not None and dead_letters.endswith(".fifo") != fifo:
        raise QueueMisconfigured(
            f"SQS_DLQ_NAME must {'' if fifo else 'not '}end in .fifo: the dead-letter queue of a FIFO queue is a FIFO "
            "queue, and that of a standard queue a standard one"
        )
    if dead_letters == name:
        raise QueueMisconfigured("SQS_DLQ_NAME names the queue itself; a dead-letter queue must be another")
    async with aws_client.opened(settings, [Pool(10)]) as [call]:
        return await create_by(call, settings, name, messages, on_sent)


async def create_by(
    call: Call, settings: Settings, name: str, messages: int, on_sent: Callable[[int], None]
) -> Created:
    """As `create`, with the calls of one client."""
    fifo, dead_letters = name.endswith(".fifo"), settings.sqs_dlq_name
    kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
    url, is_new = await _ensure(call, name, {**kind, "VisibilityTimeout": str(settings.sqs_visibility_timeout_seconds)})
    dead_url, dead_is_new = None, False
    redrive: Literal["set", "kept", "none"] = "none"
    if dead_letters is not None:
        dead_url, dead_is_new = await _ensure(
            call, dead_letters, {**kind, "MessageRetentionPeriod": str(DLQ_RETENTION_SECONDS)}
        )
        redrive = await _set_redrive_policy(call, url, dead_url, settings.sqs_max_receive_count)
    queue = SqsQueue(url, poll=call, call=call)
    sent = []
    for number in range(1, messages + 1):
        # Own deduplication ids: a second `svc init --messages 3` shall send three messages more, not none.
        group, own = ("svc-init", uuid.uuid4().hex) if fifo else (None, None)
        sent.append(await queue.send(f"first message {number} of {messages}", group_id=group, deduplication_id=own))
        on_sent(number)
    return Created(url, is_new, dead_url, dead_is_new, redrive, tuple(sent))


async def _ensure(call: Call, name: str, attributes: dict[str, str]) -> tuple[str, bool]:
    """The URL of the queue `name`, made with `attributes` if it was absent, and whether it was made."""
    doing = f"looking for queue {name}"
    try:
        return answers.queue_url(doing, await ask(call, doing, "get_queue_url", QueueName=name)), False
    except NoSuchQueue:
        pass
    doing = f"creating queue {name}"
    return answers.queue_url(doing, await ask(call, doing, "create_queue", QueueName=name, Attributes=attributes)), True


async def _set_redrive_policy(call: Call, url: str, dead_url: str, most: int) -> Literal["set", "kept"]:
    async def attributes(of: str) -> dict[str, str]:
        doing, names = "reading the queue's attributes", ["QueueArn", "RedrivePolicy"]
        return answers.attributes(
            doing, await ask(call, doing, "get_queue_attributes", QueueUrl=of, AttributeNames=names)
        )

    if (await attributes(url)).get("RedrivePolicy"):
        return "kept"
    arn = (await attributes(dead_url)).get("QueueArn")
    if arn is None:
        raise answers.not_sqs("reading the dead-letter queue's attributes", "it has no QueueArn")
    policy = {"deadLetterTargetArn": arn, "maxReceiveCount": str(most)}
    await ask(
        call, "setting the redrive policy", "set_queue_attributes",
        QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)},
    )  # fmt: skip
    return "set"
