"""Every call to SQS that the program makes, in memory: through our parsers alone, or through botocore with a canned answer."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.session import get_session

from svc.consumer.queue import Received
from svc.processors import Message
from svc.settings import Settings
from svc.sqs import answers, creation, dead_letters
from svc.sqs.calls import Call
from svc.sqs.move_tasks import MoveTasks
from svc.sqs.queue import SqsQueue
from svc.sqs.sdk import use_our_parser
from tests.border.odd import MESSAGE, Raw, said

ARN = "arn:aws:sqs:us-east-1:000000000000:dead"
URL = "http://127.0.0.1/000000000000/q"


def good(operation: str, request: Mapping[str, Any]) -> Raw:
    """What SQS answers."""
    match operation:
        case "receive_message":
            return said({"Messages": [MESSAGE]})
        case "get_queue_attributes":
            policy = {"deadLetterTargetArn": ARN, "maxReceiveCount": "4"}
            return said({"Attributes": {"QueueArn": ARN, "RedrivePolicy": json.dumps(policy), "FifoQueue": "false"}})
        case "get_queue_url" | "create_queue":
            return said({"QueueUrl": f"{URL}-dead"})
        case "send_message":
            return said({"MessageId": "sent"})
        case "start_message_move_task":
            return said({"TaskHandle": "task"})
        case "list_message_move_tasks":
            return said({"Results": [{"Status": "RUNNING", "StartedTimestamp": 5}]})
        case "cancel_message_move_task":
            return said({"ApproximateNumberOfMessagesMoved": 1})
        case "set_queue_attributes":
            return Raw(200, b"")
        case "delete_message_batch" | "change_message_visibility_batch":
            return said({"Successful": [{"Id": entry["Id"]} for entry in request["Entries"]]})
    raise AssertionError(operation)


class Canned:
    """Answers the calls of one use of the queue: `odd` answers the one with the number `at`, `good` the others."""

    def __init__(self, odd: Raw | None, at: int = 0) -> None:
        self.odd, self.at = odd, at
        self.operations: list[str] = []
        self.requests: list[Mapping[str, Any]] = []

    def answer(self, operation: str, request: Mapping[str, Any]) -> Raw:
        number = len(self.operations)
        self.operations.append(operation)
        self.requests.append(request)
        return self.odd if self.odd is not None and number == self.at else good(operation, request)

    async def __call__(self, operation: str, **request: Any) -> dict[str, Any]:
        raw = self.answer(operation, request)
        return answers.parsed(raw.status, raw.headers, raw.body, may_be_empty=operation == "set_queue_attributes")


class _Response:
    """What botocore asks of an answer."""

    def __init__(self, raw: Raw) -> None:
        self.status_code, self.headers, self._body = raw.status, raw.headers, raw.body

    @property
    async def content(self) -> bytes:
        return self._body


@asynccontextmanager
async def botocore() -> AsyncIterator[Callable[[Canned], Call]]:
    """Calls through a client of botocore, all of it but its connections."""
    from aiobotocore.config import AioConfig
    from aiobotocore.httpxsession import HttpxSession

    session = get_session()
    use_our_parser(session)
    config = AioConfig(http_session_cls=HttpxSession, parameter_validation=False, retries={"total_max_attempts": 1})
    async with session.create_client(
        "sqs", region_name="us-east-1", endpoint_url="http://127.0.0.1", config=config,
        aws_access_key_id="test", aws_secret_access_key="test",
    ) as client:  # fmt: skip
        current: list[Raw] = []

        async def instead_of_sending(request: Any, **_: Any) -> _Response:
            return _Response(current.pop())

        client.meta.events.register("before-send.sqs", instead_of_sending)

        def through(canned: Canned) -> Call:
            async def call(operation: str, **request: Any) -> dict[str, Any]:
                current.append(canned.answer(operation, request))
                answer: dict[str, Any] = await getattr(client, operation)(**request)
                return answer

            return call

        yield through


DELIVERY = Received(Message("id", "body", group_id="g"), "handle", {}, "Root=1-2-3")

SETTINGS = Settings(sqs_queue_url=URL, aws_endpoint="http://127.0.0.1", sqs_dlq_name="dead")

Use = Callable[[SqsQueue, Call], Awaitable[object]]

USES: dict[str, Use] = {
    "receive": lambda queue, call: queue.receive(limit=10, wait=1, visibility=30),
    "delete": lambda queue, call: queue.delete(["one", "two", "three"]),
    "change_visibility": lambda queue, call: queue.change_visibility({"one": 0, "two": 30}),
    "send": lambda queue, call: queue.send("x"),
    "attributes": lambda queue, call: queue.attributes(),
    "dead_letter": lambda queue, call: queue.dead_letter(DELIVERY, "because"),
    "dead_letter_queue": lambda queue, call: queue.dead_letter_queue(),
    "take_back": lambda queue, call: queue.take_back(DELIVERY),
    "svc init": lambda queue, call: creation.create_by(call, SETTINGS, "q", 2, lambda count: None),
    "svc dlq list": lambda queue, call: dead_letters.look(queue, 1),
    "svc dlq, depth": lambda queue, call: dead_letters.depth(queue),
    "svc dlq redrive": lambda queue, call: dead_letters.redrive(queue, queue, 1, dead_letters.Moved()),
    "svc dlq purge": lambda queue, call: dead_letters.purge(queue, 1, dead_letters.Purged()),
    "the page's dead letters": lambda queue, call: queue.look_at_dead_letters(1, seconds=1),
    "svc dlq redrive --with-aws": lambda queue, call: MoveTasks(call, ARN, ARN).start(5),
    "svc dlq redrive --with-aws, its progress": lambda queue, call: MoveTasks(call, ARN, ARN).last(),
    "svc dlq redrive --with-aws, Ctrl-C": lambda queue, call: MoveTasks(call, ARN, ARN).stop("task"),
}
"""What the program does with SQS, by name: each is one call or a few."""


def queue_of(call: Call) -> SqsQueue:
    return SqsQueue(URL, poll=call, call=call)
