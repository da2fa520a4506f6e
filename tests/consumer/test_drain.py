"""The drain, in virtual time and exact: what lands, what finishes, what is given back, and when."""

import pytest
import trio
import trio.testing

from svc.maintenance.handler import DrainOutcome
from svc.maintenance.phases import Phase
from svc.processors import Message
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService


def work(seconds: float):
    async def handle(message: Message) -> None:
        await trio.sleep(seconds)

    return handle


async def test_work_in_flight_is_finished_and_nothing_new_is_received(autojump_clock):
    queue = SimulatedQueue()
    for number in range(40):
        queue.put(f"message {number}")
    async with SimulatedService(queue, work(1), MAX_CONCURRENCY="10") as service:
        await service.wait_for(lambda: len(service.runs) >= 10)
        service.maintenance("true")
        report = await service.drained()
        switched = report.began
        assert report.outcome is DrainOutcome.DRAINED
        assert queue.in_flight() == []
        receives = [event.at for event in queue.history if type(event).__name__ == "ReceiveBegan"]
        assert max(receives) <= switched
        service.maintenance("false")
        await service.idle()
    assert sorted(run.message_id for run in service.runs) == sorted(queue.deleted)
    assert len(queue.deleted) == 40
    assert all(queue.receive_count(message_id) <= 2 for message_id in queue.deleted)


async def test_an_idle_poll_lands_and_what_it_brings_is_released(autojump_clock):
    queue = SimulatedQueue()
    async with SimulatedService(queue) as service:
        await trio.sleep(1)
        assert service.core.worker.statistics().receives_outstanding == 1
        service.maintenance("on")
        await trio.sleep(0.5)
        ids = [queue.put(f"late {number}") for number in range(5)]
        report = await service.drained()
        assert report.handlers["sqs"]["receives_outstanding"] == 1
        assert report.handlers["sqs"]["receives_brought"] == report.handlers["sqs"]["released"]
        assert sorted(queue.visible()) == sorted(ids)
        assert queue.in_flight() == []
        assert service.runs == []


async def test_an_idle_poll_that_brings_nothing_ends_with_its_wait(autojump_clock):
    queue = SimulatedQueue()
    async with SimulatedService(queue) as service:
        await trio.sleep(1)
        service.maintenance("on")
        report = await service.drained()
        # The poll began at 0 and takes 20 s.
        assert report.ended == pytest.approx(20)


@pytest.mark.expects_errors
async def test_a_processor_that_never_ends_is_cancelled_and_its_message_visible(autojump_clock):
    queue = SimulatedQueue()
    message_id = queue.put("endless")
    async with SimulatedService(queue, work(1e6), DRAIN_TIMEOUT="3s") as service:
        await service.wait_for(lambda: bool(service.running))
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.EXPIRED
        assert report.error is not None
        assert "1 message unfinished" in report.error
        assert message_id in report.error
        # 3 s less a tenth of them, the reserve for the release; then nothing is left to do.
        assert report.ended - report.began == pytest.approx(2.7)
        assert queue.visible() == [message_id]


@pytest.mark.expects_errors
async def test_a_processor_that_ignores_its_cancellation_does_not_hold_up_the_drain(autojump_clock):
    queue = SimulatedQueue()
    message_id = queue.put("stubborn")

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with SimulatedService(queue, stubborn, DRAIN_TIMEOUT="10s") as service:
        await service.wait_for(lambda: bool(service.running))
        service.maintenance("on")
        report = await service.drained()
        assert report.handlers["sqs"]["stubborn"] == (message_id,)
        assert report.ended - report.began <= 10
        assert queue.visible() == [message_id]


async def test_off_during_a_drain_resumes_at_once(autojump_clock):
    queue = SimulatedQueue()
    queue.put("long")
    async with SimulatedService(queue, work(10)) as service:
        await service.wait_for(lambda: bool(service.running))
        service.maintenance("on")
        await trio.sleep(1)
        assert service.phase is Phase.DRAINING
        service.maintenance("off")
        await trio.testing.wait_all_tasks_blocked()
        assert service.phase is Phase.RUNNING
        assert service.drain.outcome is DrainOutcome.REVOKED
        queue.put("next")
        await service.idle()
    assert [run.error for run in service.runs] == [None, None]


async def test_nothing_is_received_before_the_key_was_read(autojump_clock):
    from svc.testing import Outage, SimulatedSwitch

    queue = SimulatedQueue()
    queue.put("early")
    switch = SimulatedSwitch("on", outages=[Outage(0, 30)])
    async with SimulatedService(queue, switch=switch) as service:
        await trio.sleep(29)
        assert service.phase is Phase.STARTING
        assert queue.calls["receive"] == 0
        await trio.sleep(2)
        assert service.phase is Phase.MAINTENANCE
        assert queue.calls["receive"] == 0
        service.maintenance(None)
        await service.idle()


@pytest.mark.expects_errors
async def test_a_failed_message_waits_for_its_visibility_timeout_and_is_named(autojump_clock):
    queue = SimulatedQueue()
    message_id = queue.put("bad")

    async def fail(message: Message) -> None:
        await trio.sleep(5)
        raise ValueError("no good")

    async with SimulatedService(queue, fail, RETRY_BACKOFF="off") as service:
        await service.wait_for(lambda: bool(service.runs))
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        deferred = report.handlers["sqs"]["deferred"]
        assert list(deferred) == [message_id]
        # Received at 0 for 30 s.
        assert report.ended + deferred[message_id] == pytest.approx(30)


async def test_what_a_release_would_dead_letter_is_processed(autojump_clock):
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=1)
    async with SimulatedService(queue, work(1)) as service:
        await trio.sleep(1)
        service.maintenance("on")
        await trio.sleep(0.1)
        queue.put("last chance")
        report = await service.drained()
        assert report.handlers["sqs"]["completed"] == 1
    assert len(queue.deleted) == 1
    assert dead.visible() == []


async def test_work_longer_than_the_visibility_timeout_is_done_once(autojump_clock):
    queue = SimulatedQueue()
    queue.put("long")
    async with SimulatedService(queue, work(300), SQS_VISIBILITY_TIMEOUT_SECONDS="10", DRAIN_TIMEOUT="10m") as service:
        await service.idle()
    assert len(service.runs) == 1
    assert queue.receive_count(queue.deleted[0]) == 1


async def test_a_crash_strands_until_the_visibility_timeout_and_the_next_instance_takes_over(autojump_clock):
    queue = SimulatedQueue()
    for number in range(30):
        queue.put(str(number))
    async with SimulatedService(queue, work(3)) as first:
        await trio.sleep(1)
        first.crash()
    async with SimulatedService(queue, work(3)) as second:
        await second.idle()
    assert len(queue.deleted) == 30


async def test_a_cancelled_worker_releases_also_what_its_own_poll_takes_back(autojump_clock):
    queue = SimulatedQueue(request_seconds=(0.01, 0.01))
    ids = [queue.put(str(number)) for number in range(3)]
    async with trio.open_nursery() as nursery:
        service = SimulatedService(queue, work(1e6))
        await nursery.start(service.run)
        await service.wait_for(lambda: len(service.running) == 3)
        cancelled = trio.current_time()
        nursery.cancel_scope.cancel(reason="a second signal")
    assert trio.current_time() - cancelled < 2
    assert sorted(queue.visible()) == sorted(ids)


async def test_a_drain_ends_with_the_work_on_a_message_that_was_lost(autojump_clock):
    """Its processor ignores that the lease is gone, and nothing else happens until it ends."""
    queue = SimulatedQueue()
    queue.put("m")

    async def deaf(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    settings = {"SQS_WAIT_TIME_SECONDS": "1", "DRAIN_TIMEOUT": "60s"}
    async with SimulatedService(queue, deaf, **settings) as service:
        await service.at_work("m")
        (entry,) = service.core.worker.ledger
        service.core.worker.ledger.lose(entry, "another consumer has it")
        service.maintenance("on")
        report = await service.drained()
        (run,) = service.runs
        assert report.ended == run.ended == run.began + 10
        service.core.manager.stop()
