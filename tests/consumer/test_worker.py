"""The worker in virtual time: how it asks, how it keeps leases, how it settles; exact, and counted in SQS calls."""

import pytest
import trio
from structlog.testing import capture_logs

from svc import Message, Reject, Retry
from svc.consumer.queue import QueueTimeout
from svc.testing import Fault, ScriptedQueue, SimulatedQueue
from svc.testing.service import SimulatedService


def work(seconds: float):
    async def handle(message: Message) -> None:
        await trio.sleep(seconds)

    return handle


def landed(queue: SimulatedQueue) -> list[tuple[float, int]]:
    """When each receive landed, and how many messages it brought."""
    return [(event.at, len(event.message_ids)) for event in queue.history if type(event).__name__ == "ReceiveLanded"]


def begun(queue: SimulatedQueue) -> list[float]:
    return [event.at for event in queue.history if type(event).__name__ == "ReceiveBegan"]


# -- asking --


async def test_bytes_in_flight_are_bounded_and_do_not_slow_small_messages(autojump_clock) -> None:
    """100 messages of 1 MB, then 100 small ones, while 35 MiB may be in flight: that is three large receives at once, whatever
    is free of MAX_CONCURRENCY; the fourth may have been sent before the size of the first was known."""
    for body, most, seconds in (("x" * 1_000_000, 40_100_000, 4), ("x", 20_000, 2)):
        queue = SimulatedQueue()
        for _ in range(100):
            queue.put(body)
        peak = 0

        async def process(message: Message) -> None:
            nonlocal peak
            peak = max(peak, service.core.worker.ledger.bytes)
            await trio.sleep(1)

        async with SimulatedService(
            queue, process, MAX_CONCURRENCY="1000", MAX_IN_FLIGHT_BYTES=str(35 * 1024 * 1024)
        ) as service:
            began = trio.current_time()
            await service.idle()
            assert trio.current_time() - began <= seconds
        assert len(queue.deleted) == 100
        assert peak <= most


async def test_a_message_larger_than_the_bytes_that_may_be_in_flight_is_processed(autojump_clock) -> None:
    queue = SimulatedQueue()
    for _ in range(30):
        queue.put("x" * 500_000)
    async with SimulatedService(queue, work(1), MAX_IN_FLIGHT_BYTES="1048576") as service:
        await service.idle()
    assert len(queue.deleted) == 30


@pytest.mark.expects_errors
async def test_failed_messages_are_counted_and_leave_no_bytes_behind(autojump_clock) -> None:
    queue = SimulatedQueue()
    for _ in range(50):
        queue.put("x" * 500_000)

    async def fail(message: Message) -> None:
        raise ValueError("always")

    async with SimulatedService(queue, fail, BREAKER_FAILURES="off") as service:
        await trio.sleep(1)
        ledger = service.core.worker.ledger
        assert ledger.counts().failed == 50
        assert len(ledger.deferred(trio.current_time())) == ledger.deferred_count(trio.current_time()) == 50
        assert ledger.bytes == 0
        assert ledger.bytes == 0


async def test_an_idle_instance_makes_180_receives_an_hour(autojump_clock) -> None:
    queue = SimulatedQueue()
    async with SimulatedService(queue):
        await trio.sleep(3600 - 1)
        assert queue.calls["receive"] == 180
        assert queue.calls.total() - queue.calls["receive"] == queue.calls["attributes"] == 12


async def test_without_long_polling_there_is_a_pause_after_nothing(autojump_clock) -> None:
    queue = SimulatedQueue()
    async with SimulatedService(queue, SQS_WAIT_TIME_SECONDS="0", SQS_POLL_INTERVAL="2s"):
        await trio.sleep(7)
        assert begun(queue) == [0, 2, 4, 6]


async def test_the_wait_is_cut_to_fit_the_drain_and_the_lease(autojump_clock) -> None:
    for settings, wait in (
        ({}, 20),
        ({"DRAIN_TIMEOUT": "10s"}, 8),
        ({"DRAIN_TIMEOUT": "1s"}, 0),
        ({"SQS_VISIBILITY_TIMEOUT_SECONDS": "15"}, 10),
        ({"SQS_WAIT_TIME_SECONDS": "3"}, 3),
    ):
        queue = SimulatedQueue()
        async with SimulatedService(queue, **settings):
            await trio.sleep(0.5)
        (first, *_) = [event for event in queue.history if type(event).__name__ == "ReceiveBegan"]
        assert first.wait == wait, settings


async def test_a_receive_asks_for_no_more_than_there_is_room_for(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(30):
        queue.put(str(number))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(service.core.worker.ledger))
            await trio.sleep(0.01)

    async with SimulatedService(queue, work(1), MAX_CONCURRENCY="7") as service, trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await service.idle()
        nursery.cancel_scope.cancel()
    assert most == 7
    assert all(event.limit <= 7 for event in queue.history if type(event).__name__ == "ReceiveBegan")
    assert len(queue.deleted) == 30


@pytest.mark.parametrize("most", [1, 4, 10])
async def test_receivers_follow_the_load(autojump_clock, most: int) -> None:
    """One when there is little; one more for each receive that comes back full, up to the setting; one again afterwards."""
    queue = SimulatedQueue(request_seconds=(0.01, 0.01), answer_seconds=(0.01, 0.01))
    out = []
    async with SimulatedService(queue, work(0), SQS_MAX_RECEIVERS=str(most), MAX_CONCURRENCY="1000") as service:
        intake = service.core.worker.intake

        async def watch() -> None:
            while True:
                out.append(intake.outstanding)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(1)
            assert max(out) == 1
            for number in range(1000):
                queue.put(str(number))
            await service.idle()
            assert max(out) == most
            nursery.cancel_scope.cancel()
        await trio.sleep(21)  # the polls of the busy time land, within 20 s
        assert intake.outstanding == 1
    assert queue.calls["receive"] <= 100 + 2 * most + 3


async def test_a_full_queue_is_asked_for_full_batches_only(autojump_clock) -> None:
    """Places become free one by one, every 0.05 s or so: a receive waits until ten are, as long as that is few of all."""
    queue = SimulatedQueue()
    for number in range(1000):
        queue.put(str(number))

    async def handle(message: Message) -> None:
        await trio.sleep(2 + int(message.body) % 100 / 50)

    async with SimulatedService(queue, handle, MAX_CONCURRENCY="100") as service:
        await service.wait_for(lambda: len(queue.deleted) > 900)
    brought = [count for _, count in landed(queue)]
    assert sum(brought) / len(brought) > 9.5


async def test_a_trickle_costs_two_requests_for_each_message(autojump_clock) -> None:
    queue = SimulatedQueue(request_seconds=(0.005, 0.005), answer_seconds=(0.005, 0.005))
    async with SimulatedService(queue, work(0)) as service:
        for number in range(600):
            queue.put(str(number))
            await trio.sleep(1)
        await service.idle()
        assert queue.calls.total() / 600 <= 2.01


async def test_saturation_costs_a_fifth_of_a_request_for_each_message(autojump_clock) -> None:
    queue = SimulatedQueue(request_seconds=(0.001, 0.01), answer_seconds=(0.001, 0.01))
    for number in range(3000):
        queue.put(str(number))
    async with SimulatedService(queue, work(0), MAX_CONCURRENCY="200") as service:
        await service.idle()
        assert service.core.worker.settlement.left == {"size": 300, "time": 0, "flush": 0}
        assert (
            queue.calls.total() / 3000 <= 0.21
        )  # 300 receives, 300 deletes; and the last receives, which find nothing


async def test_errors_are_answered_with_growing_pauses_and_no_hot_loop(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "receive", start=0, end=60)])
    async with SimulatedService(queue) as service:
        await trio.sleep(59)
        assert service.core.worker.statistics().queue_error is not None
        assert 59 / 5 <= queue.calls["receive"] <= 59 / 2.5 + 4
        queue.put("after the trouble")
        await service.idle()
        assert trio.current_time() < 60 + 5 + 1
        assert service.core.worker.statistics().queue_error is None


# -- leases --


async def test_a_lease_is_extended_when_a_third_of_it_is_left(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("long")
    async with SimulatedService(queue, work(65), DRAIN_TIMEOUT="5m") as service:
        await service.idle()
        extensions = [event for event in queue.history if type(event).__name__ == "VisibilityChanged"]
        assert [(event.at, event.until) for event in extensions] == [(20, 50), (40, 70), (60, 90)]


async def test_what_is_finished_in_time_costs_no_extension(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(100):
        queue.put(str(number))
    async with SimulatedService(queue, work(19)) as service:
        await service.idle()
        assert queue.calls["change_visibility"] == 0


async def test_extensions_go_ten_at_a_time(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(40):
        queue.put(str(number))
    async with SimulatedService(queue, work(25)) as service:
        await service.idle()
        assert queue.calls["change_visibility"] == 4
    assert len(queue.deleted) == 40


async def test_heartbeats_look_at_what_is_due_and_leave_room_for_deletes(autojump_clock) -> None:
    queue = SimulatedQueue(request_seconds=(0.05, 0.05), answer_seconds=(0.05, 0.05))
    for number in range(600):
        queue.put(str(number))
    on_wire = most = 0
    async with SimulatedService(queue, work(35), MAX_CONCURRENCY="600") as service:
        heartbeat = service.core.worker.heartbeat
        looked_at = 0
        covers, send = heartbeat._covers, heartbeat._send

        def counted(entry) -> bool:
            nonlocal looked_at
            looked_at += 1
            return covers(entry)

        async def watched(*args) -> None:
            nonlocal on_wire, most
            on_wire += 1
            most = max(most, on_wire)
            await send(*args)
            on_wire -= 1

        heartbeat._covers, heartbeat._send = counted, watched
        await service.idle()
        assert queue.calls["change_visibility"] == 60
        assert most == 10
        # Each is looked at when it lands, when it is due and when its extension is confirmed; not at every look.
        assert looked_at <= 600 * 6
        assert heartbeat._groups == [] or sum(len(group) for _, _, group in heartbeat._groups) == 0


async def test_a_lost_lease_cancels_the_work_and_deletes_nothing(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("timeout-before", "change_visibility")])
    message_id = queue.put("long")
    async with SimulatedService(queue, work(100)) as service:
        await service.wait_for(lambda: bool(service.runs))
        assert trio.current_time() == pytest.approx(30, abs=0.02)
        assert isinstance(service.runs[0].error, trio.Cancelled)
        counts = service.core.worker.statistics().counts
        assert (counts.lost, counts.received) == (1, 1 + counts.in_flight)
        assert queue.deleted == []
        service.crash()
    assert queue.receive_count(message_id) >= 1


async def test_what_lands_after_its_lease_is_lost_and_not_given_back(autojump_clock) -> None:
    """By then somebody else may have it; SQS may take a release by the older receipt handle, and give it to a third."""
    queue = SimulatedQueue(answer_seconds=(3, 3))
    queue.put("late")
    async with SimulatedService(queue, work(0), SQS_VISIBILITY_TIMEOUT_SECONDS="2") as service:
        await service.wait_for(lambda: service.core.worker.statistics().counts.lost == 1, every=1)
        assert service.runs == []
        assert queue.calls["change_visibility"] == 0
        assert service.core.worker.statistics().recent_errors[0].error == "lost: its receive took longer than its lease"
        service.crash()


async def test_a_delete_that_is_confirmed_after_its_lease_is_told(autojump_clock) -> None:
    """Done is done; but an operator who finds it processed twice has to find out why."""
    queue = SimulatedQueue()
    message_id = queue.put("done")
    delete = queue.delete

    async def answered_late(receipts):
        refused = await delete(receipts)
        await trio.sleep(4)
        return refused

    queue.delete = answered_late
    with capture_logs() as lines:
        async with SimulatedService(queue, work(0), SQS_VISIBILITY_TIMEOUT_SECONDS="3") as service:
            await service.wait_for(lambda: service.processed == ["done"])
    told = [line["message_id"] for line in lines if line["event"].startswith("message deleted when its lease was over")]
    assert told == [message_id]


async def test_work_beyond_twelve_hours_loses_its_lease_then(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("for ever")
    async with SimulatedService(queue, work(1e6), SQS_VISIBILITY_TIMEOUT_SECONDS="3600") as service:
        await service.wait_for(lambda: bool(service.runs), every=30)
        assert service.runs[0].ended == pytest.approx(43_200, abs=2)
        service.crash()


# -- settlement --


async def test_deletes_go_ten_at_a_time_under_load(autojump_clock) -> None:
    queue = SimulatedQueue(request_seconds=(0.005, 0.005), answer_seconds=(0.005, 0.005))
    for number in range(1000):
        queue.put(str(number))
    async with SimulatedService(queue, work(0)) as service:
        await service.idle()
        assert queue.calls["delete"] == 100
        assert service.core.worker.settlement.left["size"] == 100
        assert queue.calls["receive"] <= 110


async def test_a_single_message_is_deleted_without_lingering(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("alone")
    async with SimulatedService(queue, work(1)) as service:
        await service.idle()
        (deleted,) = [event for event in queue.history if type(event).__name__ == "Deleted"]
        assert deleted.at == 1
        assert service.core.worker.settlement.left == {"size": 0, "time": 0, "flush": 1}


async def test_deletes_of_one_message_each_wait_for_each_other(autojump_clock) -> None:
    """Twenty messages a second, each done at once: the receives bring one each, and the deletes take what comes in 0.1 s."""
    queue = SimulatedQueue()
    async with SimulatedService(queue, work(0)) as service:
        for number in range(100):
            queue.put(str(number))
            await trio.sleep(0.05)
        await service.idle()
        assert queue.calls["receive"] == 101
        assert 33 <= queue.calls["delete"] <= 50
        left = service.core.worker.settlement.left
        assert left["time"] == queue.calls["delete"] - left["flush"]
        assert left["flush"] <= 1


async def test_no_settlement_waits_for_company_that_cannot_come(autojump_clock) -> None:
    """All five places are taken by messages that are done: no receive is out, and nobody can join."""
    queue = SimulatedQueue()
    for number in range(50):
        queue.put(str(number))
    async with SimulatedService(queue, work(0), MAX_CONCURRENCY="5") as service:
        await service.idle()
        assert trio.current_time() < 0.1
        assert service.core.worker.settlement.left == {"size": 0, "time": 0, "flush": 10}


@pytest.mark.parametrize("linger", ["0", "0.5", "5s"])
async def test_the_linger_is_a_setting_and_no_drain_waits_for_it(autojump_clock, linger: str) -> None:
    queue = SimulatedQueue()
    for body in ("2", "9"):
        queue.put(body)

    async def handle(message: Message) -> None:
        await trio.sleep(float(message.body))

    async with SimulatedService(queue, handle, SQS_BATCH_LINGER=linger, DRAIN_TIMEOUT="10s") as service:
        await trio.sleep(3)
        deleted = [event.at for event in queue.history if type(event).__name__ == "Deleted"]
        assert deleted == ([] if linger == "5s" else [2 + float(linger)])
        service.maintenance("on")
        await service.wait_for(lambda: len(queue.deleted) == 1)
        assert trio.current_time() == pytest.approx(3, abs=0.02)


async def test_no_linger_uses_up_a_lease(autojump_clock) -> None:
    """A quarter of what is left of the lease at most: (4 - 1) / 4 s."""
    queue = SimulatedQueue()
    for body in ("1", "9"):
        queue.put(body)

    async def handle(message: Message) -> None:
        await trio.sleep(float(message.body))

    async with SimulatedService(queue, handle, SQS_BATCH_LINGER="5s", SQS_VISIBILITY_TIMEOUT_SECONDS="4") as service:
        await service.wait_for(lambda: len(queue.deleted) == 1)
        assert trio.current_time() == pytest.approx(1.75, abs=0.02)


async def test_a_delete_lingers_for_company_while_others_are_at_work(autojump_clock) -> None:
    queue = SimulatedQueue()
    for body in ("1", "1.05", "5"):
        queue.put(body)

    async def handle(message: Message) -> None:
        await trio.sleep(float(message.body))

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        deleted = [event.at for event in queue.history if type(event).__name__ == "Deleted"]
        assert deleted == [pytest.approx(1.1), pytest.approx(1.1), pytest.approx(5)]
        assert service.core.worker.settlement.left == {"size": 0, "time": 1, "flush": 1}


async def test_partial_failures_are_tried_again_within_the_lease(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("partial", "delete", nth=1, entries=(0, 2))])
    for number in range(3):
        queue.put(str(number))
    async with SimulatedService(queue, work(1)) as service:
        await service.idle()
        assert queue.calls["delete"] == 2
        assert service.core.worker.statistics().counts.processed == 3
    assert len(service.runs) == 3


async def test_what_was_processed_but_not_deleted_is_deleted_when_it_comes_back(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "delete", start=0, end=31)])
    message_id = queue.put("once")
    async with SimulatedService(queue, work(1)) as service:
        await service.wait_for(lambda: queue.deleted == [message_id])
        counts = service.core.worker.statistics().counts
        assert len(service.runs) == 1
        assert counts.lost == 1


async def test_retry_makes_it_visible_then(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("later")

    async def handle(message: Message) -> None:
        if message.receive_count == 1:
            raise Retry(after=100)

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        # The change of visibility has waited for company first.
        assert [run.began for run in service.runs] == [0, pytest.approx(0.1 + 100)]
        counts = service.core.worker.statistics().counts
        assert (counts.released, counts.processed, counts.failed) == (1, 1, 0)


async def test_reject_goes_to_the_dead_letter_queue_with_its_reason(autojump_clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=5)
    queue.put("bad", attributes={"kind": "order"})

    async def handle(message: Message) -> None:
        async with trio.open_nursery() as nursery:  # as a processor with tasks of its own: Trio wraps what it raises
            nursery.start_soon(trio.sleep, 0.1)
            raise Reject("no such customer")

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert service.core.worker.statistics().counts.rejected == 1
    (letter,) = dead.visible()
    held = dict(dead.attributes_of(letter))
    assert held.pop("RejectedMessageId") not in ("", letter)
    assert held == {"kind": "order", "RejectReason": "no such customer"}


@pytest.mark.expects_errors
async def test_reject_without_a_dead_letter_queue_deletes_where_that_is_asked_for(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("bad")

    async def handle(message: Message) -> None:
        raise Reject("no")

    async with SimulatedService(queue, handle, REJECT_WITHOUT_DLQ="delete") as service:
        await service.idle()
    assert len(queue.deleted) == 1


@pytest.mark.expects_errors
@pytest.mark.parametrize(("backoff", "comes_back"), [("10s-10s", (5, 10)), ("off", (30, 30))])
@pytest.mark.parametrize("fifo", [False, True])
async def test_reject_without_a_dead_letter_queue_fails(
    autojump_clock, backoff: str, comes_back: tuple[int, int], fifo: bool
) -> None:
    """Nobody has asked for the message to be thrown away. It comes back after its back-off, and may be good by then."""
    queue = SimulatedQueue(fifo=fifo)
    queue.put("bad", **({"group_id": "g", "deduplication_id": "1"} if fifo else {}))
    receives = []

    async def handle(message: Message) -> None:
        receives.append(trio.current_time())
        if len(receives) == 1:
            raise Reject("no")

    async with SimulatedService(
        queue, handle, REJECT_WITHOUT_DLQ="fail", RETRY_BACKOFF=backoff, SQS_VISIBILITY_TIMEOUT_SECONDS=30
    ) as service:
        await service.idle()
        while len(receives) < 2:
            await trio.sleep(1)
        await service.idle()
        counts = service.core.worker.statistics().counts
    assert (counts.failed, counts.processed, counts.rejected) == (1, 1, 0)
    least, most = comes_back
    assert least <= receives[1] - receives[0] <= most + 1
    assert len(queue.deleted) == 1


@pytest.mark.expects_errors
@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(5), KeyboardInterrupt(), ExceptionGroup("g", [OSError()])]
)
async def test_no_exception_of_a_processor_harms_the_others(autojump_clock, error: BaseException) -> None:
    queue = SimulatedQueue()
    bad = queue.put("bad")
    good = [queue.put(str(number)) for number in range(5)]

    async def handle(message: Message) -> None:
        await trio.sleep(1)
        if message.body == "bad" and message.receive_count == 1:
            raise error

    async with SimulatedService(queue, handle) as service:
        await trio.sleep(2)
        assert sorted(queue.deleted) == sorted(good)
        assert queue.in_flight() == [bad]
        counts = service.core.worker.statistics().counts
        assert (counts.failed, counts.processed) == (1, 5)
        await service.idle()


# -- FIFO --


def fifo(count: int, groups: str = "ab") -> SimulatedQueue:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    for number in range(count):
        queue.put(f"{groups[number % len(groups)]}{number}", group_id=groups[number % len(groups)])
    return queue


async def test_groups_are_in_order_and_side_by_side(autojump_clock) -> None:
    queue = fifo(8)
    async with SimulatedService(queue, work(1)) as service:
        await service.idle()
        assert trio.current_time() == pytest.approx(4, abs=0.1)
    for group in "ab":
        bodies = [run.body for run in service.runs if run.group_id == group]
        assert bodies == sorted(bodies)


@pytest.mark.expects_errors
async def test_no_successor_passes_a_failed_message_of_its_group(autojump_clock) -> None:
    queue = fifo(6, groups="a")

    async def handle(message: Message) -> None:
        await trio.sleep(0.1)
        if message.body == "a2" and message.receive_count == 1:
            raise ValueError("once")

    async with SimulatedService(queue, handle) as service:
        await service.idle()
    assert [run.body for run in service.runs] == ["a0", "a1", "a2", "a2", "a3", "a4", "a5"]
    assert service.runs[3].began >= service.when("a2", "failed") + 2.5  # the back-off: 5 s, or half of it


# -- duplicates --


async def test_a_second_copy_of_what_is_being_worked_on_shares_its_fate(autojump_clock) -> None:
    queue = SimulatedQueue(duplicates=1.0)
    message_id = queue.put("twice")
    async with SimulatedService(queue, work(5)) as service:
        await service.idle()
        assert service.core.worker.statistics().counts.received > 1
    assert len(service.runs) == 1
    assert set(queue.deleted) == {message_id}


async def test_a_receive_that_lost_its_answer_strands_until_the_visibility_timeout(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("timeout-after", "receive", nth=1)])
    queue.put("lost on the way")
    with pytest.raises(QueueTimeout):
        await queue.receive(limit=1, wait=0, visibility=30)
    async with SimulatedService(queue) as service:
        await service.idle()
        assert service.runs[0].began == pytest.approx(30)


async def test_an_outage_of_deletes_costs_calls_by_time_and_not_by_message(autojump_clock) -> None:
    queue = ScriptedQueue()
    for number in range(100):
        queue.put(f"m{number}", delay=number // 10)  # ten a second
    queue.fail("delete", seconds=12)

    async def work(message: Message) -> None:
        await trio.sleep(0.05 * (int(message.body[1:]) % 10))  # each is finished at a moment of its own

    async with SimulatedService(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS="60") as service:
        await trio.sleep(12)
        # A try every 1 to 2 s, in batches of ten of what has come together: 10 messages a second, 12 s, tried 8 times or so.
        assert queue.calls["delete"] <= 90  # 197 if each batch kept a time of its own
        await service.wait_for(lambda: len(queue.deleted) == 100)
        assert trio.current_time() < 12 + 2 + 1
    assert {ending.outcome for ending in service.endings} == {"processed"}
