"""Exactly once in virtual time: crashes, lost answers and lost leases between the claim, the commit and the delete."""

import contextlib
import sys
import time
import uuid
from typing import Any

import pytest
import trio

from svc import Batch, Message, Reject, Retry, Transaction, processor
from svc.processors import UnusableProcessor
from svc.testing import ScriptedQueue, SimulatedFleet

INSERT = "INSERT INTO orders VALUES (%s)"


@processor(exactly_once=True)
async def handle(message: Message, transaction: Transaction) -> None:
    await transaction.execute(INSERT, (message.body,))
    await trio.sleep(1)


async def test_a_crash_between_commit_and_delete(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    svc_queue.put("order")
    first = await svc_service(handle)
    await svc_service.inbox.commits(1)
    first.crash()
    second = await svc_service(handle)
    await second.idle()
    assert svc_service.inbox.statements == [(INSERT, ("order",))]
    assert (second.processed, second.duplicates) == (["order"], 1)
    assert len(second.runs) == 1  # of the whole, which did not reach the processor


async def test_a_crash_before_the_commit(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    svc_queue.put("order")
    first = await svc_service(handle)
    await first.at_work("order", seconds=0.5)
    first.crash()
    second = await svc_service(handle)
    await second.idle()
    assert svc_service.inbox.statements == [(INSERT, ("order",))]
    assert second.duplicates == 0


@pytest.mark.expects_errors
async def test_a_processor_that_leaves_a_nursery_open_is_not_committed(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    """Its message fails by that: a commit would make the next attempt a duplicate of what was not finished."""

    @processor(exactly_once=True)
    async def leaves(message: Message, transaction: Transaction) -> None:
        await transaction.execute(INSERT, (message.receive_count,))
        if message.receive_count == 1:
            await trio.open_nursery().__aenter__()

    svc_queue.put("order")
    service = await svc_service(leaves)
    await service.idle()
    assert (service.failed, service.processed, service.duplicates) == (["order"], ["order"], 0)
    assert svc_service.inbox.statements == [(INSERT, (2,))]


@pytest.mark.expects_errors
@pytest.mark.parametrize(("lost", "duplicates"), [("commit", 0), ("answer", 1), ("claim", 0)])
async def test_a_lost_connection(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock, lost: Any, duplicates: int
):
    svc_queue.put("order")
    svc_service.inbox.fail(lost)
    service = await svc_service(handle)
    await service.idle()
    assert service.failed == ["order"]  # nobody knows what has become of it, until it comes back
    assert service.processed == ["order"]
    assert svc_service.inbox.statements == [(INSERT, ("order",))]
    assert service.duplicates == duplicates


@pytest.mark.expects_errors
@pytest.mark.parametrize("end", [ValueError("no"), Retry(after=5), Reject("bad")])
async def test_what_raises_rolls_back(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock, end: Exception
):
    @processor(exactly_once=True)
    async def second_time_lucky(message: Message, transaction: Transaction) -> None:
        await transaction.execute(INSERT, (message.receive_count,))
        if message.receive_count == 1:
            raise end

    svc_queue.put("order")
    service = await svc_service(second_time_lucky)
    await service.idle()
    assert svc_service.inbox.statements == ([] if isinstance(end, Reject) else [(INSERT, (2,))])
    assert service.duplicates == 0


@pytest.mark.expects_errors
async def test_a_drain_that_cancels_rolls_back(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    svc_queue.put("order")
    service = await svc_service(handle, DRAIN_TIMEOUT="1s")
    await service.at_work("order", seconds=0.05)
    service.maintenance("on")
    await service.drained()
    assert service.released == ["order"]
    assert svc_service.inbox.committed == []


async def test_a_lease_that_is_lost_commits_nothing_although_its_processor_ignores_it(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    @processor(exactly_once=True)
    async def stubborn(message: Message, transaction: Transaction) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(15 if message.receive_count == 1 else 1)
        await transaction.execute(INSERT, (message.receive_count,))

    svc_queue.put("order")
    service = await svc_service(stubborn, SQS_VISIBILITY_TIMEOUT_SECONDS=10)
    await service.at_work("order", seconds=5)
    svc_queue.let_lease_run_out("order")
    await service.idle()
    assert service.lost == ["order"]
    # The second delivery waits for the first to end, which rolls back.
    assert svc_service.inbox.statements == [(INSERT, (2,))]
    assert svc_service.inbox.committed[0].at > 15


async def test_two_messages_with_one_key(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    """The second waits for the first, which has claimed the key and not committed, and is a duplicate then."""

    @processor(exactly_once=lambda order: order["id"])
    async def by_order(order: dict[str, Any], transaction: Transaction) -> None:
        await transaction.execute(INSERT, (order["id"],))
        await trio.sleep(5)

    svc_queue.put_all({"id": "A-1", "copy": 1}, {"id": "A-1", "copy": 2}, {"id": "B-1"})
    service = await svc_service(by_order)
    await service.idle()
    assert sorted(svc_service.inbox.statements) == [(INSERT, ("A-1",)), (INSERT, ("B-1",))]
    assert service.duplicates == 1
    assert len(service.processed) == 3
    assert trio.current_time() < 7


async def test_a_key_that_is_held_too_long_sends_the_message_back(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    @processor(exactly_once=lambda order: order["id"])
    async def slow(order: dict[str, Any], transaction: Transaction) -> None:
        await trio.sleep(15)

    svc_queue.put_all({"id": 7, "copy": 1}, {"id": 7, "copy": 2})
    service = await svc_service(slow, SQS_VISIBILITY_TIMEOUT_SECONDS=10)
    await service.idle()
    assert len(service.released) == 1  # after 10 s, for 10 s
    assert service.duplicates == 1


@pytest.mark.expects_errors
async def test_a_failed_statement_that_is_kept_quiet_is_no_success(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    def answers(query: str, params: Any) -> list[tuple[int]]:
        if "nonsense" in query and not svc_service.inbox.committed:
            raise ValueError("syntax error")
        return [(7,)]

    @processor(exactly_once=True)
    async def quiet(message: Message, transaction: Transaction) -> None:
        try:
            if message.body == "saved":
                async with transaction.savepoint():
                    await transaction.execute("nonsense")
            else:
                await transaction.execute("nonsense")
        except ValueError:
            pass

    svc_service.inbox.answers = answers
    svc_queue.put("order")
    service = await svc_service(quiet)
    assert await service.outcome("order") == "failed"
    svc_queue.put("saved")
    assert await service.outcome("saved") == "processed"
    assert svc_service.inbox.statements == []


async def test_a_plain_def_and_a_transaction_of_psycopg(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    psycopg = pytest.importorskip("psycopg")

    def plain(message: Message, connection: Any) -> None:
        with connection.transaction():
            assert connection.execute("SELECT 7").fetchone() == (7,)

    plain.__annotations__["connection"] = psycopg.Connection
    svc_service.inbox.answers = lambda query, params: [(7,)]
    svc_queue.put("order")
    service = await svc_service(processor(exactly_once=True)(plain))
    await svc_service.inbox.commits(1)
    service.crash()
    second = await svc_service(processor(exactly_once=True)(plain))
    await second.idle()
    assert svc_service.inbox.statements == [("SELECT 7", None)]
    assert second.duplicates == 1


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not run there")
async def test_asyncio(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    psycopg = pytest.importorskip("psycopg")

    async def on_asyncio(message: Message, connection: Any) -> None:
        cursor = await connection.execute("SELECT 7")
        assert await cursor.fetchone() == (7,)

    on_asyncio.__annotations__["connection"] = psycopg.AsyncConnection
    svc_service.inbox.answers = lambda query, params: [(7,)]
    svc_queue.put("order")
    service = await svc_service(processor(exactly_once=True, runtime="asyncio")(on_asyncio))
    await service.idle()
    assert svc_service.inbox.statements == [("SELECT 7", None)]


@pytest.mark.expects_errors
async def test_a_key_that_cannot_be_one_fails_its_message(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    @processor(exactly_once=lambda order: order["id"])
    async def by_order(order: dict[str, Any], transaction: Transaction) -> None:
        await transaction.execute(INSERT, (order["id"],))

    odd = [None, True, 1.5, [], {}, "", "a\0b"]  # a body cannot hold half a character
    usable = ["x" * 5000, 12**80, str(uuid.uuid4())]
    svc_queue.put_all(*({"id": key} for key in odd + usable))
    service = await svc_service(by_order, RETRY_BACKOFF="off", SQS_VISIBILITY_TIMEOUT_SECONDS=10)
    await service.wait_for(lambda: len(service.failed) == len(odd) and len(service.processed) == len(usable))
    assert max(len(key) for key in svc_service.inbox.keys) <= 200


async def test_keys_are_forgotten_after_their_time(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    svc_queue.put("order")
    service = await svc_service(handle)
    await service.idle()
    svc_service.inbox.forget(3600)
    assert len(svc_service.inbox.keys) == 1
    await trio.sleep(3600)
    svc_service.inbox.forget(3600)
    assert not svc_service.inbox.keys


async def _no_transaction(message: Message) -> None: ...


async def _two(message: Message, one: Transaction, other: Transaction) -> None: ...


def _wrong_colour(message: Message, transaction: Transaction) -> None: ...


async def _not_said(message: Message, transaction: Transaction) -> None: ...


@pytest.mark.parametrize(
    ("function", "exactly_once", "why"),
    [
        (_no_transaction, True, "none of its parameters is annotated svc.Transaction"),
        (_wrong_colour, True, "is a plain def: its transaction is one psycopg.Connection, not svc.Transaction"),
        (_not_said, False, r"wants a transaction for 'transaction': say @processor\(exactly_once=True\)"),
    ],
)
async def test_what_cannot_work_is_told_at_the_start(
    svc_service: SimulatedFleet, autojump_clock, function: Any, exactly_once: bool, why: str
):
    with pytest.RaisesGroup(
        pytest.RaisesExc(UnusableProcessor, match=why), flatten_subgroups=True, allow_unwrapped=True
    ):
        await svc_service(processor(exactly_once=exactly_once)(function))


def test_what_is_no_key_is_told_at_once():
    with pytest.raises(ValueError, match="exactly_once='id'"):
        processor(exactly_once="id")  # type: ignore[arg-type]


async def test_many_duplicates_cost_few_looks(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    """Threads, too: a plain function whose key is busy gives up when its message is given back."""
    began = time.monotonic()
    svc_queue.put_all(*("order" for _ in range(20)))
    service = await svc_service(processor(exactly_once=lambda message: message.body)(_insert))
    await service.idle()
    assert svc_service.inbox.statements == [(INSERT, ("order",))]
    assert service.duplicates == 19
    assert time.monotonic() - began < 5


async def _insert(message: Message, transaction: Transaction) -> None:
    await transaction.executemany(INSERT, [(message.body,)])


@processor(batch=10, linger=0.5, exactly_once=lambda order: order["id"])
async def in_batches(batch: Batch[dict[str, Any]], transaction: Transaction) -> None:
    for item in batch:
        if item.message.receive_count == 1 and "does" in item.payload:
            if item.payload["does"] == "all":
                item.done()
                raise ValueError
            item.fail("not this time")
            continue
        await transaction.execute(INSERT, (item.payload["id"],))
    await trio.sleep(1)


@pytest.mark.expects_errors
async def test_a_batch_is_one_transaction_without_what_was_done_and_what_failed(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    svc_queue.put_all({"id": 1}, {"id": 2})
    first = await svc_service(in_batches)
    await svc_service.inbox.commits(1)
    first.crash()
    assert [one.keys for one in svc_service.inbox.committed] == [("1", "2")]

    second = await svc_service(in_batches, RETRY_BACKOFF="1s-2s")
    await trio.sleep(40)  # what the dead one has asked for is answered until then
    svc_queue.put_all({"id": 3}, {"id": 4, "does": "fail"}, {"id": 5}, {"id": 5, "twin": True})
    await second.idle()
    assert sorted(params[0] for _, params in svc_service.inbox.statements) == [1, 2, 3, 4, 5]
    assert sorted(svc_service.inbox.keys) == ["1", "2", "3", "4", "5"]
    assert second.duplicates == 3  # 1, 2 and the twin
    assert (len(second.failed), len(second.released)) == (1, 0)


@pytest.mark.expects_errors
async def test_a_batch_that_raises_leaves_nothing_and_what_was_called_done_comes_back(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    svc_queue.put_all({"id": 1}, {"id": 2, "does": "all"}, {"id": None})
    service = await svc_service(in_batches, RETRY_BACKOFF="1s-2s")
    await service.wait_for(lambda: len(service.processed) == 2)
    assert sorted(params[0] for _, params in svc_service.inbox.statements) == [1, 2]
    assert len(service.failed) >= 3


def _by_body(message: Message) -> str:
    return message.body


async def _twins_on_trio(batch: Batch[Message], transaction: Transaction) -> None:
    for item in batch:
        if item.payload.receive_count == 1 and item.payload.body == "savepoint":
            with contextlib.suppress(ValueError):
                async with transaction.savepoint():
                    await transaction.execute(INSERT, ("rolled back",))
                    item.fail("not this time")
                    raise ValueError
        else:
            await transaction.execute(INSERT, (item.payload.body,))


async def _twins_on_asyncio(batch: Batch[Message], connection: Any) -> None:
    for item in batch:
        if item.payload.receive_count == 1 and item.payload.body == "savepoint":
            with contextlib.suppress(ValueError):
                async with connection.transaction():
                    await connection.execute(INSERT, ("rolled back",))
                    item.fail("not this time")
                    raise ValueError
        else:
            await connection.execute(INSERT, (item.payload.body,))


def _twins_in_a_thread(batch: Batch[Message], connection: Any) -> None:
    for item in batch:
        if item.payload.receive_count == 1 and item.payload.body == "savepoint":
            with contextlib.suppress(ValueError), connection.transaction():
                connection.execute(INSERT, ("rolled back",))
                item.fail("not this time")
                raise ValueError
        else:
            connection.execute(INSERT, (item.payload.body,))


@pytest.mark.expects_errors
@pytest.mark.parametrize("runtime", ["trio", "asyncio", "thread"])
async def test_of_several_with_one_key_in_a_batch_the_others_are_duplicates_of_the_first(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock, runtime: Any
):
    """Once it is committed; after a savepoint that was rolled back they come again with it."""
    if runtime == "asyncio" and sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio does not run there")
    psycopg = pytest.importorskip("psycopg")
    _twins_on_asyncio.__annotations__["connection"] = psycopg.AsyncConnection
    _twins_in_a_thread.__annotations__["connection"] = psycopg.Connection
    function: Any = {"trio": _twins_on_trio, "asyncio": _twins_on_asyncio, "thread": _twins_in_a_thread}[runtime]
    svc_queue.put_all("order", "savepoint", "order", "savepoint", "order", "alone")
    service = await svc_service(
        processor(batch=6, linger=0.5, exactly_once=_by_body, runtime=runtime)(function), RETRY_BACKOFF="5s-6s"
    )
    await svc_service.inbox.commits(1)
    await service.wait_for(lambda: len(service.processed) == 4)
    assert sorted(service.processed) == ["alone", "order", "order", "order"]
    assert service.duplicates == 2
    assert svc_service.inbox.committed[0].keys == ("alone", "order")
    await service.idle()
    assert (service.failed, service.released) == (["savepoint"], ["savepoint"])
    assert sorted(params[0] for _, params in svc_service.inbox.statements) == ["alone", "order", "savepoint"]
    assert service.duplicates == 3


@pytest.mark.svc_queue(max_receive_count=1)
async def test_a_duplicate_within_a_batch_is_not_dead_lettered_in_its_last_receive(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    svc_queue.put_all("order", "order")
    service = await svc_service(processor(batch=2, linger=0.5, exactly_once=_by_body)(_twins_on_trio))
    await service.idle()
    assert (service.processed, service.duplicates) == (["order", "order"], 1)
    assert svc_queue.dead_letters.bodies == []


@pytest.mark.expects_errors
@pytest.mark.parametrize("lost", ["commit", "answer"])
async def test_duplicates_within_a_batch_that_was_not_committed_come_back_with_it(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock, lost: Any
):
    svc_service.inbox.fail(lost)
    svc_queue.put_all("order", "order")
    service = await svc_service(processor(batch=2, linger=0.5, exactly_once=_by_body)(_twins_on_trio))
    await service.idle()
    assert service.failed == ["order", "order"]
    assert service.processed == ["order", "order"]
    assert svc_service.inbox.statements == [(INSERT, ("order",))]
    assert service.duplicates == (1 if lost == "commit" else 2)


async def test_a_batch_in_threads(svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock):
    psycopg = pytest.importorskip("psycopg")

    def plain(batch: Batch[Message], connection: Any) -> None:
        for item in batch:
            connection.execute(INSERT, (item.payload.body,))

    plain.__annotations__["connection"] = psycopg.Connection
    svc_queue.put_all("a", "b")
    service = await svc_service(processor(batch=10, linger=0.5, exactly_once=True)(plain))
    await service.idle()
    assert sorted(params for _, params in svc_service.inbox.statements) == [("a",), ("b",)]
    assert len(svc_service.inbox.committed) == 1


@pytest.mark.expects_errors
async def test_what_was_lost_of_a_batch_is_committed_with_the_rest(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    @processor(batch=2, linger=0.1, exactly_once=True)
    async def both(batch: Batch, transaction: Transaction) -> None:
        for item in batch:
            await transaction.execute(INSERT, (item.message.body,))
        await trio.sleep(40)

    svc_queue.put("a")
    svc_queue.put("b")
    service = await svc_service(both, SQS_VISIBILITY_TIMEOUT_SECONDS="30")
    await service.at_work("b", seconds=1)
    svc_queue.let_lease_run_out("a")
    await service.idle()
    assert sorted(statement[1][0] for statement in svc_service.inbox.statements) == ["a", "b"]
    assert (service.lost, sorted(service.processed), len(service.batches)) == (["a"], ["a", "b"], 1)


@pytest.mark.expects_errors
async def test_a_batch_whose_processor_returns_something_is_not_committed(
    svc_queue: ScriptedQueue, svc_service: SimulatedFleet, autojump_clock
):
    @processor(batch=2, linger=0.1, exactly_once=True)
    async def returns(batch: Batch, transaction: Transaction):
        await transaction.execute(INSERT, (batch[0].message.receive_count,))
        return ["a list of failures"] if batch[0].message.receive_count == 1 else None

    svc_queue.put("a")
    service = await svc_service(returns)
    await service.idle()
    assert (service.failed, service.processed, service.duplicates) == (["a"], ["a"], 0)
    assert svc_service.inbox.statements == [(INSERT, (2,))]
