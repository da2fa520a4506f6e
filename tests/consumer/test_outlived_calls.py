"""A processor's call that goes on although its message is out of our hands: the message is not begun beside it."""

import asyncio
import sys
from collections import Counter
from typing import Any, Literal

import pytest
import trio
from structlog.testing import capture_logs

from svc.consumer.queue import Received
from svc.consumer.tasks import PATIENCE
from svc.processors import Message, Retry, processor
from svc.testing import Fault, SimulatedQueue
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors


class Work:
    """Takes so many seconds, whatever becomes of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began: list[float] = []
        self.at_once = Counter[str]()
        self.most = 0

    async def __call__(self, message: Message) -> None:
        self.began.append(trio.current_time())
        self.at_once[message.id] += 1
        self.most = max(self.most, self.at_once[message.id])
        with trio.CancelScope(shield=True):
            await trio.sleep(self.seconds)
        self.at_once[message.id] -= 1


def lose(service: SimulatedService, message_id: str) -> None:
    """The lease of the delivery at work is over."""
    ledger = service.core.worker.ledger
    first = ledger.at_work_on(message_id)
    assert first is not None
    ledger.lose(first, "the test takes it")


def land_a_copy(service: SimulatedService, message_id: str) -> None:
    copy = Received(Message(message_id, "twice", receive_count=2), f"another receipt of {message_id}")
    service.core.worker.deliveries.land([copy], trio.current_time())


virtual = pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio does not run on Python 3.14")


@pytest.mark.parametrize(
    ("runtime", "ticks"),
    [("trio", 0), pytest.param("asyncio", 1, marks=virtual), pytest.param("asyncio", 2, marks=virtual)],
)
async def test_a_call_ends_in_the_moment_in_which_its_lease_is_lost(
    autojump_clock, runtime: Literal["trio", "asyncio"], ticks: int
) -> None:
    """Its task has yet to hear of the end: so many ticks of Trio's loop after it."""
    may_end: dict[str, Any] = {}
    runs = Counter[str]()
    finished: list[str] = []

    @processor(runtime=runtime)
    async def work(message: Message) -> None:
        runs[message.id] += 1
        event = trio.Event() if runtime == "trio" else asyncio.Event()
        await may_end.setdefault(message.id, event).wait()
        finished.append(message.id)

    queue = SimulatedQueue()
    async with SimulatedService(queue, work) as service:
        for number in range(12):  # which task goes on first is chance
            message_id = queue.put(str(number))
            await service.wait_for(lambda: runs[message_id] == 1)  # noqa: B023
            land_a_copy(service, message_id)
            await trio.testing.wait_all_tasks_blocked()
            may_end[message_id].set()
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            if message_id in service.running:
                lose(service, message_id)
            await trio.testing.wait_all_tasks_blocked()
        begun_beside = [message_id for message_id in finished if finished.count(message_id) > 1]
        assert begun_beside == []
        service.crash()


async def test_a_copy_waits_for_a_call_that_ignores_its_lost_lease(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(20)
    message_id = queue.put("twice")
    async with SimulatedService(queue, work) as service:
        await trio.sleep(1)
        land_a_copy(service, message_id)
        lose(service, message_id)
        await trio.sleep(18)
        assert service.core.worker.ledger.counts().in_flight == 1
        await trio.sleep(2)
        assert (work.began, work.most) == ([0], 1)  # it was finished: the copy is deleted
        assert service.core.worker.ledger.counts().in_flight == 0
        service.crash()


async def test_a_copy_is_worked_on_when_the_call_before_it_has_failed(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(20)

    async def fails(message: Message) -> None:
        await work(message)
        if message.receive_count == 1:
            raise ValueError

    message_id = queue.put("twice")
    async with SimulatedService(queue, fails) as service:
        await trio.sleep(1)
        land_a_copy(service, message_id)
        lose(service, message_id)
        await trio.sleep(40)
        assert (work.began, work.most) == ([0, 20], 1)
        service.crash()


@pytest.mark.parametrize("last_receive", [False, True])
async def test_a_call_that_never_ends_keeps_its_message_from_nobody_else(autojump_clock, last_receive: bool) -> None:
    policy = {"dead_letters": SimulatedQueue("dead"), "max_receive_count": 2} if last_receive else {}
    queue, work = SimulatedQueue(**policy), Work(5000)
    message_id = queue.put("twice")
    with capture_logs() as logs:
        async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS=30) as service:
            ledger = service.core.worker.ledger
            await trio.sleep(1)
            lose(service, message_id)
            await trio.sleep(30 + PATIENCE - 2)
            assert queue.receive_count(message_id) == 2
            assert ledger.counts().in_flight == 1
            await trio.sleep(2)
            told = [line for line in logs if line["event"].startswith("a message has come back while its call goes on")]
            assert len(told) == 1
            # After its last receive it would be dead-lettered.
            assert ledger.counts().in_flight == last_receive
            assert ledger.counts().released == (not last_receive)
            await trio.sleep(1000)
            assert work.most == 1
            service.crash()


@pytest.mark.parametrize("last_receive", [False, True])
async def test_a_drain_ends_the_wait_for_such_a_call(autojump_clock, last_receive: bool) -> None:
    policy = {"dead_letters": SimulatedQueue("dead"), "max_receive_count": 2} if last_receive else {}
    queue, work = SimulatedQueue(**policy), Work(500)
    message_id = queue.put("twice")
    async with SimulatedService(queue, work, DRAIN_TIMEOUT="10s") as service:
        await trio.sleep(1)
        land_a_copy(service, message_id)
        lose(service, message_id)
        await trio.sleep(1)
        service.maintenance("on")
        report = await service.drained()
        assert report.ended == pytest.approx(12, abs=1)
        figures = report.handlers["sqs"]
        assert figures["timed_out"] == figures["stubborn"] == (message_id,)
        assert figures["next_receive_dead_letters"] == ((message_id,) if last_receive else ())
        assert service.core.worker.ledger.counts().in_flight == 0
        assert work.most == 1
        service.crash()


async def test_what_a_drain_gave_back_is_not_begun_beside_its_call_when_work_goes_on(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(20)
    queue.put("once")
    async with SimulatedService(queue, work, DRAIN_TIMEOUT="2s") as service:
        await trio.sleep(1)
        service.maintenance("on")
        await service.drained()
        service.maintenance("off")
        await service.idle()
        assert (work.began, work.most) == ([0], 1)


async def test_what_was_lost_and_comes_back_waits_for_its_call(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "change_visibility", end=2)])
    work = Work(5)
    queue.put("once")
    async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS=2) as service:
        await service.idle()
        assert service.core.worker.ledger.counts().lost == 1
        assert (work.began, work.most) == ([0], 1)


async def test_what_is_lost_when_its_call_has_ended_waits_for_nothing(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "change_visibility", end=6)])
    began: list[float] = []

    async def asks_for_a_retry(message: Message) -> None:
        began.append(trio.current_time())
        if len(began) == 1:
            raise Retry("once more")

    queue.put("once")
    async with SimulatedService(queue, asks_for_a_retry, SQS_VISIBILITY_TIMEOUT_SECONDS=5) as service:
        await service.idle()
        assert service.core.worker.ledger.counts().lost == 1
        assert began == [0, 5]
