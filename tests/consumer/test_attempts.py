"""FIFO queues: a receive whose answer was lost, or that a maintenance cuts short, is asked for again by its attempt id."""

import pytest
import trio

from svc.consumer.attempts import LONGEST, Attempts
from svc.maintenance.handler import DrainOutcome
from svc.processors import Message
from svc.testing import SimulatedQueue
from svc.testing.faults import Fault, What
from svc.testing.service import SimulatedService


async def _work(message: Message) -> None:
    await trio.sleep(0.1)


def _fifo(**options: object) -> SimulatedQueue:
    return SimulatedQueue(fifo=True, content_deduplication=True, **options)  # type: ignore[arg-type]


async def test_an_idle_drain_lands_at_once(autojump_clock):
    queue = _fifo(request_seconds=(0.1, 0.1), answer_seconds=(0.1, 0.1))
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(5)
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert report.ended == pytest.approx(5.2)
        assert report.handlers["sqs"]["receives_outstanding"] == 1
        assert queue.calls["receive"] == 2
        await trio.sleep(60)
        assert queue.calls["receive"] == 2  # none in maintenance


async def test_what_was_on_its_way_when_it_was_cut_lands_and_goes_back(autojump_clock):
    queue = _fifo(request_seconds=(0.1, 0.1), answer_seconds=(1, 1))
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(5)
        queue.put("x", group_id="g")
        await trio.sleep(0.5)
        service.maintenance("on")  # the answer of the poll is half way
        report = await service.drained()
        assert report.ended == pytest.approx(7.7)  # asked for again until 6.6, released until then
        assert (service.released, queue.stranded, queue.in_flight()) == (["x"], [], [])
        assert report.handlers["sqs"]["receives_brought"] == 1
        service.maintenance("off")
        assert await service.outcome("x") == "released"
        assert await service.outcome("x", nth=2) == "processed"
    assert queue.receive_count(queue.deleted[0]) == 2


async def test_what_the_queue_hands_to_the_cut_receive_is_asked_for_when_work_goes_on(autojump_clock):
    # The queue has not noticed that nobody waits any more. AWS does not say whether it does.
    queue = _fifo()
    async with SimulatedService(queue, _work, SQS_VISIBILITY_TIMEOUT_SECONDS=300, SQS_WAIT_TIME_SECONDS=20) as service:
        await trio.sleep(5)
        service.maintenance("on")
        await service.drained()
        await trio.sleep(1)
        queue.put("x", group_id="g")
        await trio.sleep(1)
        assert len(queue.stranded) == 1
        await trio.sleep(60)
        service.maintenance("off")
        await trio.sleep(1)
        assert (service.processed, queue.stranded) == (["x"], [])
    assert queue.receive_count(queue.deleted[0]) == 1


async def test_a_lost_answer_is_asked_for_again(autojump_clock):
    queue = _fifo(faults=[Fault("timeout-after", "receive", nth=1)])
    queue.put("x", group_id="g")
    async with SimulatedService(queue, _work, SQS_WAIT_TIME_SECONDS=1) as service:
        await service.outcome("x")
        assert service.when("x", "processed") == pytest.approx(6.1)  # the client gave up at 6
        assert service.core.worker.intake.error is None
    assert queue.receive_count(queue.deleted[0]) == 1


@pytest.mark.parametrize(
    "failures",
    [
        ("timeout-after", "throttle"),
        ("timeout-after", "error-after"),
        ("timeout-after", "timeout-after"),
        ("timeout-after", "denied"),
        ("timeout-after", "error", "throttle", "denied"),
        ("error-after",),
    ],
)
async def test_it_is_asked_for_when_receiving_goes_on_though_that_failed_too(
    autojump_clock, failures: tuple[What, ...]
):
    queue = _fifo(faults=[Fault(what, "receive", nth=nth) for nth, what in enumerate(failures, start=1)])
    queue.put("x", group_id="g")
    async with SimulatedService(queue, _work, SQS_WAIT_TIME_SECONDS=1, SQS_VISIBILITY_TIMEOUT_SECONDS=200) as service:
        await service.outcome("x")
        assert service.when("x", "processed") < 60  # not when its lease of 200 s has run out
    assert queue.receive_count(queue.deleted[0]) == 1


async def test_a_receive_that_the_queue_does_not_know_any_more_is_not_asked_for_again(autojump_clock):
    queue = _fifo(faults=[Fault("timeout-after", "receive", nth=1), Fault("timeout-after", "receive", nth=2)])
    queue.put("x", group_id="g")
    async with SimulatedService(queue, _work, SQS_WAIT_TIME_SECONDS=1, SQS_VISIBILITY_TIMEOUT_SECONDS=5) as service:
        await service.outcome("x")  # its lease ran out: the attempt is refused, once
        assert service.core.worker.intake.error is None
    assert queue.receive_count(queue.deleted[0]) == 2


async def test_a_stop_leaves_the_poll_on_the_wire_for_nobody_could_ask_again(autojump_clock):
    queue = _fifo()
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(5)
        report = await service.stop()
        assert report.ended == 20
        assert queue.calls["receive"] == 1


@pytest.mark.parametrize("attempts", [True, False])
async def test_it_is_not_cut_where_that_could_cost_an_only_receive_or_is_not_known(autojump_clock, attempts: bool):
    dead = SimulatedQueue("dead", fifo=True, content_deduplication=True)
    policy = {"dead_letters": dead, "max_receive_count": 1} if attempts else {}
    async with SimulatedService(_fifo(attempts=attempts, **policy), _work) as service:
        await trio.sleep(5)
        service.maintenance("on")
        assert (await service.drained()).ended == 20


async def test_the_places_of_a_cut_receive_are_those_of_the_next(autojump_clock):
    queue = _fifo()
    async with SimulatedService(queue, _work, MAX_CONCURRENCY=2, SQS_WAIT_TIME_SECONDS=20) as service:
        for _ in range(3):
            await trio.sleep(5)
            service.maintenance("on")
            await service.drained()
            queue.put("x", group_id="g", deduplication_id=str(trio.current_time()))
            service.maintenance("off")
        await service.idle()
        assert service.processed == ["x"] * 3


def test_one_that_was_kept_needs_as_many_places_as_before_and_is_asked_for_once():
    attempts = Attempts()
    kept = attempts.next(5, 0.0)
    attempts.keep(kept, 5, 30.0)
    assert attempts.next(4, 1.0).id != kept.id
    assert attempts.next(6, 1.0).id == kept.id
    assert attempts.next(6, 1.0).id != kept.id


def test_it_is_kept_as_long_as_something_may_lie_there_and_no_longer_than_the_queue_knows_it():
    attempts = Attempts()
    kept = attempts.next(5, 0.0)
    attempts.keep(kept, 5, 30.0)
    assert attempts.next(5, 30.0).id != kept.id
    for asked_at in (100.0, 200.0):  # asking again makes it no younger
        attempts.keep(kept, 5, asked_at + 1000)
        kept = attempts.next(5, asked_at)
    attempts.keep(kept, 5, 1000.0)
    assert attempts.next(5, LONGEST).id != kept.id
