"""What the search has found, each find as a small scenario of its own, named after what went wrong."""

import pytest
import trio

from svc.consumer.queue import Received
from svc.consumer.worker import LAST_RELEASE
from svc.maintenance.handler import DrainOutcome
from svc.processors import Message, Reject, Retry
from svc.testing import Fault, Outage, SimulatedQueue
from svc.testing.history import Assigned, Deleted, ReceiveBegan, VisibilityChanged
from svc.testing.service import SimulatedService
from tests.search.run import muted, run_schedule
from tests.search.schedule import Arrival, Ask, Flip, Life, Schedule, Setup, Work
from tests.search.witness import cancel_everything


@pytest.mark.parametrize("ticks", range(12))
async def test_an_instance_cancelled_while_it_starts_hung_for_ever(autojump_clock, ticks: int):
    # The far side is shielded; who tells it to close was not running yet.
    async def give_up() -> None:
        await trio.sleep(60)
        cancel_everything()

    trio.lowlevel.spawn_system_task(give_up)
    service = SimulatedService(SimulatedQueue())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert service.ended
    assert trio.current_time() <= LAST_RELEASE


@pytest.mark.expects_errors
async def test_a_failed_message_was_not_named_for_as_long_as_it_stayed_invisible(autojump_clock):
    # Our lease counts from the sending of the receive; SQS counts from when it hands the message out, seconds later.
    queue = SimulatedQueue()

    async def fail(message: Message) -> None:
        raise ValueError("no good")

    # The effective wait is two thirds of the lease: polls from 0, and after the landing from 2 to 6.
    async with SimulatedService(queue, fail, SQS_VISIBILITY_TIMEOUT_SECONDS="6", RETRY_BACKOFF="off") as service:
        await trio.sleep(2)
        message_id = queue.put("bad")
        await trio.sleep(3)
        service.maintenance("on")
        report = await service.drained()
        assert report.ended == pytest.approx(6)
        assert report.handlers["sqs"]["deferred"] == {message_id: pytest.approx(2)}
        assert queue.in_flight() == [message_id]


async def test_a_message_lost_before_the_drain_was_not_named_while_it_stayed_invisible(autojump_clock):
    # The heartbeat at 4 acts, its answer is lost: for us the lease is over at 6, for SQS at 10.
    queue = SimulatedQueue(faults=[Fault("timeout-after", "change_visibility")])

    async def work(message: Message) -> None:
        await trio.sleep(100)

    message_id = queue.put("lost")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "6", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, work, **settings) as service:
        await service.wait_for(lambda: service.core.worker.ledger.counts().lost == 1)
        assert trio.current_time() == pytest.approx(6, abs=0.02)
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert report.ended < 10
        assert queue.in_flight() == [message_id]
        # We cannot know when the call acted: at the latest when it had its 10 s.
        assert report.handlers["sqs"]["deferred"] == {message_id: pytest.approx(4 + 10 + 6 - report.ended)}
        service.core.manager.stop()


@pytest.mark.parametrize("seed", range(20))
def test_a_receive_that_never_left_was_reported_as_outstanding(seed: int):
    # The poll from 0 lands at 1, the next is decided on, and in this instant maintenance begins: in some orders of the tasks.
    with muted():
        result = run_schedule(Schedule(seed, Setup(wait=1), (Arrival(1.0),), flips=(Flip(1.0),)))
    assert result.violations == []


async def test_a_successor_passed_a_finished_message_whose_delete_was_not_confirmed(autojump_clock):
    queue = SimulatedQueue(fifo=True, content_deduplication=True, faults=[Fault("error", "delete", start=0, end=3)])
    first, second = (queue.put(body, group_id="g") for body in ("first", "second"))
    async with SimulatedService(queue, SQS_VISIBILITY_TIMEOUT_SECONDS="2") as service:
        await service.idle()
        assert [run.message_id for run in service.runs] == [first, second]
        deleted = next(event for event in queue.history if isinstance(event, Deleted))
        assert deleted.message_id == first
        assert 3 <= deleted.at <= service.runs[1].began


@pytest.mark.expects_errors
async def test_a_successor_passed_a_message_that_came_back_before_its_release_was_confirmed(autojump_clock):
    # "bad" is tried twice and dead-lettered; "good", which waited behind it, is given back, and the queue hands it out again
    # before the release is confirmed (the third change of visibility acts and ends in an error).
    dead = SimulatedQueue("dead", fifo=True, content_deduplication=True)
    faults = [Fault("error-after", "change_visibility", nth=3)]
    queue = SimulatedQueue(fifo=True, content_deduplication=True, dead_letters=dead, max_receive_count=2, faults=faults)
    bodies: list[str] = []

    async def handle(message: Message) -> None:
        bodies.append(message.body)
        if message.body == "bad":
            queue.put("good" if message.receive_count == 1 else "next", group_id="g")
            raise Retry

    queue.put("bad", group_id="g")
    async with SimulatedService(queue, handle) as service:
        await service.idle()
    assert bodies == ["bad", "bad", "good", "next"]


async def test_a_message_that_came_back_before_its_release_was_confirmed_was_given_back_into_the_dead_letter_queue(
    autojump_clock,
):
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(
        dead_letters=dead, max_receive_count=2, faults=[Fault("error-after", "change_visibility", nth=1)]
    )

    async def once_more(message: Message) -> None:
        if message.receive_count == 1:
            raise Retry

    message_id = queue.put("hello")
    async with SimulatedService(queue, once_more) as service:
        await service.idle()
        assert [run.error is None for run in service.runs] == [False, True]
    assert queue.deleted == [message_id]
    assert dead.visible() == []


@pytest.mark.expects_errors
async def test_a_message_finished_after_it_was_given_back_was_processed_again(autojump_clock):
    queue = SimulatedQueue()

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    message_id = queue.put("hello")
    async with SimulatedService(queue, stubborn, DRAIN_TIMEOUT="1s") as service:
        await service.wait_for(lambda: bool(service.running))
        service.maintenance("on")
        report = await service.drained()
        assert report.handlers["sqs"]["stubborn"] == (message_id,)
        await service.wait_for(lambda: bool(service.runs))
        assert queue.visible() == [message_id]
        service.maintenance("off")
        await service.idle()
        assert len(service.runs) == 1
    assert queue.deleted == [message_id]


@pytest.mark.expects_errors
async def test_a_message_finished_while_its_redelivery_waited_was_processed_again(autojump_clock):
    # No heartbeat gets through, so the lease is lost at 2; the processor ignores that and finishes at 5. The redelivery waited
    # for it in the line of its group.
    faults = [Fault("error", "change_visibility", end=2)]
    queue = SimulatedQueue(fifo=True, content_deduplication=True, faults=faults)

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    message_id = queue.put("hello", group_id="g")
    async with SimulatedService(queue, stubborn, SQS_VISIBILITY_TIMEOUT_SECONDS="2") as service:
        await service.idle()
        assert service.core.worker.ledger.counts().lost == 1
        assert len(service.runs) == 1
    assert queue.deleted == [message_id]


@pytest.mark.expects_errors
@pytest.mark.parametrize("last_receive", [False, True])
async def test_what_landed_after_the_time_for_work_was_held_for_the_whole_maintenance(
    autojump_clock, last_receive: bool
):
    # The first receive takes 4 s to SQS and waits there for 8 s, until 12, which is the drain's deadline. Its reserve, the last
    # second, has begun when the message comes.
    policy = {"dead_letters": SimulatedQueue("dead"), "max_receive_count": 1} if last_receive else {}
    queue = SimulatedQueue(faults=[Fault("delay", "receive", nth=1, seconds=4)], **policy)
    async with SimulatedService(queue, DRAIN_TIMEOUT="10s") as service:
        await trio.sleep(2)
        service.maintenance("on")
        await trio.sleep(9.5)
        message_id = queue.put("late")
        report = await service.drained()
        assert report.ended == pytest.approx(11.5)
        assert queue.visible() == [message_id]
        assert report.handlers["sqs"]["released"] == 1
        assert report.handlers["sqs"]["next_receive_dead_letters"] == ((message_id,) if last_receive else ())
        assert service.runs == []


async def test_a_message_waited_in_its_line_for_its_own_successor(autojump_clock):
    # Given back at 0.5, which is not confirmed until 5.5; handed out again at 0.8, and lost at 2.8, as no heartbeat is answered;
    # handed out once more at 4.1: the second delivery waited for the third, which stood behind it.
    faults = [Fault("timeout-after", "change_visibility", end=4)]
    queue = SimulatedQueue(fifo=True, content_deduplication=True, faults=faults)
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "2", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, **settings) as service:
        await trio.sleep(0.5)
        service.maintenance("on")
        queue.put("hello", group_id="g")
        await trio.sleep(0.3)
        service.maintenance("off")
        with trio.fail_after(10):
            await service.idle()
        assert [run.error for run in service.runs] == [None]


@pytest.mark.expects_errors
async def test_a_copy_that_landed_after_the_time_for_work_waited_for_the_release_of_the_first(autojump_clock):
    # Two receives are on the wire, both until 12, the deadline. The first takes the message at 11.5 and gives it back, the answer
    # to which is lost; so the second takes it again. It must go back too, and not wait for that answer.
    faults = [
        Fault("delay", "receive", nth=2, seconds=4),
        Fault("delay", "receive", nth=3, seconds=4),
        Fault("timeout-after", "change_visibility", nth=1),
    ]
    queue = SimulatedQueue(faults=faults)
    queue.put("makes the first receive a full one, so that two follow")
    async with SimulatedService(queue, DRAIN_TIMEOUT="10s", SQS_MAX_NUMBER_OF_MESSAGES="1") as service:
        await trio.sleep(2)
        service.maintenance("on")
        await trio.sleep(9.5)
        message_id = queue.put("late")
        report = await service.drained()
        # The deadline and `LATE`: the first release is not confirmed, nor is it known that it acted.
        assert report.ended == pytest.approx(13)
        assert report.handlers["sqs"]["unsettled"] == (message_id,)
        assert queue.receive_count(message_id) == 2
        assert queue.visible() == [message_id]


async def test_a_drain_gave_back_a_copy_in_its_last_receive_with_the_delivery_that_it_held(autojump_clock):
    # Seed 9000322. Both receives on the wire bring the message, and the second of them is the last that is granted.
    dead = SimulatedQueue("dead")
    faults = [Fault("delay", "receive", nth=2, seconds=3), Fault("delay", "receive", nth=3, seconds=4)]
    queue = SimulatedQueue(faults=faults, dead_letters=dead, max_receive_count=2, duplicates=1.0)
    queue.put("makes the first receive a full one, so that two follow")
    async with SimulatedService(queue, SQS_MAX_NUMBER_OF_MESSAGES="1") as service:
        await trio.sleep(2)
        service.maintenance("on")
        await trio.sleep(1)
        queue.put("twice")
        report = await service.drained()
        assert [event.receive_count for event in queue.history if isinstance(event, Assigned)][-2:] == [1, 2]
        assert [run.body for run in service.runs][1:] == ["twice"]
        assert report.outcome is DrainOutcome.DRAINED
        assert not queue.bodies
        assert not dead.bodies


async def test_the_copies_of_a_retry_were_put_off_again_and_again(autojump_clock):
    # Seed 10035119. A retry in a second lingers for five before it is sent, and a copy lands meanwhile. When its turn comes the
    # second is long over: it is the retry. It asked for a second of its own, which lingered, until the next copy had landed …
    async def work(message: Message) -> None:
        if message.receive_count == 1:
            raise Retry(after=1)

    queue = SimulatedQueue()
    message_id = queue.put("twice")
    async with SimulatedService(queue, work, SQS_BATCH_LINGER="5") as service:
        await service.wait_for(lambda: len(service.runs) == 1)
        await trio.sleep(0.5)
        copy = Received(Message(message_id, "twice", receive_count=2), "its receipt")
        service.core.worker.deliveries.land([copy], trio.current_time())
        await service.wait_for(lambda: len(service.runs) == 2)
        assert trio.current_time() == pytest.approx(service.when("twice", "released"), abs=0.02)
        service.crash()


async def test_a_receipt_that_came_twice_in_an_answer_after_its_lease_was_counted_twice(autojump_clock):
    # Seed 9017203. The first is lost as it lands, and so the second was not known.
    async with SimulatedService(SimulatedQueue()) as service:
        await trio.sleep(1)
        worker = service.core.worker
        late = Received(Message("m", "late"), "its receipt")
        worker.deliveries.land([late, late], trio.current_time() - 3600)
        assert (worker.ledger.counts().received, worker.ledger.counts().lost) == (1, 1)


async def test_a_retry_that_acted_without_an_answer_was_not_named_while_the_message_stayed_invisible(autojump_clock):
    queue = SimulatedQueue(faults=[Fault("error-after", "change_visibility")])

    async def later(message: Message) -> None:
        raise Retry(after=20)

    message_id = queue.put("later")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "4", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, later, **settings) as service:
        await service.wait_for(lambda: service.core.worker.ledger.counts().lost == 1)
        await trio.sleep(4)  # beyond the lease of the receive
        service.maintenance("on")
        report = await service.drained()
        # Each of the tries, until the lease was over, has acted.
        last = [event for event in queue.history if isinstance(event, VisibilityChanged)][-1]
        assert queue.in_flight() == [message_id]
        assert report.handlers["sqs"]["deferred"] == {message_id: pytest.approx(last.until - report.ended, abs=0.001)}


def test_of_two_copies_the_report_forgot_the_one_that_hid_the_message():
    # The first copy's lease is refused at 5.2, as the second has taken over; that is lost too, but hides the message until 6.7.
    schedule = Schedule(
        seed=618770,
        setup=Setup(
            visibility=2, wait=1, concurrency=2, max_receives=2, latency=(0.0, 0.6), duplicates=0.3, reread=3.0
        ),
        arrivals=(Arrival(2.0, runs=(Work("fail", 5.0),)),),
        flips=(Flip(5.0, delay=0.5), Flip(6.7, "off")),
        lives=(Life(end=7.0), Life(7.0, end=7.0, how="cancel"), Life(7.0)),
    )
    with muted():
        assert run_schedule(schedule).violations == []


def test_an_instance_that_nobody_could_know_of_began_to_receive_when_etcd_went_away():
    # It reads "off" at 0; its registration arrives at 2.2, when etcd is out of its reach. The operator, who reaches it, asks at 2
    # and finds nobody. The look that failed at 2.2 had let it receive.
    schedule = Schedule(
        setup=Setup(wait=2), asks=(Ask(2.0, delay=0.3),), outages=(Outage(2.0, 2.5),), write_seconds=(2.2, 2.2)
    )
    with muted():
        result = run_schedule(schedule)
    assert result.violations == []
    assert result.tried["asks none"] == 1


def test_an_instance_received_before_its_registration_had_been_tried_again():
    # Its first try to register fails; half a second later etcd is back, and says "off", when the registration is on its way.
    schedule = Schedule(setup=Setup(wait=1), asks=(Ask(0.9),), outages=(Outage(0.0, 0.5),), write_seconds=(2.0, 2.0))
    with muted():
        result = run_schedule(schedule)
    assert result.violations == []
    assert result.tried["asks none"] == 1


async def test_a_message_landed_after_its_lease_time_after_time(autojump_clock):
    # It became visible again while the next poll waited, and the way back took the rest of the lease. (Seed 1294.)
    queue = SimulatedQueue(request_seconds=(0.6, 0.6), answer_seconds=(0.6, 0.6))
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "2", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, **settings) as service:
        await trio.sleep(1.5)
        queue.put("far away")
        with trio.fail_after(8):
            await service.wait_for(lambda: service.processed == ["far away"])
        assert service.lost == ["far away"]  # once
        await trio.sleep(10)
        assert queue.calls["receive"] < 16  # short polls, with SQS_POLL_INTERVAL between them


async def test_polls_are_long_again_when_the_way_is_short_again(autojump_clock):
    queue = SimulatedQueue()
    queue.put("late")
    async with SimulatedService(queue, SQS_VISIBILITY_TIMEOUT_SECONDS="3", SQS_WAIT_TIME_SECONDS="2") as service:
        queue._answer_seconds = (4, 4)
        await service.wait_for(lambda: service.lost == ["late"])
        queue._answer_seconds = (0, 0)
        with trio.fail_after(8):
            await service.wait_for(lambda: service.processed == ["late"])
        await trio.sleep(10)
    waits = [event.wait for event in queue.history if isinstance(event, ReceiveBegan)]
    assert waits[0] == 2
    assert waits[1] == 0
    assert set(waits[2:]) == {2}


@pytest.mark.expects_errors
async def test_followers_went_untried_when_sqs_had_moved_the_head_of_their_group_itself(autojump_clock):
    # Seed 901982. "bad" fails for the last time at 1.5; its copy to the dead-letter queue hangs, its lease ends at 2, and the
    # next receive moves it and brings the two behind it. They were given back after that, their last receive.
    dead = SimulatedQueue("dead", fifo=True, content_deduplication=True)
    faults = [Fault("timeout-before", "dead_letter", nth=1)]
    queue = SimulatedQueue(fifo=True, content_deduplication=True, dead_letters=dead, max_receive_count=1, faults=faults)

    async def handle(message: Message) -> None:
        if message.body == "bad":
            queue.put("second", group_id="g")
            queue.put("third", group_id="g")
            await trio.sleep(1.5)
            raise ValueError("for the last time")

    queue.put("bad", group_id="g")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "2", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, handle, **settings) as service:
        await service.idle()
        assert service.processed == ["second", "third"]
    assert dead.bodies == ["bad"]


@pytest.mark.expects_errors
async def test_followers_went_untried_behind_a_head_that_ignored_its_cancellation_and_was_moved_by_sqs(autojump_clock):
    # Seed 1443. The drain gives the head back after its last receive; its processor goes on behind it. SQS moves it at the next
    # receive, which brings the next of the group. That waited for the processor of the head, and was given back.
    dead = SimulatedQueue("dead", fifo=True, content_deduplication=True)
    queue = SimulatedQueue(fifo=True, content_deduplication=True, dead_letters=dead, max_receive_count=1)

    async def handle(message: Message) -> None:
        if message.body == "bad":
            with trio.CancelScope(shield=True):
                await trio.sleep(20)

    queue.put("bad", group_id="g")
    settings = {"SQS_WAIT_TIME_SECONDS": "1", "DRAIN_TIMEOUT": "3s"}
    async with SimulatedService(queue, handle, **settings) as service:
        await service.at_work("bad")
        service.maintenance("on")
        await service.drained()
        queue.put("good", group_id="g")
        service.maintenance("off")
        await service.idle()
        assert service.processed == ["good"]
    assert dead.bodies == ["bad"]


async def test_a_copy_that_landed_while_the_instance_closed_waited_for_a_dead_letter_without_an_answer(autojump_clock):
    # The first delivery is rejected at 0 and gets no answer until 10, its lease ends at 4. The second is received at 4, while the
    # instance is ending since 3.5: it was kept until its own lease ended.
    dead = SimulatedQueue("dead")
    faults = [Fault("timeout-before", "dead_letter", end=10)]
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=5, faults=faults)

    async def reject(message: Message) -> None:
        raise Reject

    queue.put("bad")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "4", "SQS_WAIT_TIME_SECONDS": "1"}
    async with trio.open_nursery() as nursery:
        service = SimulatedService(queue, reject, **settings)
        nursery.start_soon(service.run)
        await trio.sleep(3.5)
        nursery.cancel_scope.cancel(reason="second signal")
    assert [event.receive_count for event in queue.history if isinstance(event, Assigned)] == [1, 2]
    assert trio.current_time() <= 3.5 + LAST_RELEASE
    assert not queue.in_flight()


async def test_a_successor_that_was_held_with_a_lost_message_passed_it_when_the_drain_was_called_off(autojump_clock):
    # Of one receive of a group; the first could not be extended, the process stood still, and `off` came before its heartbeat.
    queue = SimulatedQueue(fifo=True)
    async with SimulatedService(queue) as service:
        await trio.sleep(1)
        worker = service.core.worker
        first, second = (Received(Message(f"m{n}", f"m{n}", group_id="g"), f"receipt {n}") for n in (1, 2))
        worker.enter()
        worker.deliveries.land([first, second], trio.current_time())
        assert worker.deliveries.held == 2
        (entry,) = (one for one in worker.ledger if one.delivery is second)
        entry.lease.until += 60
        autojump_clock.jump(31)
        worker.leave()
        await trio.sleep(0.1)
        assert service.runs == []
        service.crash()


@pytest.mark.expects_errors
async def test_a_copy_in_its_last_receive_was_not_named_when_it_landed_beside_a_stubborn_processor(autojump_clock):
    # The time for work is over, and the first delivery, whose receive was not the last, is not given back yet.
    queue = SimulatedQueue(dead_letters=SimulatedQueue("dead"), max_receive_count=2)

    async def stubborn(message: Message) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    message_id = queue.put("twice")
    async with SimulatedService(queue, stubborn, DRAIN_TIMEOUT="10s") as service:
        await trio.sleep(1)
        service.maintenance("on")
        await trio.sleep(9.2)
        copy = Received(Message(message_id, "twice", receive_count=2), "its receipt")
        service.core.worker.deliveries.land([copy], trio.current_time())
        report = await service.drained()
        assert report.handlers["sqs"]["stubborn"] == (message_id,)
        assert report.handlers["sqs"]["next_receive_dead_letters"] == (message_id,)
        service.crash()
