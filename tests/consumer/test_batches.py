"""Batches in virtual time: how they gather and leave, what becomes of each item, and a drain; on standard and FIFO queues."""

import pytest
import trio

from svc import Batch, Item, Message, Reject, Retry, processor
from svc.consumer.queue import QueueUnavailable
from svc.maintenance.handler import DrainOutcome
from svc.processors import UnusableProcessor
from svc.testing import Fault, ScriptedQueue, SimulatedQueue, SimulatedService


def calls(service: SimulatedService) -> list[tuple[float, str]]:
    """When the processor was called, and with what."""
    return [(run.began, " ".join(run.bodies)) for run in service.batches]


def sized(size: int, linger: float = 2.0, *, seconds: float = 0.0):  # type: ignore[no-untyped-def]
    @processor(batch=size, linger=linger)
    async def handle(batch: Batch) -> None:
        await trio.sleep(seconds)

    return handle


# -- how they gather and leave --


async def test_a_batch_of_25_gathers_three_receives_and_the_rest_leaves_by_time(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(30):
        queue.put(str(number))
    async with SimulatedService(queue, sized(25)) as service:
        await service.idle()
    assert [(run.began, len(run.bodies)) for run in service.batches] == [(0, 25), (2, 5)]
    assert sorted(map(int, service.batches[0].bodies + service.batches[1].bodies)) == list(range(30))
    assert len(service.processed) == 30
    assert queue.calls["delete"] == 4  # three of 25 messages, one of five


async def test_a_message_alone_waits_as_long_as_was_said(autojump_clock) -> None:
    queue = SimulatedQueue()
    async with SimulatedService(queue, sized(100, linger=1.5)) as service:
        await trio.sleep(1)
        queue.put("a")
        await trio.sleep(1)
        queue.put("b")
        await service.idle()
        assert calls(service) == [(2.5, "a b")]


async def test_every_place_taken_means_no_company(autojump_clock) -> None:
    """While a batch of six is at work, four places are left: nothing can come before it ends."""
    queue = SimulatedQueue()
    for number in range(6):
        queue.put(str(number))
    async with SimulatedService(queue, sized(10, linger=3, seconds=20), MAX_CONCURRENCY="10") as service:
        await service.at_work("0", seconds=1)
        for number in range(6, 12):
            queue.put(str(number))
        await service.idle()
    assert [(run.began, len(run.bodies)) for run in service.batches] == [(3, 6), (4, 4), (26.1, 2)]


async def test_places_are_counted_by_messages(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(40):
        queue.put(str(number))
    most = 0
    async with SimulatedService(queue, sized(10, seconds=5), MAX_CONCURRENCY="20") as service:
        while len(service.processed) < 40:
            most = max(most, len(service.core.worker.ledger))
            await trio.sleep(0.5)
    assert most == 20


async def test_what_waits_is_extended_as_what_is_worked_on(autojump_clock) -> None:
    """Batches leave before half of a lease is over; the work lasts for several leases."""
    queue = SimulatedQueue()
    queue.put("a")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "6", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, sized(10, linger=60, seconds=30), **settings) as service:
        await service.idle()
    assert calls(service) == [(3, "a")]
    assert service.processed == ["a"]
    assert queue.receive_count("simulated-1") == 1


async def test_a_batch_larger_than_the_places_ends_the_start(autojump_clock) -> None:
    with pytest.raises(UnusableProcessor, match="batch=11, but MAX_CONCURRENCY=10"):
        await SimulatedService(SimulatedQueue(), sized(11), MAX_CONCURRENCY="10").run()


@pytest.mark.parametrize("fifo", [False, True])
async def test_a_batch_does_not_begin_with_leases_that_are_over(autojump_clock, fifo: bool) -> None:
    """The first of three batches blocks the event loop for a minute; the two others were about to begin."""
    called: list[tuple[str, bool]] = []

    @processor(batch=1, linger=0)
    async def handle(batch: Batch) -> None:
        (body,) = (item.message.body for item in batch)
        (entry,) = (one for one in service.core.worker.ledger if one.message.body == body)
        called.append((body, entry.lease.until > trio.current_time()))
        if len(called) == 1:
            autojump_clock.jump(60)

    queue = SimulatedQueue(fifo=fifo)
    for body in "abc":
        queue.put(body, **({"group_id": body, "deduplication_id": body} if fifo else {}))
    async with SimulatedService(queue, handle, SQS_VISIBILITY_TIMEOUT_SECONDS="60") as service:
        await service.idle()
        assert sorted(body for body, _ in called) == ["a", "b", "c"]  # each once: the first is remembered as finished
        assert all(is_ours for _, is_ours in called)
        lost = {one.body for one in service.endings if one.outcome == "lost"}
        assert lost >= {"a", "b", "c"} - {called[0][0]}
        errors = [one.error for one in service.core.worker.statistics().recent_errors]
        assert errors.count("lost: its lease ran out before its turn came") == 2


# -- what becomes of each item --


@pytest.mark.expects_errors
async def test_each_item_has_what_was_said_of_it(autojump_clock) -> None:
    @processor(batch=10, linger=1)
    async def handle(batch: Batch[str]) -> None:
        if batch[0].message.receive_count > 1:
            return
        marks = {"retry": lambda item: item.retry(after=50), "reject": lambda item: item.reject("no good")}
        marks["fail"] = lambda item: item.fail(ValueError("broken"))
        marks["changed my mind"] = lambda item: (item.fail("x"), item.done())
        for item in batch:
            marks.get(item.payload, lambda item: None)(item)

    queue = ScriptedQueue()
    ids = queue.put_all("plain", "retry", "reject", "fail", "changed my mind")
    async with SimulatedService(queue, handle, RETRY_BACKOFF="off") as service:
        await service.wait_for(lambda: len(service.endings) == 5)
        assert service.processed == ["plain", "changed my mind"]
        assert (service.released, service.rejected, service.failed) == (["retry"], ["reject"], ["fail"])
        await service.idle()
        assert queue.dead_letters.attributes_of(queue.dead_letters.visible()[0])["RejectReason"] == "no good"
        assert service.when("retry", "received", nth=2) == 51
        assert sorted(service.processed) == ["changed my mind", "fail", "plain", "retry"]
        errors = {error.message_id: error.error for error in service.core.worker.statistics().recent_errors}
    assert errors[ids[3]] == "ValueError: broken"


@pytest.mark.expects_errors
@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (OSError("down"), "failed"),
        (Retry(after=30), "released"),
        (Reject("all bad"), "rejected"),
        (SystemExit(1), "failed"),
    ],
)
async def test_what_it_raises_is_of_those_that_are_not_marked(autojump_clock, error: BaseException, ends: str) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        if batch[0].message.receive_count == 1:
            batch[0].done()
            batch[1].retry(after=100)
            raise error

    queue = ScriptedQueue()
    queue.put_all("done", "retry", "x", "y")
    async with SimulatedService(queue, handle) as service:
        assert await service.outcome("done") == "processed"
        assert [await service.outcome(body) for body in ("retry", "x", "y")] == ["released", ends, ends]
        await service.idle()
    assert len(service.processed) + len(service.rejected) == 4


@pytest.mark.expects_errors
async def test_a_list_that_is_returned_is_no_way_to_say_it(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> object:
        return {"batchItemFailures": []} if batch[0].message.receive_count == 1 else None

    queue = ScriptedQueue()
    queue.put("x")
    async with SimulatedService(queue, handle) as service:
        assert await service.outcome("x") == "failed"
        await service.idle()
    assert service.processed == ["x"]


async def test_what_cannot_be_read_is_rejected_alone(autojump_clock) -> None:
    @processor(batch=3, linger=5)
    async def handle(batch: Batch[dict[str, int]]) -> None:
        assert all("id" in item.payload for item in batch)

    queue = ScriptedQueue()
    queue.put_all({"id": 1}, "no json", {"id": "no number"}, {"id": 2}, {"id": 3})
    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert calls(service) == [(0, '{"id": 1} {"id": 2} {"id": 3}')]
        assert sorted(service.rejected) == ["no json", '{"id": "no number"}']
        dead = queue.dead_letters
        reasons = [str(dead.attributes_of(one)["RejectReason"]) for one in dead.visible()]
    assert all("not a valid" in reason for reason in reasons)


@pytest.mark.expects_errors
async def test_what_cannot_be_read_may_fail_alone(autojump_clock) -> None:
    @processor(batch=3, linger=1, invalid="fail")
    async def handle(batch: Batch[int]) -> None: ...

    queue = ScriptedQueue(max_receive_count=2)
    queue.put_all("1", "x")
    async with SimulatedService(queue, handle, RETRY_BACKOFF="off") as service:
        await service.wait_for(lambda: bool(queue.dead_letters.bodies), every=1)
        assert (service.processed, service.failed) == (["1"], ["x", "x"])


async def test_a_duplicate_waits_and_shares_the_fate(autojump_clock) -> None:
    queue = SimulatedQueue(duplicates=1.0)
    queue.put("a")
    queue.put("b")
    async with SimulatedService(queue, sized(10, linger=1, seconds=1)) as service:
        await service.wait_for(lambda: len(queue.deleted) == 2 and not service.core.worker.ledger)
        assert calls(service) == [(1, "a b")]
        assert service.core.worker.ledger.counts().received > 2
        await service.stop()


# -- lost leases --


async def test_a_lost_lease_is_its_items_own(autojump_clock) -> None:
    seen: list[tuple[str, bool]] = []

    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        await trio.sleep(60 if batch[0].message.receive_count == 1 else 0)
        seen.extend((item.payload, item.lost) for item in batch)

    queue = ScriptedQueue()
    queue.put_all("a", "b")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work("a", seconds=1)
        queue.let_lease_run_out("a")
        assert await service.outcome("a") == "lost"
        assert await service.outcome("b") == "processed"
        await service.idle()
    assert seen == [("a", True), ("b", False)]
    assert service.processed.count("b") == 1
    # The function returned: a was finished, though it could not be deleted then. It is not run again.
    assert [run.bodies for run in service.batches] == [("a", "b")]


async def test_the_work_is_cancelled_when_all_leases_are_lost(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        await trio.sleep(300 if batch[0].message.receive_count == 1 else 0)

    queue = ScriptedQueue()
    queue.put_all("a", "b")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("a", seconds=1)
        queue.let_lease_run_out("a")
        queue.let_lease_run_out("b")
        assert await service.outcome("b") == "lost"
        await service.idle()
    first, *_ = service.batches
    assert isinstance(first.error, trio.Cancelled)
    assert first.ended < 60
    assert sorted(service.processed) == ["a", "b"]


# -- a drain --


async def test_a_drain_sends_off_what_has_gathered_and_waits_for_it(autojump_clock) -> None:
    queue = SimulatedQueue()
    for number in range(3):
        queue.put(str(number))
    async with SimulatedService(queue, sized(100, linger=60, seconds=2), DRAIN_TIMEOUT="30s") as service:
        await service.wait_for(lambda: len(service.core.worker.ledger) == 3)
        await trio.sleep(5)
        service.maintenance("on")
        report = await service.drained()
        assert calls(service) == [(5, "0 1 2")]
        assert (report.outcome, service.processed) == (DrainOutcome.DRAINED, ["0", "1", "2"])


@pytest.mark.expects_errors
async def test_the_deadline_gives_back_what_is_not_marked(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        batch[0].done()
        batch[1].reject("bad")
        await trio.sleep(100)

    queue = ScriptedQueue()
    queue.put_all("done", "bad", "x", "y")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work("x", seconds=1)
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.EXPIRED
        assert (service.processed, service.rejected, service.released) == (["done"], ["bad"], ["x", "y"])
        assert report.ended == 10
        assert len(queue.visible()) == 2


@pytest.mark.expects_errors
async def test_a_batch_that_ignores_its_cancellation_is_outlived(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    queue = SimulatedQueue()
    queue.put("a")
    queue.put("b")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work("a", seconds=1)
        service.maintenance("on")
        report = await service.drained()
        figures = report.handlers["sqs"] if hasattr(report, "handlers") else service.core.worker.tally.so_far()
        assert service.released == ["a", "b"]
        assert set(service.core.worker.tally.so_far().stubborn) == {"simulated-1", "simulated-2"}
        assert figures is not None
        await service.wait_for(lambda: len(service.batches) == 1, every=1)


async def test_a_drain_that_is_called_off_changes_nothing(autojump_clock) -> None:
    queue = SimulatedQueue()
    queue.put("a")
    async with SimulatedService(queue, sized(10, linger=4, seconds=5)) as service:
        await service.at_work("a", seconds=1)
        service.maintenance("on")
        await trio.sleep(1)
        service.maintenance("off")
        await service.outcome("a")
        queue.put("b")
        await service.idle()
    assert [run.began - sent for run, sent in zip(service.batches, (0, 9), strict=True)] == [4, 4]
    assert service.processed == ["a", "b"]


@pytest.mark.parametrize("linger", [0, 60])
async def test_a_second_signal_gives_back_what_waits_and_what_is_at_work(autojump_clock, linger: float) -> None:
    queue = SimulatedQueue()
    queue.put("a")
    service = SimulatedService(queue, sized(10, linger=linger, seconds=100))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await service.wait_for(lambda: len(service.core.worker.ledger) == 1)
            await trio.sleep(3)
            scope.cancel()
    assert service.released[0] == "a"
    assert trio.current_time() < 3.5
    assert queue.visible() == ["simulated-1"]


async def test_a_second_signal_keeps_what_was_marked(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        batch[0].done()
        await trio.sleep(100)

    queue = SimulatedQueue()
    queue.put("done")
    queue.put("x")
    service = SimulatedService(queue, handle)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await service.at_work("x", seconds=3)
            scope.cancel()
    assert service.processed == ["done"]
    assert service.released[0] == "x"


# -- FIFO --


def in_groups(queue: SimulatedQueue, *bodies: str) -> None:
    for body in bodies:
        queue.put(body, group_id=body[0], deduplication_id=body)


async def test_groups_share_a_batch_each_in_its_order(autojump_clock) -> None:
    queue = SimulatedQueue(fifo=True)
    in_groups(queue, "a1", "b1", "a2", "c1", "b2", "a3")
    async with SimulatedService(queue, sized(10, linger=1, seconds=1)) as service:
        await service.idle()
    assert len(service.batches) == 1
    groups = " ".join(service.batches[0].bodies)
    assert all(part in groups for part in ("a1 a2 a3", "b1 b2", "c1"))
    assert len(service.processed) == 6


async def test_a_group_larger_than_a_batch_goes_in_order(autojump_clock) -> None:
    queue = SimulatedQueue(fifo=True)
    in_groups(queue, *(f"a{number}" for number in range(8)), "b0")
    async with SimulatedService(queue, sized(3, linger=5, seconds=1)) as service:
        await service.idle()
    assert [body for _, bodies in calls(service) for body in bodies.split() if body[0] == "a"] == [
        f"a{number}" for number in range(8)
    ]
    assert [run.bodies[0] for run in service.batches if run.bodies[0][0] == "a"] == ["a0", "a3", "a6"]


@pytest.mark.expects_errors
@pytest.mark.parametrize("what", ["fail", "retry"])
async def test_after_the_first_that_is_not_done_the_rest_of_its_group_goes_back(autojump_clock, what: str) -> None:
    @processor(batch=10, linger=1)
    async def handle(batch: Batch[str]) -> None:
        for item in batch:
            if item.payload == "a2" and item.message.receive_count == 1:
                item.fail(OSError("no")) if what == "fail" else item.retry(after=20)

    queue = SimulatedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3", "a4", "b1", "b2")
    async with SimulatedService(queue, handle, RETRY_BACKOFF="20s") as service:
        await service.outcome("a4")
        assert sorted(service.processed) == ["a1", "b1", "b2"]
        assert service.released[-2:] == ["a3", "a4"]
        await service.idle()
    runs = [body for _, bodies in calls(service) for body in bodies.split() if body[0] == "a"]
    assert runs[:4] == ["a1", "a2", "a3", "a4"]
    assert runs[4:] == ["a2", "a3", "a4"]
    assert service.processed[3:] == ["a2", "a3", "a4"]


async def test_a_rejected_one_leaves_the_queue_before_those_behind_it_are_settled(autojump_clock) -> None:
    @processor(batch=10, linger=1)
    async def handle(batch: Batch[str]) -> None:
        batch[1].reject("bad")

    queue = ScriptedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3", "a4")
    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert (service.processed, service.rejected) == (["a1", "a3", "a4"], ["a2"])
        assert [body for _, body in calls(service)] == ["a1 a2 a3 a4"]
        deletes = [queue._server.deleted[one].body for one in queue.deleted]
    assert deletes == ["a1", "a2", "a3", "a4"]


@pytest.mark.expects_errors
async def test_a_rejected_one_that_stays_lets_none_behind_it_pass(autojump_clock) -> None:
    """The queue takes no dead letter until the lease is over."""

    @processor(batch=10, linger=1)
    async def handle(batch: Batch[str]) -> None:
        for item in batch:
            if item.payload == "a2":
                item.reject("bad")

    queue = ScriptedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3")
    queue.fail("dead_letter", seconds=40)
    async with SimulatedService(queue, handle) as service:
        await service.idle()
    order = [(ending.body, ending.outcome) for ending in service.endings]
    assert order.index(("a2", "rejected")) < order.index(("a3", "processed"))
    assert ("a2", "lost") in order or ("a2", "failed") in order
    assert ("a3", "released") in order


async def test_what_cannot_be_read_has_its_turn_too(autojump_clock) -> None:
    @processor(batch=10, linger=1)
    async def handle(batch: Batch[int]) -> None:
        await trio.sleep(1)

    queue = ScriptedQueue(fifo=True)
    for body in ("1", "bad", "3", "4"):
        queue.put(body, group_id="a", deduplication_id=body)
    async with SimulatedService(queue, handle) as service:
        await service.idle()
    assert [run.bodies for run in service.batches] == [("1",), ("3", "4")]
    order = [ending.body for ending in service.endings]
    assert order == ["1", "bad", "3", "4"]
    assert service.rejected == ["bad"]


@pytest.mark.expects_errors
async def test_a_drain_deadline_in_a_group(autojump_clock) -> None:
    @processor(batch=2, linger=0)
    async def handle(batch: Batch[str]) -> None:
        batch[0].done()
        await trio.sleep(100)

    queue = SimulatedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3", "a4")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work("a1", seconds=1)
        service.maintenance("on")
        report = await service.drained()
        assert service.processed == ["a1"]
        assert sorted(service.released) == ["a2", "a3", "a4"]
        assert report.ended == 10
        assert not queue.in_flight()


async def test_a_lost_item_stops_its_group_and_no_other(autojump_clock) -> None:
    @processor(batch=10, linger=1)
    async def handle(batch: Batch[str]) -> None:
        await trio.sleep(60 if batch[0].message.receive_count == 1 else 0)

    queue = ScriptedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3", "b1")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("a2", seconds=1)
        queue.let_lease_run_out("a2")
        assert await service.outcome("a2") == "lost"
        assert await service.outcome("a3") == "released"
        assert await service.outcome("b1") == "processed"
        await service.idle()
    assert sorted(service.processed[:2]) == ["a1", "b1"]
    assert {"a2", "a3"} <= set(service.processed)


@pytest.mark.expects_errors
async def test_what_comes_back_beside_its_batch_begins_when_that_has_ended(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch[str]) -> None:
        if batch[0].message.receive_count == 1:
            await trio.sleep(60)
            for item in batch:
                item.fail("not yet")

    queue = ScriptedQueue()
    queue.put_all("a", "b")
    async with SimulatedService(queue, handle) as service:
        await service.at_work("a", seconds=1)
        queue.let_lease_run_out("a")
        assert await service.outcome("a") == "lost"
        with trio.move_on_after(1000):
            await service.idle()
        assert not service.core.worker.ledger
    assert sorted(service.processed) == ["a", "b"]
    assert calls(service)[:2] == [(0, "a b"), (60, "a")]


# -- the parts fail --


async def test_receives_that_fail_hold_nothing_up(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("error", "receive", nth=1), Fault("error-after", "delete", nth=1)])
    for number in range(12):
        queue.put(str(number))
    async with SimulatedService(queue, sized(6, linger=1)) as service:
        await service.idle()
    assert len(service.processed) == 12
    assert QueueUnavailable  # told in the log


def test_an_item_says_what_it_is_and_takes_no_nonsense() -> None:
    item = Item({"id": 1}, Message("m-1", "{}"))
    assert repr(item) == "<Item m-1>"
    with pytest.raises(TypeError, match="an exception, or a text"):
        item.fail(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="43200"):
        item.retry(after=-1)
    batch = Batch([item])
    assert (len(batch), batch[0], list(batch[:1]), batch.payloads) == (1, item, [item], [{"id": 1}])
    assert not batch.shutting_down.is_set()
