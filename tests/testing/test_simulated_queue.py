"""The simulated queue and switch in virtual time: exact moments, and what no real endpoint can be made to do on
demand."""

import random

import pytest
import trio
import trio.testing

from svc.consumer.queue import (
    MessageRefused,
    MessageTooLong,
    QueueError,
    QueueMisconfigured,
    QueueTimeout,
    QueueUnavailable,
    Received,
)
from svc.testing import (
    Call,
    Fault,
    Notice,
    Outage,
    SimulatedQueue,
    SimulatedSwitch,
    history,
    random_faults,
)

Clock = trio.testing.MockClock


async def receive(queue: SimulatedQueue, limit: int = 10, wait: int = 0, visibility: int = 30) -> list[Received]:
    return list(await queue.receive(limit=limit, wait=wait, visibility=visibility))


def events(queue: SimulatedQueue, kind: type[history.Event]) -> list[history.Event]:
    return [event for event in queue.history if isinstance(event, kind)]


# Long polls


async def test_a_long_poll_on_an_empty_queue_lasts_exactly_its_wait(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    began = trio.current_time()
    assert await receive(queue, wait=20) == []
    assert trio.current_time() - began == 20


@pytest.mark.parametrize("how", ["put", "send", "lease over", "given back", "delay over"])
async def test_a_long_poll_answers_the_moment_a_message_comes(
    autojump_clock: Clock, how: str, nursery: trio.Nursery
) -> None:
    queue = SimulatedQueue()
    if how in ("lease over", "given back"):
        queue.put("x")
        [held] = await receive(queue, visibility=7 if how == "lease over" else 30)
    elif how == "delay over":
        queue.put("x", delay=7)

    async def after_seven_seconds() -> None:
        await trio.sleep(7)
        if how == "put":
            queue.put("x")
        elif how == "send":
            await queue.send("x")
        elif how == "given back":
            await queue.change_visibility({held.receipt: 0})

    nursery.start_soon(after_seven_seconds)
    [delivery] = await receive(queue, wait=20)
    assert (trio.current_time(), delivery.message.body) == (7, "x")


async def test_a_shortened_lease_ends_when_it_says_now(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    queue.put("x")
    [held] = await receive(queue, visibility=100)
    await queue.change_visibility({held.receipt: 3})
    [again] = await receive(queue, wait=20)
    assert (trio.current_time(), again.message.receive_count) == (3, 2)


async def test_many_polls_share_what_comes(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    queue = SimulatedQueue()
    seen: list[str] = []

    async def poll() -> None:
        seen.extend(delivery.message.body for delivery in await receive(queue, limit=1, wait=20))

    for _ in range(5):
        nursery.start_soon(poll)
    await trio.sleep(1)
    for body in "abc":
        queue.put(body)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(seen) == ["a", "b", "c"]
    assert queue.in_flight() == ["simulated-1", "simulated-2", "simulated-3"]


# Journeys, cancellation, lost answers


async def test_journeys_take_their_time_and_the_lease_begins_at_the_server(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(request_seconds=(1, 1), answer_seconds=(2, 2))
    queue.put("x")
    await receive(queue, visibility=30)
    [assigned] = events(queue, history.Assigned)
    [landed] = events(queue, history.ReceiveLanded)
    assert isinstance(assigned, history.Assigned)
    assert (assigned.at, assigned.until, landed.at) == (1, 31, 3)


async def test_a_cancelled_poll_goes_on_at_the_server_and_strands_what_comes(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    with trio.move_on_after(5):
        await receive(queue, wait=20)
    queue.put("x")
    await trio.sleep(1)
    assert (queue.visible(), queue.in_flight(), queue.stranded) == ([], ["simulated-1"], ["simulated-1"])
    assert events(queue, history.AnswerLost) == [history.AnswerLost(5, 1, "receive", ("simulated-1",))]
    await trio.sleep(30)
    assert (queue.visible(), queue.stranded) == (["simulated-1"], [])


@pytest.mark.parametrize("cancelled_after", [0.5, 1.5])
async def test_a_cancelled_call_acts_all_the_same(autojump_clock: Clock, cancelled_after: float) -> None:
    queue = SimulatedQueue(request_seconds=(1, 1), answer_seconds=(1, 1))
    queue.put("x")
    [held] = await receive(queue)
    with trio.move_on_after(cancelled_after):
        await queue.delete([held.receipt])
    await trio.sleep(1)
    assert queue.deleted == ["simulated-1"]


async def test_a_call_in_a_cancelled_scope_sends_nothing(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.send("x")
    assert (queue.bodies, queue.calls["send"]) == ([], 0)


async def test_an_answer_that_lands_in_the_tick_of_its_cancellation_is_either_landed_or_lost(
    autojump_clock: Clock,
) -> None:
    for seed in range(20):
        queue = SimulatedQueue(answer_seconds=(5, 5), rng=random.Random(seed))
        queue.put("x")
        landed: list[Received] = []
        with trio.move_on_after(5):
            landed = await receive(queue)
        await trio.testing.wait_all_tasks_blocked()
        assert bool(landed) != bool(queue.stranded)
        assert len(events(queue, history.AnswerLost)) + len(events(queue, history.ReceiveLanded)) == 1


# Faults


async def test_a_timeout_before_the_server_acts(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("timeout-before", "send")])
    began = trio.current_time()
    with pytest.raises(QueueTimeout):
        await queue.send("x")
    assert (trio.current_time() - began, queue.bodies) == (5, [])


async def test_a_timeout_after_the_server_acted(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("timeout-after", "receive", nth=1)])
    queue.put("x")
    with pytest.raises(QueueTimeout):
        await receive(queue, wait=20)
    assert trio.current_time() == 25  # the wait, and 5 s for the answer
    assert queue.stranded == ["simulated-1"]
    assert [delivery.message.receive_count for delivery in await receive(queue, wait=20)] == [2]
    assert trio.current_time() == 30  # the lost lease ran from 0 to 30


async def test_an_answer_is_held_back_after_the_server_acted(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("delay-after", "receive", nth=1, seconds=3)])
    queue.put("x")
    (delivery,) = await receive(queue, wait=20, visibility=10)
    assert trio.current_time() == 3
    assert await queue.change_visibility({delivery.receipt: 10}) == {}
    (assigned,) = events(queue, history.Assigned)
    assert isinstance(assigned, history.Assigned)
    assert (assigned.at, assigned.until) == (0, 10)


@pytest.mark.parametrize(
    ("what", "error", "acted"),
    [
        ("throttle", QueueUnavailable, False),
        ("error", QueueUnavailable, False),
        ("error-after", QueueUnavailable, True),
        ("denied", QueueMisconfigured, False),
        ("no-queue", QueueMisconfigured, False),
    ],
)
async def test_error_answers(autojump_clock: Clock, what: str, error: type[QueueError], acted: bool) -> None:
    queue = SimulatedQueue(faults=[Fault(what, "send", nth=1)])  # type: ignore[arg-type]
    with pytest.raises(error):
        await queue.send("x")
    assert queue.bodies == (["x"] if acted else [])
    await queue.send("y")
    [failed] = events(queue, history.CallFailed)
    assert failed.call == 1


async def test_partial_failures_name_their_entries(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("partial", "delete", nth=1, entries=(0, 2))])
    for body in "abc":
        queue.put(body)
    receipts = [delivery.receipt for delivery in await receive(queue)]
    refused = await queue.delete(receipts)
    assert {receipt: refusal.gone for receipt, refusal in refused.items()} == {receipts[0]: False, receipts[2]: False}
    assert queue.bodies == ["a", "c"]


async def test_a_delay_beyond_the_clients_patience_is_a_timeout_and_acts_later(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("delay", "send", seconds=8)])
    with pytest.raises(QueueTimeout):
        await queue.send("x")
    assert (trio.current_time(), queue.bodies) == (5, [])
    await trio.sleep(3)
    await trio.testing.wait_all_tasks_blocked()
    assert queue.bodies == ["x"]


async def test_faults_by_window_and_by_function(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(faults=[Fault("throttle", start=10, end=20)])
    await queue.attributes()
    await trio.sleep(10)
    with pytest.raises(QueueUnavailable):
        await queue.attributes()
    await trio.sleep(10)
    await queue.attributes()

    def third(call: Call) -> Fault | None:
        return Fault("error") if call.number == 3 else None

    queue = SimulatedQueue(faults=third)
    queue.put("x")
    await receive(queue)
    await queue.attributes()
    with pytest.raises(QueueUnavailable):
        await queue.send("y")


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no such fault"):
        Fault("earthquake")  # type: ignore[arg-type]


def test_random_faults_come_from_the_seed_alone() -> None:
    assert random_faults(random.Random(7)) == random_faults(random.Random(7))
    many = [fault for seed in range(200) for fault in random_faults(random.Random(seed), until=60)]
    assert {fault.what for fault in many} >= {"delay", "throttle", "timeout-after", "partial"}
    assert all(fault.start < 60 and fault.end <= 60 for fault in many)


def test_the_same_seed_gives_the_same_history() -> None:
    async def story(seed: int) -> list[history.Event]:
        rng = random.Random(seed)
        queue = SimulatedQueue(
            request_seconds=(0.01, 0.2), answer_seconds=(0.01, 0.2), duplicates=0.3, disorder=0.5, missed=0.2,
            faults=random_faults(rng, until=30), rng=rng,
        )  # fmt: skip
        for number in range(20):
            queue.put(f"{number}")
        for _ in range(20):
            try:
                deliveries = await receive(queue, limit=3, wait=1, visibility=2)
                await queue.delete([delivery.receipt for delivery in deliveries[:2]])
            except QueueError:
                await trio.sleep(0.5)
        return queue.history

    first, second, other = (trio.run(story, seed, clock=Clock(autojump_threshold=0)) for seed in (3, 3, 4))
    assert len(first) > 40
    assert first == second != other


# Leases and receipt handles


async def test_handles_before_and_after_a_redelivery(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    queue.put("x")
    [first] = await receive(queue, visibility=5)
    await trio.sleep(5)
    refused = await queue.change_visibility({first.receipt: 10})  # visible again, not yet received again
    assert (refused[first.receipt].code, refused[first.receipt].gone) == ("MessageNotInflight", True)
    [second] = await receive(queue, visibility=5)
    refused = await queue.change_visibility({first.receipt: 10})
    assert (refused[first.receipt].code, refused[first.receipt].gone) == ("InvalidParameterValue", True)
    assert await queue.delete([first.receipt]) == {}  # "succeeds", and deletes nothing
    assert (queue.deleted, queue.in_flight()) == ([], ["simulated-1"])
    assert await queue.delete([second.receipt]) == {}
    assert await queue.delete([second.receipt]) == {}
    assert queue.deleted == ["simulated-1"]
    assert len(events(queue, history.DeleteIgnored)) == 2


async def test_an_expired_handle_deletes_while_nobody_has_received_the_message_again(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    queue.put("x")
    [held] = await receive(queue, visibility=5)
    await trio.sleep(6)
    assert await queue.delete([held.receipt]) == {}
    assert queue.deleted == ["simulated-1"]


async def test_a_lease_lasts_twelve_hours_from_the_receive_at_most(autojump_clock: Clock) -> None:
    queue = SimulatedQueue()
    queue.put("x")
    [held] = await receive(queue, visibility=100)
    await trio.sleep(60)
    [refusal] = (await queue.change_visibility({held.receipt: 43_200})).values()
    assert ("beyond the limit" in refusal.text, refusal.gone) == (True, False)
    assert await queue.change_visibility({held.receipt: 43_140}) == {}
    await trio.sleep(43_139)
    assert queue.in_flight() == ["simulated-1"]
    await trio.sleep(1)
    assert queue.visible() == ["simulated-1"]


async def test_duplicates_and_resurrections(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(duplicates=1.0)
    queue.put("x")
    [first] = await receive(queue)
    [second] = await receive(queue)
    assert (first.message.id, first.receipt) != (second.message.id, second.receipt)
    assert await queue.change_visibility({first.receipt: 5})
    assert await queue.change_visibility({second.receipt: 5}) == {}

    queue = SimulatedQueue(resurrections=1.0)
    queue.put("x")
    [first] = await receive(queue)
    await queue.delete([first.receipt])
    [ghost] = await receive(queue)
    assert (ghost.message.id, ghost.message.receive_count) == (first.message.id, 2)


async def test_disorder_and_short_polls_that_overlook(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(disorder=1.0)
    for number in range(10):
        queue.put(str(number))
    bodies = [delivery.message.body for delivery in await receive(queue)]
    assert sorted(bodies) == sorted("0123456789") != bodies
    queue = SimulatedQueue(missed=1.0)
    queue.put("x")
    assert await receive(queue, wait=0) == []
    assert len(await receive(queue, wait=1)) == 1


# Limits


async def test_the_limit_of_messages_in_flight(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(in_flight_limit=3)
    for body in "abcde":
        queue.put(body)
    assert len(await receive(queue)) == 3
    with pytest.raises(QueueUnavailable, match="in flight"):
        await receive(queue)
    queue = SimulatedQueue(fifo=True, content_deduplication=True, in_flight_limit=3)
    for body in "abcde":
        queue.put(body, group_id=body)
    assert len(await receive(queue)) == 3
    began = trio.current_time()
    assert await receive(queue, wait=20) == []
    assert trio.current_time() - began == 20


async def test_ranges_and_batches(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(max_message_bytes=100)
    for bad in ({"limit": 11}, {"limit": 0}, {"wait": 21}, {"visibility": 43_201}):
        with pytest.raises(QueueError, match="is invalid"):
            await receive(queue, **bad)
    with pytest.raises(QueueError, match="TooManyEntries"):
        await queue.delete([f"{number}" for number in range(11)])
    with pytest.raises(QueueError, match="EmptyBatch"):
        await queue.change_visibility({})
    with pytest.raises(MessageTooLong):
        await queue.send("x" * 101)
    with pytest.raises(MessageRefused):
        await queue.send("x", delay=901)
    with pytest.raises(MessageRefused):
        await queue.send("x", deduplication_id="y")


# FIFO


async def test_a_group_is_locked_until_its_message_is_settled(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    for body in ("a1", "b1", "a2", "b2"):
        queue.put(body, group_id=body[0])
    [a1] = await receive(queue, limit=1)
    assert [delivery.message.body for delivery in await receive(queue, limit=1)] == ["b1"]
    assert await receive(queue, wait=5) == []
    await queue.delete([a1.receipt])
    assert [delivery.message.body for delivery in await receive(queue)] == ["a2"]


async def test_a_released_message_comes_before_its_successor(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    for body in ("a1", "a2"):
        queue.put(body, group_id="a")
    [a1] = await receive(queue, limit=1)
    await queue.change_visibility({a1.receipt: 7})
    began = trio.current_time()
    bodies = [delivery.message.body for delivery in await receive(queue, wait=20)]
    assert (trio.current_time() - began, bodies) == (7, ["a1", "a2"])


async def test_fifo_refuses_an_expired_handle(autojump_clock: Clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    queue.put("x", group_id="g")
    [held] = await receive(queue, visibility=1)
    await trio.sleep(1)
    [refusal] = (await queue.delete([held.receipt])).values()
    assert (refusal.gone, queue.bodies) == (True, ["x"])


@pytest.mark.parametrize("by", ["content", "id"])
async def test_deduplication_lasts_five_minutes(by: str, autojump_clock: Clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=by == "content")
    own = None if by == "content" else "own"
    first = await queue.send("x", group_id="g", deduplication_id=own)
    await trio.sleep(299)
    assert await queue.send("x", group_id="g", deduplication_id=own) == first
    await trio.sleep(1)
    assert await queue.send("x", group_id="g", deduplication_id=own) != first
    assert len(queue.bodies) == 2


# Redrive and dead letters


async def test_redrive_after_the_last_receive(autojump_clock: Clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=2)
    message_id = queue.put("x", attributes={"n": 1})
    for _ in range(2):
        await receive(queue, visibility=1)
        await trio.sleep(1)
    assert (queue.visible(), dead.visible()) == ([message_id], [])
    assert await receive(queue) == []
    assert (queue.visible(), dead.visible()) == ([], [message_id])
    assert [type(event) for event in queue.history].count(history.DeadLettered) == 1
    [letter] = await receive(dead)
    assert (letter.message.id, letter.message.receive_count, letter.message.attributes["n"]) == (message_id, 3, "1")


async def test_a_dead_letter_by_hand_carries_its_reason(autojump_clock: Clock) -> None:
    dead = SimulatedQueue("dead")
    queue = SimulatedQueue(dead_letters=dead, max_receive_count=5)
    assert queue.max_receive_count is None  # not read yet
    await queue.attributes()
    assert queue.max_receive_count == 5
    queue.put("x", attributes={"kind": "order"})
    [held] = await receive(queue)
    assert await queue.dead_letter(held, "no such customer")
    assert dead.bodies == ["x"]
    told = {"RejectReason": "no such customer", "RejectedMessageId": held.message.id}
    assert dead.attributes_of(dead.visible()[0]) == {"kind": "order", **told}
    assert queue.in_flight() == [held.message.id]
    assert not await SimulatedQueue().dead_letter(held, "nowhere to go")


def test_queues_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="both"):
        SimulatedQueue(max_receive_count=3)
    with pytest.raises(ValueError, match="FIFO"):
        SimulatedQueue(fifo=True, dead_letters=SimulatedQueue(), max_receive_count=3)
    with pytest.raises(ValueError, match="FIFO"):
        SimulatedQueue(fifo=True, duplicates=0.1)


# The switch


class Watched:
    def __init__(self, switch: SimulatedSwitch) -> None:
        self.seen: list[tuple[float, bytes | None]] = []
        self.watcher = switch.watcher(None, lambda value, revision: self.seen.append((trio.current_time(), value)))


async def test_a_switch_reports_reads_and_changes(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    switch = SimulatedSwitch()
    watched = Watched(switch)
    await nursery.start(lambda task_status: watched.watcher.run(task_status=task_status))
    await trio.sleep(3)
    switch.set("on")
    await trio.sleep(2)
    switch.set(None)
    await trio.sleep(100)
    assert watched.seen == [(0, None), (3, b"on"), (5, None)]


async def test_notices_that_are_late_repeated_overtaken_and_lost(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    switch = SimulatedSwitch("0", notices=[Notice(copies=2), Notice(delay=5), Notice(), Notice(copies=0)], reread=30)
    watched = Watched(switch)
    await nursery.start(lambda task_status: watched.watcher.run(task_status=task_status))
    for second in range(1, 5):
        await trio.sleep(1)
        switch.set(str(second))
    await trio.sleep(40)
    assert watched.seen == [(0, b"0"), (1, b"1"), (1, b"1"), (3, b"3"), (7, b"2"), (30, b"4")]


async def test_an_outage_ends_with_a_read(autojump_clock: Clock, nursery: trio.Nursery) -> None:
    switch = SimulatedSwitch("0", outages=[Outage(0, 2), Outage(10, 15)])
    watched = Watched(switch)
    await nursery.start(lambda task_status: watched.watcher.run(task_status=task_status))
    assert trio.current_time() == 2
    await trio.sleep(9)
    assert not watched.watcher.snapshot().connected
    switch.set("1")
    switch.set("2")
    await trio.sleep(9)
    assert watched.watcher.snapshot().connected
    assert watched.seen == [(2, b"0"), (15, b"2")]
