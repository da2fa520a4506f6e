"""Mistakes that once lived through every test, and for each a scenario that tells it from the program as it is.

A scenario is run twice: with the program, where it must hold, and with the mistake made in it, where it must not.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
import trio

from svc import Message
from svc.consumer.delivery_states import Event, Mode
from svc.consumer.ledger import Entry
from svc.consumer.queue import Received, Refusal
from svc.core import Core
from svc.maintenance.handler import DrainOutcome
from svc.testing import Fault, SimulatedQueue
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors

Make = Callable[..., Core]
Holds = bool


def processor(seconds: float) -> Callable[[Message], Awaitable[None]]:
    async def work(message: Message) -> None:
        await trio.sleep(seconds)

    return work


# -- a held message that leave() forgets: in flight for hours, its lease extended all along --


def forgets_what_was_held(core: Core) -> None:
    deliveries = core.worker.deliveries

    def resume() -> None:
        deliveries.mode = Mode.RECEIVING
        deliveries._held.clear()

    deliveries.resume = resume  # type: ignore[method-assign]


async def what_was_held_is_processed_when_the_drain_is_called_off(make: Make) -> Holds:
    queue = SimulatedQueue()
    for number in range(10):
        queue.put(str(number))
    async with SimulatedService(queue, processor(0), make_core=make) as service:
        await trio.sleep(1)
        assert service.core.worker.intake.outstanding == 2  # the first came back full
        service.maintenance("on")
        await trio.sleep(1)
        queue.put("held")  # one of the two brings it, the other is still out
        await trio.sleep(1)
        assert "held" not in service.processed
        assert len(service.core.worker.ledger) == 1
        service.maintenance("off")
        await trio.sleep(1)
        return "held" in service.processed


# -- work that goes on after SQS said that the lease is gone --


def believes_in_a_lease_that_is_gone(core: Core) -> None:
    heartbeat = core.worker.heartbeat
    queue = heartbeat._queue

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

        async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
            await queue.change_visibility(timeouts)
            return {}

    heartbeat._queue = Deaf()  # type: ignore[assignment]


async def work_ends_when_the_queue_says_that_the_lease_is_gone(make: Make) -> Holds:
    queue = SimulatedQueue()
    message_id = queue.put("long")
    async with SimulatedService(queue, processor(100), make_core=make) as service:
        await service.at_work("long")
        await trio.sleep(10)
        queue._server._forget(queue._server.known(message_id))  # as PurgeQueue does
        await trio.sleep(60)
        ended = [run for run in service.runs if isinstance(run.error, trio.Cancelled)]
        service.crash()
        return len(ended) == 1 and ended[0].ended < 25


# -- a third copy beside the second --


def starts_all_copies(core: Core) -> None:
    deliveries = core.worker.deliveries
    take = deliveries._take

    def take_all(entry: Entry, event: Event, first: Entry | None = None) -> None:
        take(entry, event, first)
        if event is Event.FIRST_GIVEN_BACK:
            for copy in deliveries._copies.pop(entry.message.id, ()):
                take(copy, event, first)

    deliveries._take = take_all  # type: ignore[method-assign]


async def copies_run_one_after_the_other(make: Make) -> Holds:
    queue = SimulatedQueue()
    message_id = queue.put("thrice")
    running = 0

    async def work(message: Message) -> None:
        nonlocal running
        running += 1
        try:
            await trio.sleep(5)
        finally:
            running -= 1

    async with SimulatedService(queue, work, make_core=make) as service:
        await service.at_work("thrice")
        worker = service.core.worker
        (first,) = worker.ledger
        copies = [Received(Message(message_id, "thrice", receive_count=2), f"copy {number}") for number in (1, 2)]
        worker.deliveries.land(copies, trio.current_time())
        worker.ledger.lose(first, "for this test")
        await trio.sleep(1)
        assert len(worker.ledger) == 2
        service.crash()
        return running == 1


# -- a FIFO redelivery beside its predecessor --


def waits_for_no_predecessor(core: Core) -> None:
    async def at_once(entry: Entry) -> None:
        return

    core.worker.tasks.end_of_earlier = at_once  # type: ignore[method-assign]


async def a_redelivery_waits_until_its_predecessor_is_settled(make: Make) -> Holds:
    # m1 fails, and m2 behind it is given back, by a call that acts at once and is answered four seconds later. Soon both come
    # again, and m1 succeeds.
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    change = queue.change_visibility

    async def answered_late(timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        refused = await change(timeouts)
        if 0 in timeouts.values():
            await trio.sleep(4)
        return refused

    queue.change_visibility = answered_late  # type: ignore[method-assign]
    for body in ("m1", "m2"):
        queue.put(body, group_id="g")

    async def m1_fails_once(message: Message) -> None:
        if message.body == "m1" and message.receive_count == 1:
            raise ValueError("once")

    async with SimulatedService(
        queue, m1_fails_once, make_core=make, RETRY_BACKOFF="1s", SQS_WAIT_TIME_SECONDS="1"
    ) as service:
        await service.idle()
        (given_back,) = [ending for ending in service.endings if ending.outcome == "released"]
        failed, succeeded, m2 = service.runs
        assert (failed.body, succeeded.body, given_back.body, m2.body) == ("m1", "m1", "m2", "m2")
        assert succeeded.ended < 4 < given_back.at
        return m2.began >= given_back.at


# -- a drain that lost messages and calls itself drained --


def forgets_what_was_lost(core: Core) -> None:
    core.worker.tally.note_lost = lambda entry: None  # type: ignore[method-assign]


async def a_drain_that_lost_a_message_says_so(make: Make) -> Holds:
    queue = SimulatedQueue(faults=[Fault("timeout-before", "change_visibility")])
    message_id = queue.put("long")
    async with SimulatedService(
        queue, processor(100), make_core=make, DRAIN_TIMEOUT="60s", SQS_WAIT_TIME_SECONDS="1"
    ) as service:
        await service.at_work("long")
        service.maintenance("on")
        report = await service.drained()
        assert report.ended == pytest.approx(30, abs=0.1)  # when its lease was over
        service.crash()
        return report.outcome is DrainOutcome.EXPIRED and f"1 message lost: {message_id}" in (report.error or "")


# -- a receive that is bounded in time --


def gives_up_a_receive_after_a_minute(core: Core) -> None:
    queue = core.worker.intake._queue

    class Impatient:
        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

        async def receive(self, **request: int) -> Sequence[Received]:
            with trio.move_on_after(60):
                return await queue.receive(**request)
            return ()

    core.worker.intake._queue = Impatient()  # type: ignore[assignment]


async def a_receive_lands_however_long_it_takes(make: Make) -> Holds:
    queue = SimulatedQueue()
    receive = queue.receive

    async def slow(**request: int) -> Sequence[Received]:
        found = await receive(**request)
        await trio.sleep(200)
        return found

    queue.receive = slow  # type: ignore[method-assign]
    queue.put("late")
    async with SimulatedService(queue, processor(0), make_core=make, SQS_VISIBILITY_TIMEOUT_SECONDS="600") as service:
        await trio.sleep(300)
        held = service.processed == ["late"]
        service.crash()
        return held


SURVIVORS: Mapping[str, tuple[Callable[[Core], None], Callable[[Make], Awaitable[Holds]]]] = {
    spoil.__name__: (spoil, scenario)
    for spoil, scenario in (
        (forgets_what_was_held, what_was_held_is_processed_when_the_drain_is_called_off),
        (believes_in_a_lease_that_is_gone, work_ends_when_the_queue_says_that_the_lease_is_gone),
        (starts_all_copies, copies_run_one_after_the_other),
        (waits_for_no_predecessor, a_redelivery_waits_until_its_predecessor_is_settled),
        (forgets_what_was_lost, a_drain_that_lost_a_message_says_so),
        (gives_up_a_receive_after_a_minute, a_receive_lands_however_long_it_takes),
    )
}


@pytest.mark.parametrize("name", SURVIVORS)
async def test_the_program_holds(autojump_clock, name: str) -> None:
    _, scenario = SURVIVORS[name]
    assert await scenario(Core)


@pytest.mark.parametrize("name", SURVIVORS)
async def test_the_mistake_is_seen(autojump_clock, name: str) -> None:
    spoil, scenario = SURVIVORS[name]

    def make(*args: Any, **options: Any) -> Core:
        core = Core(*args, **options)
        spoil(core)
        return core

    assert not await scenario(make)
