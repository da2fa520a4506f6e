"""The real queue: SQS, through clients that `aws_client.py` opens.

`opened()` opens two clients and yields an `SqsQueue`; everything that uses the queue runs inside of it. One client
holds the long polls, the other everything else, because a poll keeps its connection for up to 20 seconds and a delete
must not wait for one (with one pool of 10, a delete behind 10 polls took 3.7 s).

It never loops, sleeps, counts or decides: each method is one call to SQS (`dead_letter`: up to three). `calls.py` makes it,
`answers.py` and `messages.py` read what comes back; whatever fails comes out as one plain `QueueError` that says whose fault
it is.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from svc.consumer.queue import DeadLetterQueue, QueueMisconfigured, Received, Refusal, is_fifo
from svc.settings import Settings, is_aws
from svc.sqs import answers, aws_client, dead_letters, messages, running_time, wire
from svc.sqs.aws_client import Pool
from svc.sqs.calls import Call, ask
from svc.sqs.move_tasks import MoveTasks
from svc.sqs.running_time import RunningTime
from svc.sqs.wire import LANDING_SECONDS, NoSuchQueue

OTHER_CALLS = 80
"""Calls at once beside the polls: 40 settlements and 10 heartbeats (`CALLS_AT_ONCE` of `consumer/settlement.py` and
`consumer/leases.py`), and 30
for the API."""

REDRIVE_POLICY_SECONDS = 300.0
"""How long `dead_letter` believes in the redrive policy that it has read."""

REDRIVE_POLICY = "the queue's redrive policy"


class SqsQueue:
    """The queue that `SQS_QUEUE_URL` names. Made by `opened()`; for the methods see `svc.consumer.queue.Queue`."""

    def __init__(
        self, url: str, *, poll: Call, call: Call, lived: RunningTime | None = None, at_aws: bool = False
    ) -> None:
        """`lived`: what bounds receives; None is an ordinary clock, for a queue from which nobody receives for long. `at_aws`:
        it is no emulator."""
        self._at_aws = at_aws
        self._url = url
        self._poll = poll
        self._call = call
        self._lived = lived
        self._max_receive_count: int | None = None
        self._fifo: bool | None = None
        self._dead_letters: tuple[float, str | None] | None = None  # when it was read, and the URL

    @property
    def max_receive_count(self) -> int | None:
        return self._max_receive_count

    @property
    def fifo(self) -> bool | None:
        return self._fifo

    @property
    def repeats_receives(self) -> bool:
        # Emulators do not know attempt ids, and what a receive that was cut short is handed there is stranded.
        return self._at_aws and is_fifo(self, self._url.endswith(".fifo"))

    async def receive(
        self, *, limit: int, wait: int, visibility: int, attempt: str | None = None
    ) -> Sequence[Received]:
        known: dict[str, Any] = {} if attempt is None else {"ReceiveRequestAttemptId": attempt}
        # In time that we have lived through: after a stop of this process the answer lies there, with messages that are ours.
        answer = await ask(
            self._poll,
            "receiving",
            "receive_message",
            seconds=wait + LANDING_SECONDS,
            then="messages it handed out stay invisible until their lease ends",
            clock=self._lived,
            QueueUrl=self._url,
            MaxNumberOfMessages=limit,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            MessageAttributeNames=["All"],
            # Both spellings: AWS has discontinued the first, emulators may not know the second.
            AttributeNames=messages.SYSTEM_ATTRIBUTES,
            MessageSystemAttributeNames=messages.SYSTEM_ATTRIBUTES,
            **known,
        )
        # No checkpoint from here on: the messages are ours already, and a cancellation would strand them.
        return messages.received(answer)

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts)]
        return await self._batch("deleting", "delete_message_batch", receipts, entries)

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        entries = [
            {"Id": str(number), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
            for number, (receipt, seconds) in enumerate(timeouts.items())
        ]
        return await self._batch("changing visibility", "change_message_visibility_batch", list(timeouts), entries)

    async def _batch(
        self, doing: str, operation: str, receipts: Sequence[str], entries: Sequence[dict[str, Any]]
    ) -> Mapping[str, Refusal]:
        answer = await ask(self._call, doing, operation, QueueUrl=self._url, Entries=entries)
        return answers.unconfirmed(doing, answer, receipts)

    async def send(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: int | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        native = wire.outgoing(attributes)
        wire.check(body, native, delay)
        request = _message(body, native, group_id, deduplication_id)
        if delay is not None:
            request["DelaySeconds"] = delay
        answer = await ask(self._call, "sending", "send_message", message=True, QueueUrl=self._url, **request)
        return answers.message_id("sending", answer)

    async def attributes(self) -> Mapping[str, str]:
        return await self._attributes("All")

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        url = await self._dead_letter_url()
        if url is None:
            return False
        message = delivery.message
        fifo = url.endswith(".fifo")
        request = _message(
            message.body,
            wire.dead_letter_attributes(delivery, reason),
            message.group_id or ("dead-letters" if fifo else None),
            message.id if fifo else None,
            delivery.trace_header,
        )
        doing = "sending to the dead-letter queue"
        try:
            answer = await ask(
                self._call, doing, "send_message", what=REDRIVE_POLICY, message=True, QueueUrl=url, **request
            )
        except QueueMisconfigured:
            self._dead_letters = None  # look again the next time: the operator may have changed the policy
            raise
        answers.message_id(doing, answer)  # or it is not SQS that has taken it, and the message must not be deleted
        return True

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        policy = answers.redrive_policy(await self._attributes("RedrivePolicy"))
        if policy is None:
            return None
        url = await self._url_of(policy[0])
        found = await _attributes(
            self._call, "reading the dead-letter queue's attributes", url, "All", what=REDRIVE_POLICY
        )
        return DeadLetterQueue(url, policy[0], found)

    async def look_at_dead_letters(self, most: int, *, seconds: float) -> Sequence[Received] | None:
        url = await self._dead_letter_url()
        if url is None:
            return None
        try:
            return await dead_letters.look(SqsQueue(url, poll=self._poll, call=self._call), most, seconds=seconds)
        except QueueMisconfigured:
            self._dead_letters = None
            raise

    async def take_back(self, delivery: Received) -> None:
        """Send a message that another queue delivered, with its attributes and its group, without what a `Reject` has added."""
        message = delivery.message
        native = delivery.native if isinstance(delivery.native, Mapping) else {}
        fifo = is_fifo(self, self._url.endswith(".fifo"))
        request = _message(
            message.body,
            {name: value for name, value in native.items() if name not in wire.OF_A_COPY},
            message.group_id or ("dead-letters" if fifo else None),
            # Each stay in the dead-letter queue has an id of its own: the same one twice is the same stay, sent again.
            message.id if fifo else None,
            delivery.trace_header,
        )
        answer = await ask(self._call, "sending", "send_message", message=True, QueueUrl=self._url, **request)
        answers.message_id(
            "sending", answer
        )  # or it is not SQS that has taken it, and the dead letter must not be deleted

    async def _attributes(self, name: str) -> dict[str, str]:
        found = await _attributes(self._call, "reading the queue's attributes", self._url, name)
        self._fifo = answers.is_fifo(found)
        policy = answers.redrive_policy(found)
        self._max_receive_count = policy[1] if policy else None
        return found

    async def _dead_letter_url(self) -> str | None:
        now = trio.current_time()
        if self._dead_letters is not None and now - self._dead_letters[0] < REDRIVE_POLICY_SECONDS:
            return self._dead_letters[1]
        policy = answers.redrive_policy(await self._attributes("RedrivePolicy"))
        url = None if policy is None else await self._url_of(policy[0])
        self._dead_letters = (now, url)
        return url

    async def _url_of(self, arn: str) -> str:
        account, name = arn.split(":")[-2:]
        doing = "looking for the dead-letter queue"
        try:
            # The account matters: a dead-letter queue may belong to another than the caller's.
            answer = await ask(
                self._call, doing, "get_queue_url", what=REDRIVE_POLICY, QueueName=name, QueueOwnerAWSAccountId=account
            )
        except NoSuchQueue:
            # Emulators may write one account into ARNs and look for queues in another.
            answer = await ask(self._call, doing, "get_queue_url", what=REDRIVE_POLICY, QueueName=name)
        return answers.queue_url(doing, answer)


async def _attributes(call: Call, doing: str, url: str, name: str, *, what: str = "SQS_QUEUE_URL") -> dict[str, str]:
    # With the ARN, which every queue has: an answer without attributes is not SQS's.
    names = [name] if name == "All" else ["QueueArn", name]
    answer = await ask(call, doing, "get_queue_attributes", what=what, QueueUrl=url, AttributeNames=names)
    return answers.attributes(doing, answer)


def _message(
    body: str,
    native: Mapping[str, Any],
    group_id: str | None,
    deduplication_id: str | None,
    trace_header: str | None = None,
) -> dict[str, Any]:
    request: dict[str, Any] = {"MessageBody": body}
    if native:
        request["MessageAttributes"] = native
    if trace_header:
        form = {"DataType": "String", "StringValue": trace_header}
        request["MessageSystemAttributes"] = {"AWSTraceHeader": form}
    if group_id is not None:
        request["MessageGroupId"] = group_id
    if deduplication_id is not None:
        request["MessageDeduplicationId"] = deduplication_id
    return request


@asynccontextmanager
async def opened(settings: Settings, *, polls: int) -> AsyncIterator[SqsQueue]:
    """Open the queue for at most `polls` receives at once, and close it at the end. For what it raises see
    `aws_client.opened`."""
    # One attempt for polls: a second one would not bring back what the first may have stranded, it would hide that the first
    # failed, and it would let the receive land after twice its time, when the drain that waits for it is over. Stale
    # connections need no second one either: polls follow each other closely, and idle connections are dropped.
    # One more than there are receivers: a look into the dead-letter queue does not wait for a poll to end.
    pools = [Pool(polls + 1, attempts=1), Pool(OTHER_CALLS)]
    async with aws_client.opened(settings, pools, introduce=True) as [poll, call], running_time.running() as lived:
        yield SqsQueue(settings.sqs_queue_url, poll=poll, call=call, lived=lived, at_aws=is_aws(settings.aws_endpoint))


@asynccontextmanager
async def opened_with_dead_letters(settings: Settings) -> AsyncIterator[tuple[SqsQueue, SqsQueue, str]]:
    """Open the queue, its dead-letter queue, and tell the latter's URL. Raises `QueueMisconfigured` when it has none."""
    # One attempt for what is sent back: a second one that nobody hears of could leave two copies.
    pools = [Pool(1, attempts=1), Pool(dead_letters.RELEASES), Pool(1, attempts=1)]
    async with aws_client.opened(settings, pools) as [poll, call, send]:
        url = await SqsQueue(settings.sqs_queue_url, poll=poll, call=call)._dead_letter_url()
        if url is None:
            raise _no_dead_letters(settings)
        queue = SqsQueue(settings.sqs_queue_url, poll=poll, call=send)
        yield queue, SqsQueue(url, poll=poll, call=call), url


@asynccontextmanager
async def opened_move_tasks(settings: Settings) -> AsyncIterator[tuple[MoveTasks, str]]:
    """SQS's own move tasks from the dead-letter queue to the queue, and the former's ARN. Raises as the one above."""
    # One attempt: a second start would be refused because of the first, and look as if none had begun.
    async with aws_client.opened(settings, [Pool(1, attempts=1)]) as [call]:
        found = await SqsQueue(settings.sqs_queue_url, poll=call, call=call)._attributes("RedrivePolicy")
        policy = answers.redrive_policy(found)
        if policy is None:
            raise _no_dead_letters(settings)
        if "QueueArn" not in found:
            raise answers.not_sqs("reading the queue's attributes", "it has no QueueArn")
        yield MoveTasks(call, source=policy[0], destination=found["QueueArn"]), policy[0]


def _no_dead_letters(settings: Settings) -> QueueMisconfigured:
    return QueueMisconfigured(
        f"{settings.sqs_queue_url} has no dead-letter queue (no redrive policy); `svc init` with SQS_DLQ_NAME makes one"
    )
