"""Quiet: nothing is at work and nothing will be begun, though receives are on the wire. Virtual time, exact."""

import pytest
import trio

from svc import Message
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.phases import Phase
from svc.testing import Fault, SimulatedQueue, SimulatedService

QUIET = '{"enabled": true, "quiet": true}'


async def _work(message: Message) -> None:
    await trio.sleep(float(message.body))


def _with_dead_letters(receives: int = 1) -> SimulatedQueue:
    return SimulatedQueue(dead_letters=SimulatedQueue("dead"), max_receive_count=receives)


async def test_idle_it_is_quiet_at_once_and_what_lands_in_its_last_receive_goes_back_named(autojump_clock):
    queue = _with_dead_letters()
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(5)
        service.maintenance(QUIET)
        await trio.sleep(0.1)
        state = service.core.manager.state()
        assert (state.phase, state.quiet, state.drain.quiet) == (Phase.DRAINING, True, 5)
        assert state.drain.handlers["sqs"]["receives_unlanded"] == 1
        said = service.core.registration().acknowledgement
        assert (said.phase, said.quiet, said.receives) == ("draining", True, 1)
        message_id = queue.put("1")
        report = await service.drained()
        assert trio.current_time() == 5.1
        assert (report.outcome, report.quiet, report.error) == (DrainOutcome.DRAINED, 5, None)
        assert report.handlers["sqs"]["last_receives_returned"] == (message_id,)
        assert report.handlers["sqs"]["next_receive_dead_letters"] == ()
        assert (service.runs, service.released) == ([], ["1"])
        service.maintenance("off")
        await trio.sleep(1)
        assert not service.core.manager.state().quiet
        assert service.dead_lettered == ["1"]


@pytest.mark.expects_errors  # the first receipt is superseded: its release is refused
async def test_a_copy_in_its_last_receive_is_named_too(autojump_clock):
    """Two receives are on the wire, both of which bring the message, and its second receive is the last."""
    faults = [Fault("delay", "receive", nth=2, seconds=3), Fault("delay", "receive", nth=3, seconds=4)]
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=2, duplicates=1.0, faults=faults)
    queue.put("0")
    async with SimulatedService(queue, _work, SQS_MAX_NUMBER_OF_MESSAGES="1") as service:
        await trio.sleep(2)
        service.maintenance(QUIET)
        await trio.sleep(1)
        message_id = queue.put("1")
        report = await service.drained()
        assert queue.receive_count(message_id) == 2
        assert [run.body for run in service.runs] == ["0"]
        assert report.handlers["sqs"]["last_receives_returned"] == (message_id,)


async def test_not_asked_for_a_last_receive_is_worked_on_and_quiet_comes_with_the_end(autojump_clock):
    queue = _with_dead_letters()
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(5)
        service.maintenance("on")
        await trio.sleep(1)
        assert not service.core.manager.state().quiet
        queue.put("3")
        report = await service.drained()
        assert service.processed == ["3"]
        assert (report.quiet, report.ended) == (9, 9)
        assert service.core.manager.state().quiet


async def test_quiet_is_over_with_its_maintenance(autojump_clock):
    async with SimulatedService(_with_dead_letters(), _work) as service:
        await trio.sleep(5)
        service.maintenance(QUIET)
        await service.drained()
        service.maintenance("off")
        await trio.sleep(1)
        service.maintenance("on")
        await trio.sleep(1)
        service.queue.put("3")  # in its last receive
        await service.drained()
        assert (service.processed, service.released) == (["3"], [])


async def test_it_may_be_asked_for_later(autojump_clock):
    async with SimulatedService(_with_dead_letters(), _work) as service:
        await trio.sleep(5)
        service.maintenance("on")
        await trio.sleep(1)
        service.maintenance(QUIET)
        await trio.sleep(0.1)
        assert service.drain.quiet == 6
        service.maintenance("on")  # what was said is not taken back
        queue_id = service.queue.put("1")
        await service.drained()
        assert (service.runs, service.drain.handlers["sqs"]["last_receives_returned"]) == ([], (queue_id,))


async def test_without_a_dead_letter_queue_every_drain_tells_when_it_is_quiet(autojump_clock):
    queue = SimulatedQueue()
    async with SimulatedService(queue, _work) as service:
        queue.put("4")
        await service.at_work("4")
        service.maintenance("on")
        await trio.sleep(3.9)
        assert not service.core.manager.state().quiet
        report = await service.drained()
        assert report.quiet == 4
        assert report.ended > 15  # the poll


async def test_the_api_has_to_be_quiet_too(autojump_clock):
    async with SimulatedService(SimulatedQueue(), _work) as service:
        await trio.sleep(1)
        with service.core.gate.let_in():
            service.maintenance("on")
            await trio.sleep(2)
            assert not service.core.manager.state().quiet
        report = await service.drained()
        assert report.quiet == 3


async def test_off_takes_it_back_and_work_begins(autojump_clock):
    queue = _with_dead_letters()
    async with SimulatedService(queue, _work) as service:
        await trio.sleep(1)
        service.maintenance(QUIET)
        await trio.sleep(1)
        assert service.core.manager.state().quiet
        service.maintenance("off")
        queue.put("1")
        assert await service.outcome("1") == "processed"
        assert not service.core.manager.state().quiet
        assert not service.core.registration().acknowledgement.quiet


async def test_a_stop_in_maintenance_does_not_take_it_back(autojump_clock):
    queue = _with_dead_letters()
    async with SimulatedService(queue, _work, SQS_WAIT_TIME_SECONDS=20, DRAIN_TIMEOUT="30s") as service:
        await trio.sleep(1)
        service.maintenance(QUIET)
        await trio.sleep(1)
        service.core.manager.stop()
        message_id = queue.put("1")
        report = await service.stop()
        assert service.runs == []
        assert report.handlers["sqs"]["last_receives_returned"] == (message_id,)


@pytest.mark.expects_errors
async def test_a_processor_that_ignores_the_loss_of_its_lease_is_still_at_work(autojump_clock):
    queue = SimulatedQueue()

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)

    async with SimulatedService(queue, stubborn, SQS_WAIT_TIME_SECONDS=2) as service:
        queue.put("x")
        await service.at_work("x")
        [entry] = service.core.worker.ledger
        service.core.worker.ledger.lose(entry, "taken")
        service.maintenance("on")
        report = await service.drained()
        assert (report.outcome, report.quiet, report.ended) == (DrainOutcome.DRAINED, 20, 20)
        service.maintenance("off")


@pytest.mark.expects_errors
async def test_and_is_named_when_the_time_is_over(autojump_clock):
    queue = SimulatedQueue()

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)

    async with SimulatedService(queue, stubborn, SQS_WAIT_TIME_SECONDS=2, DRAIN_TIMEOUT="5s") as service:
        message_id = queue.put("x")
        await service.at_work("x")
        [entry] = service.core.worker.ledger
        service.core.worker.ledger.lose(entry, "taken")
        service.maintenance("on")
        report = await service.drained()
        assert (report.outcome, report.quiet) == (DrainOutcome.EXPIRED, None)
        assert report.handlers["sqs"]["stubborn"] == (message_id,)
