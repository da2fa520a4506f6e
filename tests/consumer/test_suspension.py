"""The machine sleeps: Trio's clock stands still, and the leases at SQS run on. In virtual time, by a second clock that jumps."""

import pytest
import trio

from svc.consumer.queue import Received
from svc.core import Core
from svc.maintenance.handler import DrainOutcome
from svc.processors import Message, Retry
from svc.testing import Fault, SimulatedQueue
from svc.testing.history import VisibilityChanged
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors


class Machine:
    """One that can sleep, and a queue that is awake."""

    def __init__(self, **options) -> None:
        self.queue = SimulatedQueue(**options)
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.queue.suspended(seconds)

    def service(self, processor=None, **settings) -> SimulatedService:
        def awake(*args, **options) -> Core:
            return Core(*args, clock=lambda: trio.current_time() + self.slept, **options)

        return SimulatedService(self.queue, processor, make_core=awake, **{"SQS_WAIT_TIME_SECONDS": 1, **settings})


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_work_whose_lease_ran_out_in_the_sleep_is_lost_at_once(autojump_clock, machine: Machine) -> None:
    cancelled: list[float] = []

    async def work(message: Message) -> None:
        try:
            await trio.sleep(100)
        except trio.Cancelled:
            cancelled.append(trio.current_time())
            raise

    machine.queue.put("long")
    async with machine.service(work) as service:
        await service.at_work("long", seconds=5)
        machine.sleep(600)
        await service.outcome("long")
        assert service.lost[0] == "long"
        await trio.sleep(0.01)
        assert cancelled == [5]
        service.core.manager.stop()


async def test_a_short_sleep_loses_nothing_and_the_lease_is_extended_in_time(autojump_clock, machine: Machine) -> None:
    async def work(message: Message) -> None:
        await trio.sleep(40)

    message_id = machine.queue.put("long")
    async with machine.service(work, SQS_VISIBILITY_TIMEOUT_SECONDS=30) as service:
        await service.at_work("long", seconds=5)
        machine.sleep(20)  # of the 30 s, 5 are left
        await service.idle()
        assert (service.processed, service.lost) == (["long"], [])
    assert machine.queue.receive_count(message_id) == 1
    extended = [event.at for event in machine.queue.history if isinstance(event, VisibilityChanged)]
    assert extended[0] < 10


async def test_nothing_is_given_back_by_a_receipt_whose_lease_ended_in_the_sleep(autojump_clock) -> None:
    machine = Machine(faults=[Fault("error", "change_visibility", nth=1)])

    async def work(message: Message) -> None:
        await trio.sleep(1)
        raise Retry(after=60)

    # The first try fails, and the second is not before 0.1 s later.
    for body in ("first", "second"):
        machine.queue.put(body)
    async with machine.service(work, SQS_VISIBILITY_TIMEOUT_SECONDS=30) as service:
        await service.wait_for(lambda: machine.queue.calls["change_visibility"] == 1)
        await trio.sleep(0.05)
        assert not [event for event in machine.queue.history if isinstance(event, VisibilityChanged)]
        machine.sleep(600)
        await trio.sleep(0.2)
        assert set(service.lost) == {"first", "second"}
        assert not [event for event in machine.queue.history if isinstance(event, VisibilityChanged)]
        service.core.manager.stop()


async def test_a_receive_that_was_out_in_the_sleep_counts_from_its_sending(autojump_clock) -> None:
    # It takes two seconds to SQS, where it waits: what it brings then has little left of its lease, as far as we can know.
    machine = Machine(request_seconds=(2, 2))
    async with machine.service(SQS_VISIBILITY_TIMEOUT_SECONDS=30) as service:
        await trio.sleep(1)
        machine.queue.put("hello")
        machine.sleep(40)
        await service.wait_for(lambda: bool(service.lost or service.processed))
        assert service.lost == ["hello"]
        service.core.manager.stop()


async def test_an_extension_that_was_out_in_the_sleep_counts_from_its_sending(autojump_clock) -> None:
    machine = Machine(faults=[Fault("delay", "change_visibility", nth=1, seconds=2)])

    async def work(message: Message) -> None:
        await trio.sleep(100)

    machine.queue.put("long")
    async with machine.service(work, SQS_VISIBILITY_TIMEOUT_SECONDS=30) as service:
        await service.at_work("long", seconds=21)
        (entry,) = service.core.worker.ledger
        assert entry.lease.extending
        machine.sleep(5)
        await trio.sleep(2)
        assert not entry.lease.extending
        assert entry.lease.until == pytest.approx(20 - 5 + 30)
        service.core.manager.stop()


async def test_what_is_deferred_is_nearer_after_the_sleep(autojump_clock, machine: Machine) -> None:
    async def fail(message: Message) -> None:
        raise Retry(after=100)

    message_id = machine.queue.put("later")
    async with machine.service(fail) as service:
        await service.outcome("later")
        machine.sleep(60)
        await trio.lowlevel.checkpoint()
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert report.handlers["sqs"]["deferred"] == {message_id: pytest.approx(40.1 - report.ended, abs=0.1)}


async def test_a_release_that_may_have_acted_is_not_repeated(autojump_clock) -> None:
    # It acts at 2 and its answer is lost. Another consumer has the message when our call is given up, at 7; a second one, by the
    # old receipt, could take it away from there.
    queue = SimulatedQueue(faults=[Fault("timeout-after", "change_visibility", nth=1)])

    async def work(message: Message) -> None:
        await trio.sleep(100)

    message_id = queue.put("long")
    async with SimulatedService(queue, work, DRAIN_TIMEOUT="1s", SQS_WAIT_TIME_SECONDS=0) as service:
        await service.at_work("long", seconds=1)
        service.maintenance("on")
        await service.drained()
        await service.outcome("long")
        await trio.sleep(30)
        assert (service.released, service.lost) == (["long"], [])
    assert queue.calls["change_visibility"] == 1
    assert queue.visible() == [message_id]


async def test_a_release_that_surely_has_not_acted_is_repeated(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "change_visibility", nth=1)])

    async def work(message: Message) -> None:
        await trio.sleep(100)

    message_id = queue.put("long")
    async with SimulatedService(queue, work, DRAIN_TIMEOUT="10s", SQS_WAIT_TIME_SECONDS=0) as service:
        await service.at_work("long", seconds=1)
        service.maintenance("on")
        await service.drained()
        assert service.released == ["long"]
    assert queue.calls["change_visibility"] == 2
    assert queue.visible() == [message_id]


async def test_a_back_off_that_may_have_acted_is_repeated_while_it_hides_the_message(autojump_clock) -> None:
    faults = [Fault("timeout-after", "change_visibility", nth=1), Fault("timeout-after", "change_visibility", nth=2)]
    queue = SimulatedQueue(faults=faults)

    async def later(message: Message) -> None:
        raise Retry(after=8)

    queue.put("later")
    async with SimulatedService(queue, later, SQS_WAIT_TIME_SECONDS=0) as service:
        await service.outcome("later")
        # Once more after 5 s; then 8 s are over since the first, and another consumer may have it.
        assert queue.calls["change_visibility"] == 2
        assert service.released == ["later"]
        service.core.manager.stop()


async def test_what_is_held_is_not_given_back_when_its_lease_is_over(autojump_clock) -> None:
    # The process stands still for a minute: it wakes up with the end of the drain and a lease that ended long ago.
    queue = SimulatedQueue(request_seconds=(1, 1))
    for body in ("first", "second"):
        queue.put(body)
    async with SimulatedService(queue, SQS_MAX_NUMBER_OF_MESSAGES=1, SQS_WAIT_TIME_SECONDS=5) as service:
        await service.wait_for(lambda: service.core.worker.intake.outstanding > 1)
        service.maintenance("on")
        await service.wait_for(lambda: service.core.worker.deliveries.held > 0)
        held = [entry.message.body for entry in service.core.worker.deliveries._held]
        autojump_clock.jump(60)
        await service.drained()
        assert set(held) <= set(service.lost)
    assert not [event for event in queue.history if isinstance(event, VisibilityChanged)]


async def test_a_copy_does_not_wait_for_a_retry_whose_time_has_come_in_the_sleep(autojump_clock) -> None:
    machine = Machine(faults=[Fault("delay", "change_visibility", nth=1, seconds=3)])
    began: list[float] = []

    async def work(message: Message) -> None:
        began.append(trio.current_time())
        if message.receive_count == 1:
            raise Retry(after=100)

    message_id = machine.queue.put("once more")
    async with machine.service(work, SQS_VISIBILITY_TIMEOUT_SECONDS=300) as service:
        await trio.sleep(1)
        copy = Received(Message(message_id, "once more", receive_count=2), "its receipt")
        service.core.worker.deliveries.land([copy], trio.current_time())
        await trio.sleep(1)
        machine.sleep(150)
        await trio.sleep(5)
        assert began == [0, pytest.approx(3.1)]  # when the first delivery is settled
        service.crash()


async def test_what_was_finished_before_the_sleep_is_deleted_after_it(autojump_clock, machine: Machine) -> None:
    async def work(message: Message) -> None:
        await trio.sleep(5 if message.body == "done" else 100)

    done, _ = machine.queue.put("done"), machine.queue.put("long")  # for whose end the delete waits a little
    async with machine.service(work) as service:
        await service.at_work("long", seconds=5.05)
        machine.sleep(600)
        assert await service.outcome("done") == "processed"
        await service.wait_for(lambda: machine.queue.deleted == [done])
        service.core.manager.stop()
