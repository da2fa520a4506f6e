"""Where batches meet what goes wrong beside them, in virtual time: copies, threads, sleep, second signals, defects of our own;
what is told of a call; and that nothing of it is kept afterwards."""

import gc
import json

import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from svc import Batch, Message, processor
from svc.consumer.ledger import Entry
from svc.consumer.observer import BatchReason, Unobserved
from svc.consumer.queue import Received
from svc.core import Core
from svc.defects import Defects
from svc.maintenance.handler import DrainOutcome
from svc.processors.threads import ThreadRun
from svc.testing import ScriptedQueue, SimulatedQueue, SimulatedService
from tests.consumer.test_batches import calls, in_groups, sized


def ends(service: SimulatedService) -> list[tuple[float, str, str]]:
    return [(ending.at, ending.body, ending.outcome) for ending in service.endings]


async def visible_now(queue: SimulatedQueue, service: SimulatedService, *bodies: str) -> None:
    """As by an old receipt, or by somebody with a console."""
    receipts = [entry.delivery.receipt for entry in service.core.worker.ledger if entry.message.body in bodies]
    assert not await queue.change_visibility(dict.fromkeys(receipts, 0))


async def cut(service: SimulatedService, body: str, at: float) -> None:
    """Run it; when the processor has been at work on this message, a second signal comes at that time."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await service.at_work(body)
            await trio.sleep_until(at)
            scope.cancel()


# -- while they wait --


async def test_deletes_on_the_wire_take_places_and_company_may_come_all_the_same(autojump_clock) -> None:
    queue = ScriptedQueue()
    for number in range(6):
        queue.put(str(number))
    queue.fail("delete", "delay", delay=5, seconds=1)
    async with SimulatedService(queue, sized(6, linger=3), MAX_CONCURRENCY="10") as service:
        await trio.sleep(1)
        for number in range(6, 10):
            queue.put(str(number))
        await service.wait_for(lambda: len(service.core.worker.ledger) == 10)
        landed = trio.current_time()
        await service.idle()
    assert [(run.began, len(run.bodies)) for run in service.batches] == [(0, 6), (landed + 3, 4)]


async def test_a_group_whose_portion_is_lost_while_it_waits_goes_on_at_once(autojump_clock) -> None:
    queue = SimulatedQueue(fifo=True)
    in_groups(queue, "a1")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "60", "SQS_WAIT_TIME_SECONDS": "1"}
    async with SimulatedService(queue, sized(10, linger=10), **settings) as service:
        await trio.sleep(1.5)
        (receipt,) = (entry.delivery.receipt for entry in service.core.worker.ledger)
        service.core.worker.slept(70)
        assert service.lost == ["a1"]
        await trio.sleep(2)  # a receive that was out while it slept brings nothing
        await queue.change_visibility({receipt: 0})
        await service.idle()
    assert service.processed == ["a1"]
    assert calls(service) == [(service.when("a1", "received", nth=2) + 10, "a1")]


async def test_what_holds_nothing_is_deleted_without_a_call(autojump_clock) -> None:
    """Alone, and in the turn of its group."""

    @processor(batch=10, linger=1, envelope="s3")
    async def handle(batch: Batch) -> None: ...

    body = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026-01-01T00:00:00Z", "Bucket": "b"})
    for fifo in (False, True):
        queue, began = ScriptedQueue(fifo=fifo), trio.current_time()
        queue.put_all(body, body, group_id="a" if fifo else None)
        async with SimulatedService(queue, handle) as service:
            await service.wait_for(lambda service=service: len(service.processed) == 2)  # type: ignore[misc]
            assert trio.current_time() < began + 1  # nor does it wait for company
            assert service.batches == []
            service.core.manager.stop()


async def test_a_copy_is_not_in_the_batch_of_its_first(autojump_clock) -> None:
    """The deletes of x and y act, and their answers are lost: until they are confirmed z waits, and comes once more."""

    @processor(batch=2, linger=0)
    async def handle(batch: Batch) -> None:
        await trio.sleep(10 if len(batch) == 2 else 0)

    queue = ScriptedQueue(fifo=True)
    for body in "xyz":
        queue.put(body, group_id="a")
    queue.fail("delete", "timeout-after", seconds=11)
    async with SimulatedService(queue, handle) as service:
        await service.at_work("y", seconds=1)
        await visible_now(queue, service, "z")
        await service.wait_for(
            lambda: sum(entry.message.body == "z" for entry in service.core.worker.ledger) == 2, every=1
        )
        assert len(service.batches) == 1
        await service.idle()
    assert [run.bodies for run in service.batches] == [("x", "y"), ("z",)]


@pytest.mark.expects_errors
async def test_what_a_thread_has_still_does_not_begin_beside_it(autojump_clock) -> None:
    queue = ScriptedQueue(fifo=True, max_receive_count=1)  # so that it waits instead of being put off
    ids = {body: queue.put(body, group_id="a") for body in ("a1", "a2", "a3")}
    service = SimulatedService(queue, sized(10, linger=0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await service.wait_for(lambda: service._core is not None)
        threads = service.core.worker.threads
        thread = ThreadRun(threads, ids["a2"])
        await threads.acquire(thread)
        threads.leave_behind(thread)
        await service.outcome("a1")
        await trio.sleep_until(20)
        assert calls(service) == [(0, "a1")]
        threads.end(thread)
        await service.idle()
        await service.stop()
    assert calls(service) == [(0, "a1"), (20, "a2 a3")]


# -- the call, and what is told of it --


class Looking(Unobserved):
    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def batch_begins(self, messages: int, reason: BatchReason) -> None:
        self.seen.append(("batch", messages, reason))

    def begins(self, entry: Entry) -> None:
        self.seen.append(("begins", entry.message.body, entry.began_at))

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        self.seen.append(("worked", entry.message.body, error if error is None else repr(error)))


@pytest.mark.expects_errors
async def test_a_call_is_told_with_its_size_its_reason_and_each_end(autojump_clock) -> None:
    @processor(batch=3, linger=2)
    async def handle(batch: Batch) -> None:
        if len(batch) == 3:
            batch[0].done()
            batch[1].fail(ValueError("b"))
            raise OSError("c")

    looking = Looking()
    queue = ScriptedQueue()
    queue.put_all("a", "b", "c", "d")
    make_core = lambda *args, **options: Core(*args, **options, observer=looking)  # noqa: E731
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with SimulatedService(queue, handle, make_core=make_core, RETRY_BACKOFF="off") as service:
            await service.outcome("d")
    assert looking.seen[:10] == [
        ("batch", 3, "size"),
        ("begins", "c", 0),
        ("begins", "b", 0),
        ("begins", "a", 0),
        ("worked", "a", None),
        ("worked", "b", "ValueError('b')"),
        ("worked", "c", "OSError('c')"),
        ("batch", 1, "time"),
        ("begins", "d", 2),
        ("worked", "d", None),
    ]
    failed = [line["message_id"] for line in lines if line["event"] == "message failed"]
    assert failed == [queue.id_of("b"), queue.id_of("c")]


@pytest.mark.expects_errors
async def test_a_defect_in_what_follows_a_call_costs_its_message_alone(autojump_clock) -> None:
    defects = Defects()

    def make(*args, **options) -> Core:  # type: ignore[no-untyped-def]
        core = Core(*args, **options, defects=defects)
        conclude = core.worker.fates.conclude

        def breaks(entry: Entry, error: BaseException | None, *, cancelled: bool) -> None:
            if entry.message.body == "b" and entry.message.receive_count == 1:
                raise LookupError("found by nobody")
            conclude(entry, error, cancelled=cancelled)

        core.worker.fates.conclude = breaks  # type: ignore[method-assign]
        return core

    queue = ScriptedQueue()
    queue.put_all("a", "b", "c")
    with capture_logs() as lines:
        async with SimulatedService(queue, sized(10, linger=1), make_core=make) as service:
            assert await service.outcome("b") == "failed"
            assert [one.error for one in service.core.worker.statistics().recent_errors] == [
                "LookupError: found by nobody"
            ]
            await service.idle()
    assert sorted(service.processed) == ["a", "b", "c"]
    assert {part: number for part, number in defects.counts.items() if number} == {"message": 1}
    (told,) = (line for line in lines if line["event"].startswith("internal error"))
    assert isinstance(told["exc_info"], LookupError)


# -- its end is brought about from outside --


@pytest.mark.expects_errors
async def test_what_breaks_while_it_is_cancelled_by_us_goes_back(autojump_clock) -> None:
    async def breaks_at_its_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("while closing")

    @processor(batch=10, linger=0)
    async def handle(batch: Batch) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaks_at_its_end)
            await trio.sleep_forever()

    queue = ScriptedQueue()
    queue.put("a")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="10s") as service:
        await service.at_work("a", seconds=1)
        service.maintenance("on")
        await service.drained()
        assert service.released == ["a"]


@pytest.mark.expects_errors
async def test_who_waits_for_the_end_of_a_call_whose_messages_are_lost_is_told_of_it(autojump_clock) -> None:
    reasons: list[str | None] = []

    @processor(batch=10, linger=0)
    async def handle(batch: Batch) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            with trio.CancelScope(shield=True):
                await trio.sleep_until(50)
            raise

    queue = ScriptedQueue()
    queue.put("a")
    settings = {"SQS_VISIBILITY_TIMEOUT_SECONDS": "30", "DRAIN_TIMEOUT": "100s"}
    async with SimulatedService(queue, handle, **settings) as service:
        await service.at_work("a", seconds=1)
        queue.let_lease_run_out("a")
        service.maintenance("on")
        report = await service.drained()
        assert (report.outcome, report.ended) == (DrainOutcome.EXPIRED, 50)
        assert reasons == ["all leases lost"]


@pytest.mark.expects_errors
async def test_at_the_end_of_the_time_what_is_done_behind_what_stays_goes_back_first(autojump_clock) -> None:
    """a1 cannot be dead-lettered; a2 is done, and its turn has not come. Nothing of it is at work: it is not waited for."""

    @processor(batch=10, linger=0)
    async def handle(batch: Batch) -> None:
        batch[0].reject("bad")

    queue = ScriptedQueue(fifo=True)
    in_groups(queue, "a1", "a2")
    queue.fail("dead_letter", seconds=100)
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="20s") as service:
        await service.wait_for(lambda: len(service.batches) == 1)
        service.maintenance("on")
        report = await service.drained()
        assert report.ended is not None
        assert service.when("a2", "released") == 18
        queue.fail("receive", seconds=1e9)


@pytest.mark.expects_errors
async def test_after_a_second_signal_each_of_a_group_ends_as_the_call_does(autojump_clock) -> None:
    """The call goes on for half a second: it is waited for; what was not begun goes back at once, and what is behind one that has
    failed as soon as that is known."""

    @processor(batch=3, linger=0)
    async def handle(batch: Batch) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_until(3.5)
        batch[0].done()
        batch[1].fail("no")
        batch[2].done()

    queue = SimulatedQueue(fifo=True)
    in_groups(queue, "a1", "a2", "a3", "a4")
    service = SimulatedService(queue, handle, RETRY_BACKOFF="off")
    await cut(service, "a3", 3)
    assert sorted((round(at, 1), body, outcome) for at, body, outcome in ends(service)) == [
        (3, "a4", "released"),
        (3.5, "a1", "processed"),
        (3.5, "a2", "failed"),
        (3.5, "a3", "released"),
    ]


@pytest.mark.expects_errors
async def test_a_second_signal_gives_back_what_waits_behind_a_call_that_goes_on(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_until(40.8)

    queue = ScriptedQueue()
    queue.put("a")
    service = SimulatedService(queue, handle, SQS_VISIBILITY_TIMEOUT_SECONDS="30")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await service.at_work("a", seconds=1)
            queue.let_lease_run_out("a")
            assert await service.outcome("a") == "lost"
            await trio.sleep_until(40)
            assert [entry.message.body for entry in service.core.worker.ledger] == ["a"]
            scope.cancel()
    assert ends(service)[0] == (30, "a", "lost")
    assert service.when("a", "released") == pytest.approx(40, abs=0.2)


async def test_a_second_signal_in_the_moment_of_a_landing_gives_back_at_once(autojump_clock) -> None:
    """The group's task has not had its first step, and whoever would call the processor has ended before it."""
    service = SimulatedService(SimulatedQueue(fifo=True), sized(3, linger=60))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            await trio.sleep_until(3)
            landed = [Received(Message(body, body, group_id="a"), f"receipt of {body}") for body in ("a1", "a2")]
            service.core.worker.deliveries.land(landed, trio.current_time())
            scope.cancel()
    # Both are asked to go back at once; the queue does not know these receipts.
    assert [(round(at, 3), outcome) for at, _, outcome in ends(service)] == [(3, "lost"), (3, "lost")]
    assert service.batches == []


# -- FIFO: what follows one that stays --


@pytest.mark.expects_errors
@pytest.mark.parametrize("first", ["delete", "change_visibility"])
async def test_what_was_not_begun_goes_back_when_no_receive_brings_it_in_vain(autojump_clock, first: str) -> None:
    """a2 is visible again after 5 s, and a receive that is out until 20 would bring it together with what is behind it. The
    delete of a1 and the failure of a2 are confirmed in either order."""

    @processor(batch=2, linger=0)
    async def handle(batch: Batch) -> None:
        for item in batch:
            if item.message.body == "a2" and item.message.receive_count == 1:
                item.fail("no")

    queue = ScriptedQueue(fifo=True)
    later = {"delete": "change_visibility", "change_visibility": "delete"}[first]
    queue.fail(later, "delay", delay=0.5)  # type: ignore[arg-type]
    in_groups(queue, "a1", "a2", "a3", "a4")
    async with SimulatedService(queue, handle, RETRY_BACKOFF="5s") as service:
        await service.outcome("a4")
        assert service.when("a3", "released") > 15
        await service.idle()


@pytest.mark.expects_errors
async def test_nothing_is_kept_of_a_group_that_was_given_back(autojump_clock) -> None:
    @processor(batch=10, linger=0)
    async def handle(batch: Batch) -> None:
        if batch[0].message.receive_count == 1:
            batch[0].fail("no")

    queue = ScriptedQueue(fifo=True)
    queue.put_all("first", "behind it", group_id="looked for when it is over")
    async with SimulatedService(queue, handle, RETRY_BACKOFF="5s") as service:
        assert await service.outcome("behind it") == "released"
        await service.idle()
        assert service.processed == ["first", "behind it"]
        await trio.testing.wait_all_tasks_blocked()  # the group's task, too, has seen that it is over
        gc.collect()
        held = [one.message for one in gc.get_objects() if isinstance(one, Entry)]
        assert [one.body for one in held if one.group_id == "looked for when it is over"] == []


@pytest.mark.expects_errors
async def test_what_was_done_behind_one_that_was_not_is_done_again_after_a_drain_gave_up_too(autojump_clock) -> None:
    """The processor ignores its cancellation, and ends when all three have gone back: x is finished, and z comes after y."""
    begun: list[tuple[str, ...]] = []

    @processor(batch=3, linger=0)
    async def handle(batch: Batch) -> None:
        begun.append(tuple(item.payload.body for item in batch))
        if len(begun) == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            batch[1].retry()

    queue = ScriptedQueue(fifo=True)
    for body in "xyz":
        queue.put(body, group_id="a")
    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="1s") as service:
        await service.at_work("z")
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.EXPIRED
        await trio.sleep(3)
        service.maintenance("off")
        await service.idle()
    assert begun == [("x", "y", "z"), ("y", "z")]
    assert queue.bodies == []
