"""FIFO: a message that always fails does not take the others of its group with it."""

import pytest
import trio
from structlog.testing import capture_logs

from svc import Message, Retry
from svc.maintenance.handler import DrainOutcome
from svc.testing import Fault, ScriptedQueue, SimulatedQueue
from svc.testing.history import Assigned, DeadLettered
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors

BODIES = [f"m{number}" for number in range(1, 8)]


def fifo(limit: int, **options) -> tuple[SimulatedQueue, SimulatedQueue]:
    dead = SimulatedQueue("dead.fifo", fifo=True)
    queue = SimulatedQueue(fifo=True, content_deduplication=True, dead_letters=dead, max_receive_count=limit, **options)
    for body in BODIES:
        queue.put(body, group_id="g")
    return queue, dead


async def m1_fails(message: Message) -> None:
    await trio.sleep(0.1)
    if message.body == "m1":
        raise ValueError("always")


async def m1_asks_for_a_retry(message: Message) -> None:
    if message.body == "m1":
        raise Retry(after=3)


@pytest.mark.parametrize("process", [m1_fails, m1_asks_for_a_retry])
@pytest.mark.parametrize("backoff", ["off", "5s-15m", "60s"])
@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_only_the_message_that_fails_is_dead_lettered(autojump_clock, limit: int, backoff: str, process) -> None:
    queue, dead = fifo(limit)
    others: list[Message] = []

    async def noted(message: Message) -> None:
        await process(message)
        others.append(message)

    async with SimulatedService(queue, noted, RETRY_BACKOFF=backoff) as service:
        await service.idle()
        assert service.processed == BODIES[1:]
        assert service.core.worker.statistics().counts.failed >= 1
    # What is behind it was received with it once; from then on it is received alone, until it has left the queue.
    assert {message.receive_count for message in others} == {1 if limit == 1 else 2}
    assert dead.bodies == ["m1"]
    assert len([run for run in service.runs if run.body == "m1"]) == limit
    (moved,) = [event for event in queue.history if isinstance(event, DeadLettered)]
    assert moved.reason is not None  # by us
    assert "last receive" in moved.reason
    assert dead.attributes_of(moved.copy_id)["RejectReason"] == moved.reason


async def test_every_message_of_a_group_that_only_fails_has_its_runs(autojump_clock) -> None:
    """None goes to the dead-letter queue without a run, and in their order."""
    queue, dead = fifo(3)

    async def fail(message: Message) -> None:
        raise ValueError("always")

    async with SimulatedService(queue, fail, BREAKER_FAILURES="off") as service:
        await service.idle()
        assert dead.bodies == BODIES
        assert list(dict.fromkeys(run.body for run in service.runs)) == BODIES
        moved = [event for event in queue.history if isinstance(event, DeadLettered)]
        assert all(event.reason is not None for event in moved)


async def test_a_dead_letter_queue_that_takes_nothing_keeps_the_order(autojump_clock) -> None:
    """Then SQS moves it, at the next attempt to receive it: as it was before, and nothing passes it."""
    queue, dead = fifo(2, faults=[Fault("denied", "dead_letter")])
    async with SimulatedService(queue, m1_fails, SQS_VISIBILITY_TIMEOUT_SECONDS="5") as service:
        await service.wait_for(lambda: "m1" in dead.bodies, every=1)
        assert "m2" not in [run.body for run in service.runs]
        service.crash()


async def test_a_queue_without_a_dead_letter_queue_any_more_keeps_the_message(autojump_clock) -> None:
    """The policy is read every five minutes; removed meanwhile, a message that has failed is not deleted."""
    queue, _dead = fifo(1)
    with capture_logs() as lines:
        async with SimulatedService(queue, m1_fails) as service:
            await trio.sleep(0.05)
            queue._server.dead_letters = None
            await service.wait_for(lambda: len([run for run in service.runs if run.body == "m1"]) == 2, every=1)
            assert "m1" in queue.bodies
            service.crash()
    assert "rejected message is deleted: the queue has no dead-letter queue" not in [line["event"] for line in lines]


async def test_a_drain_runs_what_had_its_last_receive_in_its_order(autojump_clock) -> None:
    """As on standard queues: given back, each of them would be dead-lettered unprocessed."""
    queue, dead = fifo(1)
    async with SimulatedService(queue, m1_fails) as service:
        await service.at_work("m1")
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert service.processed == BODIES[1:]
    assert dead.bodies == ["m1"]
    assert len([event for event in queue.history if isinstance(event, Assigned)]) == len(BODIES)


async def test_a_message_behind_it_keeps_its_own_tries(autojump_clock) -> None:
    """m2 fails twice for a reason that passes, and succeeds within the receives that it is granted."""
    queue, dead = fifo(4)
    failed = 0

    async def m2_fails_twice(message: Message) -> None:
        nonlocal failed
        await m1_fails(message)
        if message.body == "m2" and failed < 2:
            failed += 1
            raise ValueError("not yet")

    async with SimulatedService(queue, m2_fails_twice) as service:
        await service.idle()
        assert service.processed == BODIES[1:]
    assert dead.bodies == ["m1"]


async def test_other_groups_go_on_while_one_waits(autojump_clock) -> None:
    queue, dead = fifo(3, request_seconds=(0.01, 0.01), answer_seconds=(0.01, 0.01))
    for number in range(200):
        queue.put(f"other {number}", group_id=f"h{number % 20}")
    async with SimulatedService(queue, m1_fails) as service:
        await service.wait_for(lambda: len(service.processed) >= 200)
        assert trio.current_time() < 20  # m1 has its last run much later
        await service.idle()
    assert dead.bodies == ["m1"]


async def test_a_drain_gives_back_what_waits_when_its_receives_have_landed(autojump_clock) -> None:
    queue, _dead = fifo(3, attempts=False)
    async with SimulatedService(queue, m1_fails) as service:
        await service.wait_for(lambda: len(service.endings) == 1)
        assert len(service.core.worker.ledger) == 6  # behind it, until the receive on the wire has landed
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert not service.core.worker.ledger
        assert report.ended == pytest.approx(20, abs=0.2)  # with the receive that was on the wire
        assert queue.in_flight() == []
        assert len([event for event in queue.history if isinstance(event, Assigned)]) == len(BODIES)


async def test_what_was_finished_before_lets_nobody_pass_the_one_that_fails(autojump_clock) -> None:
    """m2 was finished and comes back all the same: it is deleted at once, and m3 waits for m1 as if there had been no m2."""
    queue = ScriptedQueue(fifo=True)
    attempts = 0

    async def fail_once(message: Message) -> None:
        nonlocal attempts
        if message.body == "m1":
            attempts += 1
            await trio.sleep(1)
            if attempts == 1:
                raise ValueError("once")

    async with SimulatedService(queue, fail_once) as service:
        _, finished, _ = (queue.put(body, group_id="g") for body in ("m1", "m2", "m3"))
        service.core.worker.ledger.remember(finished)
        await service.idle()
    assert [run.body for run in service.runs] == ["m1", "m1", "m3"]
    assert service.processed == ["m2", "m1", "m3"]
