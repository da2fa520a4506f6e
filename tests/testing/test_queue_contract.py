"""One suite for every queue: the simulated one in virtual time, moto's in real time, and any real SQS endpoint.

    SVC_CONTRACT_ENDPOINT=http://localhost:4566 pytest tests/testing/test_queue_contract.py -m contract_endpoint

runs it against LocalStack; `SVC_CONTRACT_ENDPOINT=aws` against AWS itself, with region and credentials from variables
like `SVC_CONTRACT_AWS_ACCESS_KEY_ID` (the tests scrub `AWS_*`). Queues are made for each test, and left behind.

Every test says what AWS documents. Where moto or LocalStack differs, a table says so and names AWS's document; there
the test asserts that moto *does* differ, so that we notice when it no longer does.
"""

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from svc.consumer.queue import MessageRefused, MessageTooLong, Queue, QueueError, Received, Refusal
from svc.settings import Settings
from svc.sqs import aws_client, creation
from svc.sqs import queue as sqs
from svc.testing import EPOCH, SimulatedQueue
from tests.roads import ROADS

_API = "Amazon SQS API Reference, "
MOTO_DIFFERS = {
    "old handle deletes": (
        "a delete with the handle of an earlier receive deletes the message, although it was received again",
        _API + "DeleteMessage: 'you must use the ReceiptHandle from the most recent time you received the message'",
    ),
    "old handle changes visibility": (
        "a change of visibility with the handle of an earlier receive works",
        _API + "ReceiveMessage and DeleteMessage: a handle stands for one receive of a message",
    ),
    "never not in flight": (
        "the visibility of a message that is visible again can be changed",
        _API + "ChangeMessageVisibility: error MessageNotInflight",
    ),
    "fifo expired handle deletes": (
        "a FIFO queue deletes with a handle whose lease is over",
        "Amazon SQS Developer Guide, 'Exactly-once processing'; observed on AWS: aws-sdk-js#1750, localstack#12442",
    ),
    "total visibility fails the batch": (
        "a lease beyond 12 hours fails the whole batch call instead of its entry",
        _API + "ChangeMessageVisibilityBatch: 'the result of the action on each message is reported individually'",
    ),
    "no sequence numbers": (
        "a message that is deduplicated by its content has no SequenceNumber",
        _API + "SendMessage: 'Amazon SQS assigns to each message' of a FIFO queue",
    ),
    "no attempt ids": (
        "a receive that is asked for again by its ReceiveRequestAttemptId is another receive",
        _API
        + "ReceiveMessage: 'subsequent calls with the same ReceiveRequestAttemptId return the same messages and receipt handles'",
    ),
    "no batch limit": (
        "a batch of eleven deletes is accepted",
        _API + "DeleteMessageBatch: error TooManyEntriesInBatchRequest",
    ),
}
LOCALSTACK_DIFFERS = {  # 4.14
    "no attempt ids": MOTO_DIFFERS["no attempt ids"],
    "old handle deletes": MOTO_DIFFERS["old handle deletes"],
    "old handle changes visibility": MOTO_DIFFERS["old handle changes visibility"],
    "never not in flight": MOTO_DIFFERS["never not in flight"],
    "no total visibility limit": (
        "a lease can be extended beyond 12 hours from its receive",
        _API + "ChangeMessageVisibility: 'If you attempt to set the VisibilityTimeout to a value greater than the "
        "maximum time left, Amazon SQS returns an error'",
    ),
}


@dataclass
class Kingdom:
    """Where a queue lives, and what a test needs to know of it."""

    name: str
    make: Callable[..., Any]
    settings: Settings

    def differs(self, what: str) -> bool:
        """Whether this queue is known to differ from AWS's documentation in this point."""
        assert what in {**MOTO_DIFFERS, **LOCALSTACK_DIFFERS}
        return what in {"moto": MOTO_DIFFERS, "localstack": LOCALSTACK_DIFFERS}.get(self.name, {})

    def now(self) -> datetime:
        """The time that `Message.sent_at` is counted in."""
        return EPOCH + timedelta(seconds=trio.current_time()) if self.name == "simulated" else datetime.now(UTC)

    def dead(self, queue: Queue) -> Queue:
        """The dead-letter queue of a queue that was made with one."""
        return queue.dead  # type: ignore[attr-defined, no-any-return]

    def queue(self, **options: Any) -> "contextlib.AbstractAsyncContextManager[Queue]":
        """A fresh queue. Options: `fifo`, `dead_letters` (with a redrive policy of two receives)."""
        return self.make(**options)  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def _simulated(*, fifo: bool = False, dead_letters: bool = False) -> AsyncIterator[Queue]:
    dead = SimulatedQueue("dead", fifo=fifo, content_deduplication=fifo) if dead_letters else None
    queue = SimulatedQueue(
        fifo=fifo, content_deduplication=fifo, dead_letters=dead, max_receive_count=2 if dead else None
    )
    queue.dead = dead  # type: ignore[attr-defined]
    yield queue


def _over_the_wire(endpoint: str, name: str, road: aws_client.Road | None = None) -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def make(*, fifo: bool = False, dead_letters: bool = False) -> AsyncIterator[Queue]:
        suffix = ".fifo" if fifo else ""
        settings = _settings(endpoint, f"{name}{suffix}", f"{name}-dead{suffix}" if dead_letters else None)
        settings = settings.model_copy(update={"sqs_transport": road or "auto"})
        created = await creation.create(settings)
        async with sqs.opened(settings.model_copy(update={"sqs_queue_url": created.queue_url}), polls=2) as queue:
            if created.dead_letter_url:
                # On the same clients: a second loop inside this one would take over the calls of the first.
                queue.dead = sqs.SqsQueue(created.dead_letter_url, poll=queue._poll, call=queue._call)  # type: ignore[attr-defined]
            yield queue

    return make


def _settings(endpoint: str, name: str, dead: str | None) -> Settings:
    return Settings(
        sqs_queue_url=f"{endpoint or 'https://sqs.amazonaws.com'}/000000000000/{name}",
        aws_endpoint=endpoint,
        aws_region=os.environ.get("SVC_CONTRACT_AWS_REGION", "us-east-1"),
        sqs_wait_time_seconds=2,
        sqs_dlq_name=dead,
        sqs_max_receive_count=2,
    )


_ENDPOINT = [pytest.param(f"endpoint, {road}", marks=pytest.mark.contract_endpoint) for road in ROADS]


@pytest.fixture(
    params=[
        "simulated",
        f"moto, {ROADS[0]}",
        # Of the other roads an ordinary run takes test_the_other_roads_in_short.
        *(pytest.param(f"moto, {road}", marks=pytest.mark.slow) for road in ROADS[1:]),
        *(_ENDPOINT if "SVC_CONTRACT_ENDPOINT" in os.environ else []),
    ]
)
def kingdom(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kingdom:
    name = f"contract-{uuid.uuid4().hex[:12]}"
    if request.param == "simulated":
        return Kingdom("simulated", _simulated, _settings("", name, None))
    where, _, road = request.param.partition(", ")
    if where == "moto":
        endpoint = request.getfixturevalue("moto").url
        return Kingdom("moto", _over_the_wire(endpoint, name, road), _settings(endpoint, name, None))
    given = os.environ["SVC_CONTRACT_ENDPOINT"]
    for variable, value in os.environ.items():
        if variable.startswith("SVC_CONTRACT_AWS_"):
            monkeypatch.setenv(variable.removeprefix("SVC_CONTRACT_"), value)
    endpoint = "" if given == "aws" else given.rstrip("/")
    who = "localstack" if endpoint else "aws"
    return Kingdom(who, _over_the_wire(endpoint, name, road), _settings(endpoint, name, None))


@pytest.fixture
def clock(kingdom: Kingdom) -> trio.abc.Clock:
    """Virtual time for what is in memory, real time for what is not; never both (python-trio/trio#456).

    pytest-trio takes the clock of a test from its arguments: every test here has this one.
    """
    virtual = kingdom.name == "simulated"
    return trio.testing.MockClock(rate=0.0 if virtual else 1.0, autojump_threshold=0 if virtual else float("inf"))


async def receive(queue: Queue, count: int = 1, *, wait: int = 2, visibility: int = 30) -> list[Received]:
    """Exactly `count` deliveries. SQS may bring fewer at a time than there are."""
    found: list[Received] = []
    while len(found) < count:
        more = await queue.receive(limit=min(10, count - len(found)), wait=wait, visibility=visibility)
        assert more, f"only {len(found)} of {count} messages came"
        found.extend(more)
    return found


async def nothing_comes(queue: Queue, wait: int = 0) -> bool:
    return not await queue.receive(limit=10, wait=wait, visibility=30)


def only(refused: Mapping[str, Refusal], receipt: str) -> Refusal:
    assert list(refused) == [receipt]
    return refused[receipt]


Clock = trio.abc.Clock


async def test_a_message_comes_as_it_was_sent(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        sent_at = kingdom.now()
        message_id = await queue.send("grüße \U0001f600\n<b>", attributes={"kind": "order", "n": 3, "x": 0.5})
        [delivery] = await receive(queue)
        message = delivery.message
        assert (message.id, message.body, message.receive_count) == (message_id, "grüße \U0001f600\n<b>", 1)
        assert message.attributes == {"kind": "order", "n": "3", "x": "0.5"}
        assert message.group_id is None
        assert message.sent_at is not None
        assert abs(message.sent_at - sent_at) < timedelta(seconds=5)
        system = message.system
        assert system.sender_id
        assert system.first_received_at is not None
        assert abs(system.first_received_at - sent_at) < timedelta(seconds=5)
        assert (system.sequence_number, system.deduplication_id, system.dead_letter_source) == (None, None, None)


async def test_deletes_within_and_after_the_lease_and_once_more(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        for body in "ab":
            await queue.send(body)
        a, b = await receive(queue, 2, visibility=1)
        assert await queue.delete([a.receipt]) == {}
        await trio.sleep(1.1)
        # On a standard queue the handle deletes for as long as nobody has received the message again.
        assert await queue.delete([b.receipt]) == {}
        assert await queue.delete([a.receipt, b.receipt]) == {}
        assert await nothing_comes(queue)


async def test_a_message_comes_again_when_its_lease_is_over(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x")
        [first] = await receive(queue, visibility=1)
        [second] = await receive(queue)
        assert first.message.id == second.message.id
        assert first.receipt != second.receipt
        assert second.message.receive_count == 2

        refused = await queue.change_visibility({first.receipt: 20})
        if kingdom.differs("old handle changes visibility"):
            assert refused == {}
        else:
            assert only(refused, first.receipt).gone

        assert await queue.delete([first.receipt]) == {}
        await queue.change_visibility({second.receipt: 0})
        assert await nothing_comes(queue, wait=1) == kingdom.differs("old handle deletes")


async def test_a_message_that_is_visible_again_has_no_lease_to_change(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x")
        [delivery] = await receive(queue)
        assert await queue.change_visibility({delivery.receipt: 0}) == {}
        refused = await queue.change_visibility({delivery.receipt: 20})
        if kingdom.differs("never not in flight"):
            assert refused == {}
        else:
            assert only(refused, delivery.receipt).gone


async def test_a_released_message_comes_at_once(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x")
        [first] = await receive(queue)
        assert await nothing_comes(queue)
        assert await queue.change_visibility({first.receipt: 0}) == {}
        [second] = await receive(queue)
        assert second.message.receive_count == 2


async def test_an_extended_lease_holds_and_none_lasts_longer_than_twelve_hours(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x")
        [delivery] = await receive(queue, visibility=1)
        assert await queue.change_visibility({delivery.receipt: 20}) == {}
        await trio.sleep(1.1)
        assert await nothing_comes(queue, wait=0)
        if kingdom.differs("total visibility fails the batch"):
            with pytest.raises(QueueError, match="beyond the limit"):
                await queue.change_visibility({delivery.receipt: 43_200})
        elif kingdom.differs("no total visibility limit"):
            assert await queue.change_visibility({delivery.receipt: 43_200}) == {}
        else:
            refusal = only(await queue.change_visibility({delivery.receipt: 43_200}), delivery.receipt)
            assert not refusal.gone
        assert await queue.change_visibility({delivery.receipt: 43_000}) == {}


async def test_a_batch_is_refused_by_entry(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        for body in "ab":
            await queue.send(body)
        a, b = await receive(queue, 2)
        refused = await queue.change_visibility({a.receipt: 20, "no such handle": 20, b.receipt: 20})
        assert only(refused, "no such handle").gone
        refused = await queue.delete([a.receipt, "no such handle", b.receipt])
        assert only(refused, "no such handle").gone
        assert "no such handle" not in repr(refused.values())


async def test_ten_entries_a_batch(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        with pytest.raises(QueueError):
            await queue.receive(limit=11, wait=0, visibility=30)
        for number in range(11):
            await queue.send(str(number))
        receipts = [delivery.receipt for delivery in await receive(queue, 11)]
        if kingdom.differs("no batch limit"):
            assert await queue.delete(receipts) == {}
        else:
            with pytest.raises(QueueError):
                await queue.delete(receipts)
            assert await queue.delete(receipts[:10]) == {}


async def test_a_long_poll_waits_its_time_and_no_longer_than_for_the_first_message(
    kingdom: Kingdom, clock: Clock, nursery: trio.Nursery
) -> None:
    async with kingdom.queue() as queue:
        began = trio.current_time()
        assert await nothing_comes(queue, wait=1)
        assert 0.9 <= trio.current_time() - began < 2.5

        async def send_soon() -> None:
            await trio.sleep(0.3)
            await queue.send("x")

        began = trio.current_time()
        nursery.start_soon(send_soon)
        await receive(queue, wait=2)
        assert 0.3 <= trio.current_time() - began < 1.8


async def test_a_delayed_message_comes_after_its_delay(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x", delay=1)
        assert await nothing_comes(queue, wait=0)
        await receive(queue)


TAKEN_BY_NO_QUEUE: list[tuple[str, dict[str, str | float], type[QueueError]]] = [
    ("", {}, MessageRefused),
    ("a\x00b", {}, MessageRefused),
    ("\ud800", {}, MessageRefused),
    ("x" * 1_048_577, {}, MessageTooLong),
    ("x" * 1_048_570, {"long": "enough"}, MessageTooLong),
    ("x", {"": "y"}, MessageRefused),
    ("x", {"aws.y": "y"}, MessageRefused),
    ("x", {"y": ""}, MessageRefused),
    ("x", {"y": float("nan")}, MessageRefused),
    ("x", {f"a{number}": "y" for number in range(11)}, MessageRefused),
]


async def test_messages_that_no_queue_takes(kingdom: Kingdom, clock: Clock) -> None:
    # Refused before anything travels: no queue has to be made for it. (Sizes and characters as AWS documents them.)
    async with _simulated() if kingdom.name == "simulated" else sqs.opened(kingdom.settings, polls=1) as queue:
        for body, attributes, error in TAKEN_BY_NO_QUEUE:
            with pytest.raises(error):
                await queue.send(body, attributes=attributes)


async def test_what_a_queue_refuses_by_its_kind(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        with pytest.raises(MessageRefused):
            await queue.send("x", delay=901)
    async with kingdom.queue(fifo=True) as queue:
        with pytest.raises(MessageRefused):
            await queue.send("x")
        with pytest.raises(MessageRefused):
            await queue.send("x", group_id="g", delay=5)


async def test_fifo_keeps_order_and_locks_groups(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=True) as queue:
        for body in ("a1", "a2", "b1"):
            await queue.send(body, group_id=body[0])
        [a1] = await receive(queue)
        [b1] = await receive(queue)
        assert (a1.message.body, a1.message.group_id, b1.message.body) == ("a1", "a", "b1")
        assert await nothing_comes(queue)
        await queue.change_visibility({a1.receipt: 0})
        [again] = await receive(queue)
        assert again.message.body == "a1"
        await queue.delete([again.receipt])
        [a2] = await receive(queue)
        assert a2.message.body == "a2"
        first, second = a1.message.system.sequence_number, a2.message.system.sequence_number
        if kingdom.differs("no sequence numbers"):
            assert (first, second) == (None, None)
        else:
            assert first is not None
            assert second is not None
            assert first < second
        assert a1.message.system == again.message.system
        assert a1.message.system.deduplication_id


async def test_fifo_repeats_a_receive_by_its_attempt_id(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=True) as queue:
        await queue.send("x", group_id="g")
        await queue.send("y", group_id="g")
        asked = {"limit": 10, "wait": 1, "visibility": 30}
        first = await queue.receive(**asked, attempt="one")
        assert first[0].message.body == "x"
        again = await queue.receive(**{**asked, "wait": 0}, attempt="one")
        if kingdom.differs("no attempt ids"):
            assert again == []
            return
        assert [delivery.receipt for delivery in again] == [delivery.receipt for delivery in first]
        assert again[0].message.receive_count == 1
        assert await queue.receive(**{**asked, "wait": 0}, attempt="two") == []
        await queue.delete([first[0].receipt])
        with pytest.raises(QueueError, match="not retryable"):
            await queue.receive(**asked, attempt="one")


async def test_fifo_stores_a_repeated_message_once(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=True) as queue:
        await queue.send("same", group_id="g")
        await queue.send("same", group_id="g")
        await queue.send("other", group_id="g", deduplication_id="one")
        await queue.send("another", group_id="g", deduplication_id="one")
        assert [delivery.message.body for delivery in await receive(queue, 2)] == ["same", "other"]
        assert await nothing_comes(queue)


async def test_fifo_refuses_a_handle_whose_lease_is_over(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=True) as queue:
        await queue.send("x", group_id="g")
        [delivery] = await receive(queue, visibility=1)
        await trio.sleep(1.1)
        refused = await queue.delete([delivery.receipt])
        if kingdom.differs("fifo expired handle deletes"):
            assert refused == {}
        else:
            assert only(refused, delivery.receipt).gone


@pytest.mark.parametrize("kingdom", [f"moto, {road}" for road in ROADS[1:]], indirect=True)
async def test_the_other_roads_in_short(kingdom: Kingdom, clock: Clock) -> None:
    await test_a_message_comes_as_it_was_sent(kingdom, clock)
    await test_a_batch_is_refused_by_entry(kingdom, clock)
    await test_what_a_queue_refuses_by_its_kind(kingdom, clock)


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
async def test_redrive_after_two_receives(fifo: bool, kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=fifo, dead_letters=True) as queue:
        await queue.send("x", group_id="g" if fifo else None)
        for count in (1, 2):
            [delivery] = await receive(queue)
            assert delivery.message.receive_count == count
            await queue.change_visibility({delivery.receipt: 0})
        assert await nothing_comes(queue)
        [letter] = await receive(kingdom.dead(queue))
        assert (letter.message.id, letter.message.body) == (delivery.message.id, "x")


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
async def test_a_rejected_message_goes_to_the_dead_letter_queue(fifo: bool, kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue(fifo=fifo, dead_letters=True) as queue:
        assert queue.max_receive_count is None
        await queue.attributes()
        assert queue.max_receive_count == 2
        await queue.send("x", attributes={"n": 1}, group_id="g" if fifo else None)
        [delivery] = await receive(queue)
        assert await queue.dead_letter(delivery, "no such\x00 customer")
        [letter] = await receive(kingdom.dead(queue))
        told = {"RejectReason": "no such\ufffd customer", "RejectedMessageId": delivery.message.id}
        assert letter.message.attributes == {"n": "1", **told}
        assert letter.message.group_id == ("g" if fifo else None)
        assert await queue.change_visibility({delivery.receipt: 20}) == {}  # the delivery itself was left


async def test_without_a_dead_letter_queue_there_is_nowhere_to_put_it(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        await queue.send("x")
        [delivery] = await receive(queue)
        assert not await queue.dead_letter(delivery, "why")
        assert queue.max_receive_count is None


async def test_a_cancelled_poll_strands_what_comes_later(kingdom: Kingdom, clock: Clock) -> None:
    async with kingdom.queue() as queue:
        assert await nothing_comes(queue, wait=0)  # so that there is a connection, and the poll is on the wire at once
        with trio.move_on_after(0.5):
            await queue.receive(limit=1, wait=4, visibility=30)
        await queue.send("x")
        await trio.sleep(0.5)
        attributes = await queue.attributes()
        stranded = attributes["ApproximateNumberOfMessagesNotVisible"]
        if kingdom.name in ("simulated", "moto"):  # not documented by AWS, which may notice that the client has gone
            assert stranded == "1"
            assert await nothing_comes(queue, wait=0)


def test_every_difference_has_its_source() -> None:
    known = [*MOTO_DIFFERS.values(), *LOCALSTACK_DIFFERS.values()]
    assert all(what and source.startswith("Amazon SQS") for what, source in known)
