"""The real queue: SQS through aiobotocore, whose clients `aws_client.py` opens.

`opened()` opens two clients and yields an `SqsQueue`; everything that uses the queue runs inside of it. One client
holds the long polls, the other everything else, because a poll keeps its connection for up to 20 seconds and a delete
must not wait for one (with one pool of 10, a delete behind 10 polls took 3.7 s). `create()` is what `svc init` does.

Beside `aws_client.py` this is the only file that imports botocore. It never loops, sleeps, counts or decides:
each method is one call to SQS (`dead_letter`: up to three), whose failure comes out as one plain `QueueError` that says
whose fault it is. It never logs or raises anything that holds a secret.
"""

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import trio
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from svc.consumer.queue import (
    DeadLetterQueue,
    QueueError,
    QueueMisconfigured,
    QueueTimeout,
    QueueUnavailable,
    Received,
    Refusal,
)
from svc.settings import Settings
from svc.sqs import aws_client, running_time, wire
from svc.sqs.aws_client import Call, Pool
from svc.sqs.running_time import RunningTime
from svc.sqs.wire import CALL_SECONDS, LANDING_SECONDS, NoSuchQueue

OTHER_CALLS = 80
"""Calls at once beside the polls: 40 settlements and 10 heartbeats (`CALLS_AT_ONCE` of `consumer/settlement.py` and
`consumer/leases.py`), and 30
for the API."""

REDRIVE_POLICY_SECONDS = 300.0
"""How long `dead_letter` believes in the redrive policy that it has read."""

DLQ_RETENTION_SECONDS = 1_209_600
"""14 days, SQS's longest. A dead letter keeps its age when it is moved, so that a dead-letter queue should keep
messages for longer than its source (SQS developer guide, "Using dead-letter queues": message retention)."""

SYSTEM_ATTRIBUTES = ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"]
"""What a receive has to bring beside the body, to fill a `Message`."""

REDRIVE_POLICY = "the queue's redrive policy"


class SqsQueue:
    """The queue that `SQS_QUEUE_URL` names. Made by `opened()`; for the methods see `svc.consumer.queue.Queue`."""

    def __init__(self, url: str, *, poll: Call, call: Call, lived: RunningTime | None = None) -> None:
        """`lived`: what bounds receives; None is an ordinary clock, for a queue from which nobody receives for long."""
        self._url = url
        self._poll = _by_sqs(poll)
        self._call = _by_sqs(call)
        self._lived = lived
        self._max_receive_count: int | None = None
        self._dead_letters: tuple[float, str | None] | None = None  # when it was read, and the URL

    @property
    def max_receive_count(self) -> int | None:
        return self._max_receive_count

    async def receive(self, *, limit: int, wait: int, visibility: int) -> Sequence[Received]:
        # In time that we have lived through: after a stop of this process the answer lies there, with messages that are ours.
        with _bounded(
            wait + LANDING_SECONDS,
            "receiving",
            then="messages it handed out stay invisible until their lease ends",
            clock=self._lived,
        ):
            answer = await self._poll(
                "receive_message",
                QueueUrl=self._url,
                MaxNumberOfMessages=limit,
                WaitTimeSeconds=wait,
                VisibilityTimeout=visibility,
                MessageAttributeNames=["All"],
                # Both spellings: AWS has discontinued the first, emulators may not know the second.
                AttributeNames=SYSTEM_ATTRIBUTES,
                MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
            )
        # No checkpoint from here on: the messages are ours already, and a cancellation would strand them.
        return wire.received(answer)

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        receipts = list(receipts)
        entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts)]
        with _bounded(CALL_SECONDS, "deleting"):
            answer = await self._call("delete_message_batch", QueueUrl=self._url, Entries=entries)
        return wire.refusals(answer, receipts)

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        receipts = list(timeouts)
        entries = [
            {"Id": str(number), "ReceiptHandle": receipt, "VisibilityTimeout": timeouts[receipt]}
            for number, receipt in enumerate(receipts)
        ]
        with _bounded(CALL_SECONDS, "changing visibility"):
            answer = await self._call("change_message_visibility_batch", QueueUrl=self._url, Entries=entries)
        return wire.refusals(answer, receipts)

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
        with _bounded(CALL_SECONDS, "sending", message=True):
            answer = await self._call("send_message", QueueUrl=self._url, **request)
        return str(_part(answer, "MessageId"))

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
        )
        doing = "sending to the dead-letter queue"
        try:
            with _bounded(CALL_SECONDS, doing, what=REDRIVE_POLICY, message=True):
                await self._call("send_message", QueueUrl=url, **request)
        except QueueMisconfigured:
            self._dead_letters = None  # look again the next time: the operator may have changed the policy
            raise
        return True

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        policy = wire.redrive_policy(await self._attributes("RedrivePolicy"))
        if policy is None:
            return None
        url = await self._url_of(policy[0])
        with _bounded(CALL_SECONDS, "reading the dead-letter queue's attributes", what=REDRIVE_POLICY):
            answer = await self._call("get_queue_attributes", QueueUrl=url, AttributeNames=["All"])
        return DeadLetterQueue(url, policy[0], answer.get("Attributes", {}))

    async def take_back(self, delivery: Received) -> None:
        """Send a message that another queue delivered, with its attributes and its group, without its `RejectReason`."""
        message = delivery.message
        native = delivery.native if isinstance(delivery.native, Mapping) else {}
        fifo = self._url.endswith(".fifo")
        request = _message(
            message.body,
            {name: value for name, value in native.items() if name != wire.REJECT_REASON},
            message.group_id or ("dead-letters" if fifo else None),
            # Each stay in the dead-letter queue has an id of its own: the same one twice is the same stay, sent again.
            message.id if fifo else None,
        )
        with _bounded(CALL_SECONDS, "sending", message=True):
            await self._call("send_message", QueueUrl=self._url, **request)

    async def _attributes(self, name: str) -> dict[str, str]:
        with _bounded(CALL_SECONDS, "reading the queue's attributes"):
            answer = await self._call("get_queue_attributes", QueueUrl=self._url, AttributeNames=[name])
        found: dict[str, str] = answer.get("Attributes", {})
        policy = wire.redrive_policy(found)
        self._max_receive_count = policy[1] if policy else None
        return found

    async def _dead_letter_url(self) -> str | None:
        now = trio.current_time()
        if self._dead_letters is not None and now - self._dead_letters[0] < REDRIVE_POLICY_SECONDS:
            return self._dead_letters[1]
        policy = wire.redrive_policy(await self._attributes("RedrivePolicy"))
        url = None if policy is None else await self._url_of(policy[0])
        self._dead_letters = (now, url)
        return url

    async def _url_of(self, arn: str) -> str:
        account, name = arn.split(":")[-2:]
        doing = "looking for the dead-letter queue"
        try:
            # The account matters: a dead-letter queue may belong to another than the caller's.
            with _bounded(CALL_SECONDS, doing, what=REDRIVE_POLICY):
                answer = await self._call("get_queue_url", QueueName=name, QueueOwnerAWSAccountId=account)
        except NoSuchQueue:
            # Emulators may write one account into ARNs and look for queues in another.
            with _bounded(CALL_SECONDS, doing, what=REDRIVE_POLICY):
                answer = await self._call("get_queue_url", QueueName=name)
        return str(_part(answer, "QueueUrl"))


def _part(answer: Mapping[str, Any], name: str) -> Any:
    if name not in answer:
        raise QueueUnavailable(f"the answer lacks {name}; check that AWS_ENDPOINT is an SQS endpoint")
    return answer[name]


def _message(
    body: str, native: Mapping[str, Any], group_id: str | None, deduplication_id: str | None
) -> dict[str, Any]:
    request: dict[str, Any] = {"MessageBody": body}
    if native:
        request["MessageAttributes"] = native
    if group_id is not None:
        request["MessageGroupId"] = group_id
    if deduplication_id is not None:
        request["MessageDeduplicationId"] = deduplication_id
    return request


def _by_sqs(call: Call) -> Call:
    """`call`, whose answer is one of SQS's: JSON. botocore takes a page (a proxy's, a captive portal's, with status 200) for an
    answer that says nothing: a receive that brought no messages, deletes that all succeeded."""

    async def checked(operation: str, **request: Any) -> dict[str, Any]:
        answer = await call(operation, **request)
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "json" not in headers.get("content-type", "json"):
            raise ResponseParserError("not JSON")
        return answer

    return checked


@asynccontextmanager
async def opened(settings: Settings, *, polls: int) -> AsyncIterator[SqsQueue]:
    """Open the queue for at most `polls` receives at once, and close it at the end. For what it raises see
    `aws_client.opened`."""
    # One attempt for polls: a second one would not bring back what the first may have stranded, it would hide that the first
    # failed, and it would let the receive land after twice its time, when the drain that waits for it is over. Stale
    # connections need no second one either: polls follow each other closely, and idle connections are dropped.
    pools = [Pool(polls, attempts=1), Pool(OTHER_CALLS)]
    async with aws_client.opened(settings, pools) as [poll, call], running_time.running() as lived:
        yield SqsQueue(settings.sqs_queue_url, poll=poll, call=call, lived=lived)


@asynccontextmanager
async def opened_with_dead_letters(settings: Settings) -> AsyncIterator[tuple[SqsQueue, SqsQueue, str]]:
    """Open the queue, its dead-letter queue, and tell the latter's URL. Raises `QueueMisconfigured` when it has none."""
    pools = [Pool(1, attempts=1), Pool(2)]
    async with aws_client.opened(settings, pools) as [poll, call]:
        queue = SqsQueue(settings.sqs_queue_url, poll=poll, call=call)
        url = await queue._dead_letter_url()
        if url is None:
            raise QueueMisconfigured(
                f"{settings.sqs_queue_url} has no dead-letter queue (no redrive policy); `svc init` with SQS_DLQ_NAME makes one"
            )
        yield queue, SqsQueue(url, poll=poll, call=call), url


@contextmanager
def _bounded(
    seconds: float,
    doing: str,
    *,
    then: str = "it may have acted all the same",
    what: str = "SQS_QUEUE_URL",
    message: bool = False,
    clock: RunningTime | None = None,
) -> Iterator[None]:
    """Give one call so many seconds, and turn whatever botocore raises into a `QueueError`.

    `message`: the call sends a message, whose fault an error may be. Causes are cut off (`from None`): they hold
    requests.
    """
    try:
        with clock.fail_after(seconds) if clock else trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise QueueTimeout(f"{doing}: SQS did not answer within {seconds:g} s; {then}") from None
    except boto.ClientError as error:
        code, text = str(error.response["Error"].get("Code", "")), str(error.response["Error"].get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        refused = wire.message_error(code, text) if message else None
        raise refused or wire.service_error(doing, code, text, status, what=what) from None
    except (boto.BotoCoreError, ResponseParserError) as error:
        raise _transport_error(doing, error, then) from None


def _transport_error(doing: str, error: Exception, then: str) -> QueueError:
    """The `QueueError` for a call that got no answer from SQS."""
    parts = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or ""))
    endpoint = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "the endpoint"
    match error:
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            return QueueMisconfigured(
                f"{doing}: there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this "
                "machine a role (an emulator takes any)"
            )
        case boto.CredentialRetrievalError() | boto.MetadataRetrievalError() | boto.InvalidIMDSEndpointError():
            return QueueUnavailable(f"{doing}: the AWS credentials could not be fetched ({type(error).__name__})")
        case boto.SSOError() | boto.TokenRetrievalError() | boto.NoAuthTokenError():
            return QueueMisconfigured(f"{doing}: the AWS login has expired ({type(error).__name__}); log in again")
        case boto.SSLError():
            return QueueMisconfigured(
                f"{doing}: no TLS connection to {endpoint}; check AWS_ENDPOINT, and that its certificate is trusted"
            )
        case boto.ProxyConnectionError():
            return QueueUnavailable(
                f"{doing}: the HTTP proxy cannot be reached; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
            )
        case boto.ReadTimeoutError():
            return QueueTimeout(f"{doing}: {endpoint} did not answer in time; {then}")
        case boto.ConnectTimeoutError() | boto.EndpointConnectionError():
            return QueueUnavailable(
                f"{doing}: {endpoint} cannot be reached; check that it is up, and AWS_ENDPOINT and AWS_REGION"
            )
        case boto.HTTPClientError(kwargs={"error": FileNotFoundError()}):
            return QueueMisconfigured(f"{doing}: a certificate file is missing; check AWS_CA_BUNDLE")
        case boto.HTTPClientError():
            return QueueUnavailable(f"{doing}: the connection to SQS broke before the answer was complete; {then}")
        case ResponseParserError():
            return QueueUnavailable(f"{doing}: the answer is not SQS's; check that AWS_ENDPOINT is an SQS endpoint")
        case boto.ParamValidationError():
            return QueueError(f"{doing}: {error}")
        case _:
            return QueueUnavailable(f"{doing}: the call failed inside botocore ({type(error).__name__})")


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

    The queue's name is the last segment of `sqs_queue_url`; a name that ends in `.fifo` makes a FIFO queue. Raises
    `QueueError`, at once when the endpoint is not up: whoever starts both orders the start.
    """
    name = urlsplit(settings.sqs_queue_url).path.rpartition("/")[2]
    fifo = name.endswith(".fifo")
    dead_letters = settings.sqs_dlq_name
    if not name:
        raise QueueMisconfigured("SQS_QUEUE_URL names no queue; it must end in /<account>/<queue name>")
    if dead_letters is not None and dead_letters.endswith(".fifo") != fifo:
        raise QueueMisconfigured(
            f"SQS_DLQ_NAME must {'' if fifo else 'not '}end in .fifo: the dead-letter queue of a FIFO queue is a FIFO "
            "queue, and that of a standard queue a standard one"
        )
    if dead_letters == name:
        raise QueueMisconfigured("SQS_DLQ_NAME names the queue itself; a dead-letter queue must be another")
    async with aws_client.opened(settings, [Pool(10)]) as [call]:
        kind = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if fifo else {}
        url, is_new = await _ensure(
            call, name, {**kind, "VisibilityTimeout": str(settings.sqs_visibility_timeout_seconds)}
        )
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
    try:
        with _bounded(CALL_SECONDS, f"looking for queue {name}"):
            return _part(await call("get_queue_url", QueueName=name), "QueueUrl"), False
    except NoSuchQueue:
        pass
    with _bounded(CALL_SECONDS, f"creating queue {name}"):
        return _part(await call("create_queue", QueueName=name, Attributes=attributes), "QueueUrl"), True


async def _set_redrive_policy(call: Call, url: str, dead_url: str, most: int) -> Literal["set", "kept"]:
    async def attributes(of: str) -> dict[str, str]:
        with _bounded(CALL_SECONDS, "reading the queue's attributes"):
            answer = await call("get_queue_attributes", QueueUrl=of, AttributeNames=["QueueArn", "RedrivePolicy"])
        found: dict[str, str] = answer.get("Attributes", {})
        return found

    if (await attributes(url)).get("RedrivePolicy"):
        return "kept"
    policy = {"deadLetterTargetArn": (await attributes(dead_url))["QueueArn"], "maxReceiveCount": str(most)}
    with _bounded(CALL_SECONDS, "setting the redrive policy"):
        await call("set_queue_attributes", QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})
    return "set"
