"""SQS in trouble: the line to it, its answers, its queue."""

from collections.abc import Callable
from functools import partial

import trio

from svc.settings import load
from svc.sqs import creation
from tests.border.odd import FOREIGN, poisoned
from tests.faults.proxy import Answer, SqsProxy
from tests.faults.rows import outage, scenario
from tests.faults.trial import Trial
from tests.live import http_client

FAILED = "receiving failed, trying again"
WORKS = "receiving works again"
UNSETTLED = "messages could not be settled, trying again"
SETTLED = "messages are settled again"

SETTLING = 30.0
"""Calls per second where receives work and nothing else does: work goes on, eight messages a second of it, each batch of finished
ones is tried at once (twice, by botocore) and again by itself within two seconds, until its lease is over."""

HOLD = 5.0
"""Seconds that a fault lasts: several attempts, and less than the lease."""


async def unhealthy(t: Trial, says: str, hold: float = HOLD) -> None:
    """Hold the fault; meanwhile /health is 503 and says why, whenever it is asked."""
    end = trio.current_time() + hold
    await t.healthy(lambda body: body["status"] == "unhealthy" and says in str(body["queue_error"]), within=20)
    status, _ = await t.health()
    assert status == 503
    await trio.sleep_until(end)


async def none_twice(t: Trial) -> None:
    assert sum(t.record.succeeded.values()) == len(t.record.succeeded)


receiving_outage = partial(outage, named=FAILED, over=WORKS)
settling_outage = partial(outage, named=UNSETTLED, over=SETTLED, calls_limit=SETTLING)


# -- the line --


BROKEN_LINES: list[tuple[str, str, str, str, Callable[[SqsProxy], None]]] = [
    (
        "sqs-refused",
        "nothing listens at SQS's address",
        "`/health` 503, “cannot be reached”; work goes on by itself when it is back",
        "cannot be reached",
        SqsProxy.refuse,
    ),
    ("sqs-reset", "every connection to SQS is reset (RST)", "`/health` 503; recovers by itself", "", SqsProxy.reset),
    (
        "sqs-cut",
        "every connection to SQS is closed in the middle of what it carries",
        "`/health` 503; recovers by itself",
        "",
        SqsProxy.cut,
    ),
    (
        "sqs-hang",
        "SQS accepts connections and answers nothing",
        "`/health` 503 within 5 s, “no answer”; recovers by itself",
        "",
        SqsProxy.hang,
    ),
    (
        "sqs-slow",
        "everything between the service and SQS takes 4 s more, each way",
        "`/health` 503, “did not answer”; recovers by itself",
        "",
        lambda line: line.slow(4),
    ),
    (
        "sqs-throttled-line",
        "a line to SQS that carries 200 bytes per second",
        "`/health` 503, “did not answer”; recovers by itself",
        "",
        lambda line: line.throttle(200),
    ),
]
"""Name, fault, what one sees, what /health says, and how the line is broken."""

for name, fault, sees, says, break_it in BROKEN_LINES:

    @receiving_outage(name, fault, sees, by_default=name == "sqs-reset")
    async def _(t: Trial, break_it: Callable[[SqsProxy], None] = break_it, says: str = says) -> None:
        break_it(t.sqs)
        await unhealthy(t, says)


@receiving_outage(
    "sqs-half-open",
    "SQS's side of every connection has gone without a word (half-open)",
    "nothing, or `/health` 503 for some seconds; recovers by itself over new connections",
)
async def _(t: Trial) -> None:
    t.sqs.half_open()


@receiving_outage(
    "sqs-flapping",
    "the line to SQS breaks once a second for eight seconds",
    "`/health` 503 now and then; as much is done as can be",
)
async def _(t: Trial) -> None:
    for _ in range(8):
        t.sqs.reset()
        await trio.sleep(0.5)
        await t.sqs.heal()
        await trio.sleep(0.5)


@receiving_outage(
    "sqs-receives-lost",
    "SQS hands out messages and its answers do not arrive",
    "`/health` tells of the receives; the messages come when SQS's lease on them is over",
)
async def _(t: Trial) -> None:
    t.sqs.lose_answers("ReceiveMessage")
    await trio.sleep(HOLD)


@settling_outage(
    "sqs-deletes-lost",
    "SQS deletes messages and its answers do not arrive",
    "`/health` 200; the delete is tried again, nothing is processed again",
)
async def _(t: Trial) -> None:
    t.sqs.lose_answers("DeleteMessageBatch", "DeleteMessage")
    await trio.sleep(HOLD)


# -- its answers --


ERROR_ANSWERS = [
    (
        "sqs-500",
        "SQS answers every call with HTTP 500",
        "`/health` 503, “SQS broke down”; recovers by itself",
        "broke down",
        Answer(500, "InternalFailure"),
    ),
    (
        "sqs-503",
        "SQS answers every call with HTTP 503",
        "`/health` 503, “SQS broke down”; recovers by itself",
        "broke down",
        Answer(503, "ServiceUnavailable"),
    ),
    (
        "sqs-throttling",
        "SQS throttles every call",
        "`/health` 503, “throttled”; recovers by itself",
        "throttled",
        Answer(400, "com.amazonaws.sqs#RequestThrottled"),
    ),
    (
        "sqs-expired-token",
        "the credentials have expired",
        "`/health` 503, “have expired … renew them”; recovers by itself once they are renewed",
        "have expired",
        Answer(403, "com.amazon.coral.service#ExpiredTokenException"),
    ),
    (
        "sqs-wrong-credentials",
        "AWS does not know the credentials",
        "`/health` 503, “does not accept the credentials”, and which variables to check",
        "does not accept the credentials",
        Answer(403, "com.amazon.coral.service#InvalidClientTokenId"),
    ),
    (
        "sqs-clock-skew",
        "this machine's clock is wrong: AWS says the request has expired",
        "`/health` 503, “set this machine's clock”",
        "set this machine's clock",
        Answer(403, "com.amazon.coral.service#RequestExpired"),
    ),
    (
        "sqs-access-denied",
        "the credentials may not use the queue",
        "`/health` 503, “may not do this; grant the action”",
        "may not do this",
        Answer(403, "com.amazon.coral.service#AccessDeniedException"),
    ),
    (
        "sqs-no-such-queue",
        "SQS says that the queue does not exist",
        "`/health` 503, “there is no such queue”, and what to do",
        "no such queue",
        Answer(400, "com.amazonaws.sqs#QueueDoesNotExist"),
    ),
    (
        "sqs-garbage",
        "something that is not SQS answers (HTTP 200, a page)",
        "`/health` 503, “the answer is not SQS's”",
        "the answer is not SQS's",
        Answer(200, "", raw=b"<html><body>Welcome to the captive portal</body></html>"),
    ),
]
"""Name, fault, what one sees, what /health says, and the answer."""

for name, fault, sees, says, answer in ERROR_ANSWERS:

    @receiving_outage(name, fault, sees, within=60)  # fatal misconfiguration is asked about slowly
    async def _(t: Trial, answer: Answer = answer, says: str = says) -> None:
        t.sqs.answer(answer)
        await unhealthy(t, says)


@receiving_outage(
    "sqs-odd-answers",
    "every second answer is none of SQS's: pages, other JSON, compressed, nested, cut off, empty",
    "`/health` 200 or 503 with “the answer is not SQS's”; sends and `/queue/info` 200 or 502; the calls between them work",
    calls_limit=SETTLING,
    by_default=True,
)
async def _(t: Trial) -> None:
    t.sqs.odd(FOREIGN)
    end, seen = trio.current_time() + HOLD, set()
    async with http_client(t.service.url) as client:
        while trio.current_time() < end:
            for answer in (client.get("/queue/info"), client.post("/messages/send", json={"message": "{}"})):
                seen.add((await answer).status_code)
            await trio.sleep(0.2)
    assert {502} <= seen <= {200, 502, 504}, seen


@outage(
    "sqs-poison-message",
    "a message that cannot be read comes with each batch (Base64 that is none, attributes that are a list, …)",
    "`/health` 200; “message … is left out, because it cannot be read”; the others are processed",
    named="message odd is left out",
    over=None,
    calls_limit=SETTLING,
)
async def _(t: Trial) -> None:
    t.sqs.rewrite("ReceiveMessage", poisoned())
    await trio.sleep(HOLD)
    assert (await t.health())[0] == 200


@settling_outage(
    "sqs-deletes-unconfirmed",
    "SQS deletes messages and its answers name none of them",
    "`/health` 200; the delete is tried again, nothing is processed again",
    afterwards=none_twice,
)
async def _(t: Trial) -> None:
    t.sqs.rewrite("DeleteMessageBatch", lambda answer: {"Failed": [{"Id": "none"}, None]})
    await trio.sleep(HOLD)


@receiving_outage(
    "sqs-overlimit",
    "too many of the queue's messages are in flight",
    "`/health` 200 or 503 with “in flight”; recovers by itself",
)
async def _(t: Trial) -> None:
    t.sqs.answer(Answer(403, "com.amazonaws.sqs#OverLimit"), "ReceiveMessage")
    await trio.sleep(HOLD)


DELETES = ("DeleteMessageBatch", "DeleteMessage")


@settling_outage(
    "sqs-deletes-fail",
    "deletes fail with HTTP 500, for less than the lease",
    "`/health` 200; what is processed stays in flight until its delete is confirmed",
)
async def _(t: Trial) -> None:
    t.sqs.answer(Answer(500, "InternalFailure"), *DELETES)
    await trio.sleep(HOLD)


@settling_outage(
    "sqs-deletes-fail-long",
    "deletes fail for longer than the lease",
    "`message lost` for each; SQS delivers them again, and they are deleted without being processed again",
    afterwards=none_twice,
    SQS_VISIBILITY_TIMEOUT_SECONDS="4",
)
async def _(t: Trial) -> None:
    t.sqs.answer(Answer(500, "InternalFailure"), *DELETES)
    await t.logged("message lost")
    await t.logged("a message that was finished before has come back")


@scenario(
    "sqs-extensions-fail",
    "leases cannot be extended, for longer than the lease, while messages take longer than it",
    "`message lost`: the work is cancelled, SQS delivers the message again",
    SQS_VISIBILITY_TIMEOUT_SECONDS="6",
    WORK_SECONDS="8",
)
async def _(t: Trial) -> None:
    t.rate = 1.5
    await t.start()
    async with t.outage(
        named="leases could not be extended, trying again", over="leases are extended again", calls_limit=SETTLING
    ):
        t.sqs.answer(Answer(500, "InternalFailure"), "ChangeMessageVisibilityBatch", "ChangeMessageVisibility")
        await t.logged("message lost")


@scenario(
    "sqs-name-unknown",
    "the queue is given by name, and SQS does not know it when the service starts; then something else answers, then it is there",
    "`/health` 503, “there is no such queue”, “the answer is not SQS's”; works by itself when SQS knows it",
)
async def _(t: Trial) -> None:
    name = t.stand.environ["SQS_QUEUE_URL"].rpartition("/")[2]
    t.sqs.answer(Answer(400, "com.amazonaws.sqs#QueueDoesNotExist"), "GetQueueUrl")
    await t.start(load=False, SQS_QUEUE_URL=name)
    async with t.outage(named=FAILED, over=WORKS, from_the_start=True):
        await unhealthy(t, "no such queue")
        t.sqs.answer(Answer(200, "", raw=b"<html>"), "GetQueueUrl")
        await unhealthy(t, "is not SQS's")
    t.load()
    await t.logged(f"queue {name} is http://")


@scenario(
    "sqs-reject-without-dead-letters",
    "a processor rejects a message, and the queue has no dead-letter queue (`REJECT_WITHOUT_DLQ=fail`)",
    "a warning at the start; the message fails and comes back after its back-off; nothing is deleted",
    RETRY_BACKOFF="1s-2s",
)
async def _(t: Trial) -> None:
    url = t.stand.environ["SQS_QUEUE_URL"]
    policy = {"Attribute.1.Name": "RedrivePolicy", "Attribute.1.Value": ""}
    await t.aws("SetQueueAttributes", QueueUrl=url, **policy)
    await t.start()
    rejected = [await t.send(reject="no", first=True) for _ in range(3)]
    await t.logged("the queue has no dead-letter queue: rejected messages fail and come back")
    await t.until(lambda: all(t.record.succeeded[body] for body in rejected))
    assert (await t.service.statistics())["messages_rejected"] == 0


@scenario(
    "sqs-queue-deleted",
    "the queue is deleted, and created again",
    "`/health` 503, “there is no such queue; create it with `svc init`”; goes on by itself when it is there",
)
async def _(t: Trial) -> None:
    await t.start()
    await t.quiet()
    settings = load(t.stand.environ)
    async with t.outage(named=FAILED, over=WORKS, within=60):
        await sqs_delete_queue(t)
        await unhealthy(t, "no such queue")
        await creation.create(settings)


async def sqs_delete_queue(t: Trial) -> None:
    await t.aws("DeleteQueue", QueueUrl=t.stand.environ["SQS_QUEUE_URL"])
