"""What a message tells its processor beside its body: the system attributes, the last attempt, its lease, and that a drain has
begun; in virtual time, on each runtime."""

import sys
from datetime import datetime, timedelta

import pytest
import trio

from svc import Message, Retry, processor
from svc.processors import Peeled, System
from svc.testing import EPOCH, ScriptedQueue, SimulatedQueue, SimulatedService


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


async def test_the_system_attributes(autojump_clock) -> None:
    said: list[System] = []

    async def handle(message: Message) -> None:
        said.append(message.system)
        if message.receive_count == 1:
            raise Retry(after=60)

    queue = SimulatedQueue(fifo=True)
    queue.put("x", group_id="g", deduplication_id="d-1")
    async with SimulatedService(queue, handle) as service:
        await service.idle()
    first, second = said
    assert first == second
    assert (first.deduplication_id, first.sequence_number, first.first_received_at) == ("d-1", 1, at(0))
    assert first.sender_id
    assert first.dead_letter_source is None


@pytest.mark.expects_errors
async def test_a_dead_letter_names_the_queue_that_it_comes_from(autojump_clock) -> None:
    async def fail(message: Message) -> None:
        raise OSError

    sources: list[str | None] = []

    async def look(message: Message) -> None:
        sources.append(message.system.dead_letter_source)

    queue = ScriptedQueue(max_receive_count=1)
    queue.put("x")
    async with SimulatedService(queue, fail) as service:
        await service.wait_for(lambda: bool(queue.dead_letters.bodies))
    async with SimulatedService(queue.dead_letters, look) as service:
        await service.idle()
    assert sources == ["arn:aws:sqs:us-east-1:000000000000:queue"]


@pytest.mark.expects_errors
@pytest.mark.parametrize(("limit", "expected"), [(3, [False, False, True]), (None, [False, False, False])])
async def test_the_last_attempt(autojump_clock, limit: int | None, expected: list[bool]) -> None:
    found: list[bool | None] = []

    async def handle(message: Message) -> None:
        found.append(message.is_last_attempt)
        raise OSError

    queue = ScriptedQueue(max_receive_count=limit)
    queue.put("x")
    async with SimulatedService(queue, handle) as service:
        await service.wait_for(lambda: len(found) == 3)
    assert found == expected


async def test_the_lease_moves_with_the_heartbeats_and_is_over_with_the_message(autojump_clock) -> None:
    found: list[datetime | None] = []
    held: list[Message] = []

    async def handle(message: Message) -> None:
        held.append(message)
        for _ in range(3):
            found.append(message.lease_until)
            await trio.sleep(19)

    queue = SimulatedQueue()
    queue.put("x")
    async with SimulatedService(queue, handle, SQS_VISIBILITY_TIMEOUT_SECONDS="30") as service:
        await service.idle()
        assert found == [at(30), at(30), at(50)]  # extended at 20, for 30 s
        assert held[0].lease_until is None


async def test_a_lost_lease_is_over(autojump_clock) -> None:
    found: list[datetime | None] = []

    async def handle(message: Message) -> None:
        try:
            await trio.sleep(100 if message.receive_count == 1 else 0)
        except trio.Cancelled:
            found.append(message.lease_until)
            raise

    queue = ScriptedQueue()
    queue.put("x")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("x", seconds=1)
        queue.let_lease_run_out("x")
        assert await service.outcome("x") == "lost"
        await service.wait_for(lambda: bool(found))
        assert found == [None]
        await service.stop()


async def test_a_drain_is_told_and_the_processor_stops_at_a_good_point(autojump_clock) -> None:
    parts: list[float] = []

    async def handle(message: Message) -> None:
        while not message.shutting_down.is_set():
            await trio.sleep(4)
            parts.append(trio.current_time())
        raise Retry(after=20)  # not before the receives of the drain have landed

    queue = SimulatedQueue()
    queue.put("film")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="30s") as service:
        await service.at_work("film", seconds=5)
        service.maintenance("on")
        report = await service.drained()
        assert parts == [4, 8]
        assert report.ended == 20
        assert service.released == ["film"]
        service.maintenance("off")
        await service.at_work("film", seconds=1)  # a new event: it is not set
        await service.stop()
    assert len(service.runs) == 2
    assert report.error is None


async def test_a_drain_that_is_called_off_leaves_the_next_event_unset(autojump_clock) -> None:
    told: list[tuple[float, bool]] = []

    async def handle(message: Message) -> None:
        await message.shutting_down.wait()
        told.append((trio.current_time(), message.shutting_down.is_set()))
        await trio.sleep(3)
        told.append((trio.current_time(), message.shutting_down.is_set()))

    queue = SimulatedQueue()
    queue.put("x")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("x", seconds=5)
        service.maintenance("on")
        await trio.sleep(1)
        service.maintenance("off")
        await service.idle()
    assert told == [(5, True), (8, False)]
    assert service.processed == ["x"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not run on Python 3.14")
async def test_on_asyncio_in_virtual_time(autojump_clock) -> None:
    ends: list[float] = []

    @processor(runtime="asyncio", envelope=lambda body: Peeled(body, None))
    async def handle(order: dict[str, int], message: Message) -> None:
        await message.shutting_down.wait()
        ends.append(trio.current_time())

    queue = SimulatedQueue()
    queue.put("{}")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("{}", seconds=2)
        await service.stop()
    assert ends == [2]
    assert service.processed == ["{}"]


async def test_in_a_thread() -> None:
    found: list[object] = []
    began = trio.Event()
    token = trio.lowlevel.current_trio_token()
    left = []

    def handle(message: Message) -> None:
        found.append(message.shutting_down.wait(timeout=0))
        assert message.lease_until is not None
        assert message.sent_at is not None
        left.append((message.lease_until - message.sent_at).total_seconds())
        token.run_sync_soon(began.set)
        assert message.shutting_down.wait(timeout=60)

    queue = SimulatedQueue()
    queue.put("x")
    async with SimulatedService(queue, handle, SQS_WAIT_TIME_SECONDS="0") as service:
        await began.wait()
        await service.stop()
    assert found == [False]
    assert 29 < left[0] < 40
    assert service.processed == ["x"]


def test_a_message_that_nobody_holds() -> None:
    message = Message("id", "body")
    assert message.system == System()
    assert message.is_last_attempt is None
    assert message.lease_until is None
    assert not message.shutting_down.is_set()
    assert not message.shutting_down.wait(timeout=0)
