"""What becomes of a message that has failed: the delay until its next attempt, exact and in virtual time."""

import random

import pytest
import trio

from svc import Message, Retry
from svc.backoff import backoff, redelivery
from svc.consumer.ledger import Action, Fate, Ledger, Outcome
from svc.consumer.queue import MAX_VISIBILITY
from svc.consumer.settlement import visible_in
from svc.maintenance.handler import DrainOutcome
from svc.testing import Fault, SimulatedQueue
from svc.testing.history import VisibilityChanged
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors


async def fail(message: Message) -> None:
    raise ValueError("no good")


def delays(queue: SimulatedQueue) -> list[int]:
    """For how many seconds failed messages were hidden, in order."""
    changes = [event for event in queue.history if isinstance(event, VisibilityChanged)]
    return list({event.receipt: round(event.until - event.at) for event in changes}.values())  # the last word on each


def test_the_delay_doubles_up_to_the_cap_and_is_jittered() -> None:
    rng = random.Random(1)
    for receives, whole in ((1, 5), (2, 10), (3, 20), (8, 640), (9, 900), (500, 900), (0, 5)):
        drawn = {redelivery(receives, first=5, cap=900, rng=rng) for _ in range(400)}
        assert min(drawn) >= whole / 2
        assert max(drawn) <= whole
        assert len(drawn) > 2
    assert {redelivery(1, first=1, cap=1, rng=rng) for _ in range(50)} == {1}  # never at once
    with pytest.raises(ValueError, match="counted from 1"):
        backoff(0, first=1, cap=2, rng=rng)


async def test_a_failed_message_comes_back_later_each_time(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("bad")
    async with SimulatedService(queue, fail, RETRY_BACKOFF="10s-60s", SQS_BATCH_LINGER="0s") as service:
        await service.wait_for(lambda: len(service.endings) == 6, every=1)
    told = delays(queue)
    for delay, whole in zip(told, (10, 20, 40, 60, 60, 60), strict=True):
        assert whole / 2 <= delay <= whole
    for run, following, delay in zip(service.runs, service.runs[1:], told, strict=False):
        assert following.began == pytest.approx(run.ended + delay, abs=0.01)
    assert {ending.outcome for ending in service.endings} == {"failed"}


async def test_off_is_the_visibility_timeout_and_costs_no_call(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("bad")
    async with SimulatedService(queue, fail, RETRY_BACKOFF="off") as service:
        await service.wait_for(lambda: len(service.endings) == 3, every=1)
        assert [run.began for run in service.runs] == [0, 30, 60]
        assert queue.calls["change_visibility"] == 0


async def test_failures_are_told_to_the_queue_in_batches_of_ten(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(20):
        queue.put(str(number))
    async with SimulatedService(queue, fail, RETRY_BACKOFF="1h") as service:
        await service.wait_for(lambda: len(service.endings) == 20)
        assert queue.calls["change_visibility"] == 2


async def test_retry_overrides_the_backoff(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("later")

    async def later(message: Message) -> None:
        if message.receive_count == 1:
            raise Retry(after=77)

    async with SimulatedService(queue, later, RETRY_BACKOFF="1h") as service:
        await service.idle()
        assert [run.began for run in service.runs] == [0, pytest.approx(77, abs=0.2)]
        assert service.endings[0].outcome == "released"


async def test_a_drain_does_not_shorten_the_backoff_and_names_it(autojump_clock) -> None:
    queue = SimulatedQueue()
    message_id = queue.put("bad")
    async with SimulatedService(queue, fail, RETRY_BACKOFF="1000s") as service:
        await service.wait_for(lambda: len(service.endings) == 1, every=1)
        service.maintenance("on")
        report = await service.drained()
        (delay,) = delays(queue)
        assert report.outcome is DrainOutcome.DRAINED
        assert report.handlers["sqs"]["deferred"] == {message_id: pytest.approx(delay - report.ended, abs=0.2)}


async def test_a_message_that_fails_during_the_drain_is_failed_and_named(autojump_clock) -> None:
    queue = SimulatedQueue()
    message_id = queue.put("bad")

    async def fail_slowly(message: Message) -> None:
        await trio.sleep(5)
        raise ValueError("no good")

    async with SimulatedService(queue, fail_slowly, RETRY_BACKOFF="1000s", SQS_WAIT_TIME_SECONDS=2) as service:
        await service.at_work("bad", seconds=1)
        service.maintenance("on")
        report = await service.drained()
        figures = report.handlers["sqs"]
        assert (report.ended, figures["failed"], figures["released"]) == (5, 1, 0)
        assert set(figures["deferred"]) == {message_id}


@pytest.mark.parametrize("what", ["denied", "timeout-before", "timeout-after"])
async def test_without_a_confirmation_it_has_failed_all_the_same(autojump_clock, what) -> None:
    """It keeps its visibility timeout; it is not lost, for nobody worked on it in vain."""
    queue = SimulatedQueue(faults=[Fault(what, "change_visibility", end=29)])
    message_id = queue.put("bad")
    async with SimulatedService(queue, fail, RETRY_BACKOFF="300s") as service:
        await service.wait_for(lambda: len(service.endings) == 1, every=1)
        assert service.endings[0].outcome == "failed"
        assert trio.current_time() <= 36
        counts = service.core.worker.statistics().counts
        assert (counts.failed, counts.lost) == (1, 0)
        service.maintenance("on")
        report = await service.drained()
        assert {*report.handlers["sqs"]["deferred"], *queue.visible()} == {message_id}


async def test_after_the_last_receive_there_is_nothing_to_wait_for(autojump_clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=4)
    queue.put("poison")
    async with SimulatedService(queue, fail, RETRY_BACKOFF="10s-1h") as service:
        await service.wait_for(lambda: len(dead.visible()) == 1, every=1)
    first, second, third, last = delays(queue)
    assert 5 <= first <= 10 <= second <= 20 <= third <= 40
    assert 5 <= last <= 10  # not 40 to 80


async def test_the_delay_is_cut_to_twelve_hours_after_the_receive(autojump_clock) -> None:
    ledger = Ledger()
    queue = SimulatedQueue()
    queue.put("slow")
    (delivery,) = await queue.receive(limit=1, wait=0, visibility=30)
    entry = ledger.add(delivery, received_at=0, lease_until=MAX_VISIBILITY)
    ledger.decide(entry, Fate(Action.CHANGE_VISIBILITY, Outcome.FAILED, after=900))
    await trio.sleep(MAX_VISIBILITY - 1000)
    assert visible_in(entry) == 900
    await trio.sleep(900.5)
    assert visible_in(entry) == 99
    await trio.sleep(900)
    assert visible_in(entry) == 0


async def test_a_fifo_group_waits_for_its_failed_message_and_others_do_not(autojump_clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    for body in ("a0", "a1", "b0", "b1"):
        queue.put(body, group_id=body[0])

    async def handle(message: Message) -> None:
        if message.body == "a0" and message.receive_count == 1:
            raise ValueError("once")

    async with SimulatedService(queue, handle, RETRY_BACKOFF="200s") as service:
        await service.idle()
    began = {run.body: run.began for run in service.runs}
    assert began["b0"] < 1
    assert began["b1"] < 1
    assert 100 <= began["a0"] <= 201
    assert began["a1"] >= began["a0"]
