"""The circuit breaker: its table walked by hand, and the service with it in virtual time."""

import itertools
import math
import random

import pytest
import trio
from structlog.testing import capture_logs

from svc import Message, Reject, Retry
from svc.consumer.breaker_state import MOVES, PROBES, BreakerConfig, BreakerMachine, BreakerSnapshot, Event, State
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.phases import Phase
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService

pytestmark = pytest.mark.expects_errors


def breaker(
    share: float = 0.5, least: int = 4, window: float = 10, pause: tuple[float, float] = (8, 32)
) -> BreakerMachine:
    return BreakerMachine(BreakerConfig(share, least, window, pause), random.Random(1))


def fail(held: BreakerMachine, count: int, now: float, *, began: float | None = None) -> list[Event | None]:
    return [held.note(failed=True, began=now if began is None else began, now=now) for _ in range(count)]


# -- the table --


def test_every_move_is_in_the_table_and_leads_on() -> None:
    assert {state for state, _ in MOVES} == set(State)
    assert {event for _, event in MOVES} == set(Event)


def test_it_trips_at_the_share_of_at_least_so_many() -> None:
    held = breaker()
    assert fail(held, 3, 0) == [None, None, None]
    assert held.grants(probing=50) == float("inf")
    assert fail(held, 1, 0) == [Event.TRIPPED]
    assert (held.state, held.grants(probing=0), held.opened, held.counted) == (State.OPEN, 0, 1, (4, 4))


@pytest.mark.parametrize(("good", "bad", "trips"), [(5, 4, False), (4, 4, True), (0, 3, False), (99, 98, False)])
def test_the_share_counts(good: int, bad: int, trips: bool) -> None:
    held = breaker()
    for _ in range(good):
        held.note(failed=False, began=0, now=0)
    assert (Event.TRIPPED in fail(held, bad, 0)) is trips


def test_what_is_older_than_the_window_does_not_count() -> None:
    held = breaker()
    fail(held, 3, 0)
    assert fail(held, 1, 10.5) == [None]
    fail(held, 2, 11)
    assert held.snapshot(11).failures == 3
    assert fail(held, 2, 20) == [None, Event.TRIPPED]  # the window has ten parts: that of 11 still counts


def test_the_pause_doubles_while_probes_fail_and_begins_anew_after_a_calm() -> None:
    held, now, pauses = breaker(), 0.0, []
    fail(held, 4, now)
    for _ in range(5):
        assert held.until is not None
        pauses.append(held.until - now)
        assert held.look(held.until - 0.01) is None
        now = held.until
        assert held.look(now) is Event.PAUSE_OVER
        assert held.look(now) is None
        assert fail(held, PROBES, now)[-1] is Event.PROBES_FAILED
    for pause, whole in zip(pauses, (8, 16, 32, 32, 32), strict=True):
        assert whole / 2 <= pause <= whole
    now += 100
    held.look(now)
    assert held.note(failed=False, began=now, now=now) is Event.PROBE_SUCCEEDED
    fail(held, 4, now + 5)  # within the window after closing: the same trouble
    assert held.until is not None
    assert held.until - now - 5 >= 16
    held.look(now + 100)
    held.note(failed=False, began=now + 100, now=now + 100)
    fail(held, 4, now + 200)
    assert held.until is not None
    assert held.until - now - 200 <= 8
    assert held.opened == 3


def test_trouble_that_is_back_exactly_a_window_after_the_closing_is_the_old_one() -> None:
    held, now = breaker(), 0.0
    fail(held, 4, now)
    for _ in range(3):
        now = held.until or 0.0
        held.look(now)
        fail(held, PROBES, now)
    now = held.until or 0.0
    held.look(now)
    held.note(failed=False, began=now, now=now)
    fail(held, 4, now + 10)
    assert held.until is not None
    assert held.until - now - 10 >= 16


def test_a_snapshot_tells_how_it_stands() -> None:
    held = breaker()
    assert held.snapshot(0) == BreakerSnapshot(State.CLOSED, None, None, 0, 0, 0)
    assert (held.counted, held.opened_at) == ((0, 0), -math.inf)
    fail(held, 4, 3)
    assert held.snapshot(4) == BreakerSnapshot(State.OPEN, 3, held.until, 0, 0, 1)
    held.look(50)
    fail(held, 1, 51)
    assert held.snapshot(52) == BreakerSnapshot(State.PROBING, 50, None, 1, 1, 1)


def test_it_keeps_one_figure_for_each_part_of_the_window() -> None:
    held = breaker(least=1000)
    for number in range(500):
        held.note(failed=True, began=0, now=number / 10)
    assert len(held._window) == 10


def test_probing_grants_a_few_and_hears_only_probes() -> None:
    held = breaker()
    fail(held, 4, 0)
    held.look(50)
    assert [held.grants(probing=probing) for probing in range(5)] == [3, 2, 1, 0, 0]
    assert fail(held, 9, 51, began=1) == [None] * 9  # begun before the pause
    assert held.note(failed=False, began=1, now=51) is None
    fail(held, 1, 52)
    assert held.grants(probing=2) == 0
    assert held.note(failed=False, began=51, now=53) is Event.PROBE_SUCCEEDED
    assert held.state is State.CLOSED
    assert held.snapshot(53).runs == 0


def test_resuming_drops_the_rest_of_the_pause() -> None:
    held = breaker()
    assert held.resume(0) is None
    fail(held, 4, 0)
    assert held.resume(1) is Event.PAUSE_OVER
    assert held.state is State.PROBING


def test_whatever_happens_is_a_move_of_the_table() -> None:
    rng = random.Random(5)
    held, now = breaker(least=2), 0.0
    seen = set()
    for _ in range(5000):
        now += rng.choice((0.0, 0.1, 3.0))
        before = held.state
        event = rng.choice((held.look, held.resume))(now) or held.note(
            failed=rng.random() < 0.6, began=now - rng.choice((0, 5)), now=now
        )
        if event is None:
            assert held.state is before
        else:
            seen.add(event)
        assert held.grants(probing=0) in (0, 1, 2, 3, float("inf"))
        assert 0 <= held.snapshot(now).failures <= held.snapshot(now).runs
    assert seen == set(Event)


# -- the service --


class Downstream:
    """Gone until `back_at`."""

    def __init__(self, back_at: float, took: float = 0.5) -> None:
        self.back_at = back_at
        self.took = took

    async def __call__(self, message: Message) -> None:
        await trio.sleep(self.took)
        if trio.current_time() < self.back_at:
            raise OSError("the downstream is gone")


SETTINGS = {"BREAKER_PAUSE": "20s-40s", "RETRY_BACKOFF": "1s-4s", "SQS_WAIT_TIME_SECONDS": "2"}


def put(queue: SimulatedQueue, count: int) -> None:
    for number in range(count):
        queue.put(str(number))


async def test_a_downstream_that_is_gone_costs_a_few_receives_and_is_found_again(autojump_clock) -> None:
    queue = SimulatedQueue()
    put(queue, 100)
    with capture_logs() as lines:
        async with SimulatedService(queue, Downstream(200), MAX_CONCURRENCY="50", **SETTINGS) as service:
            await service.wait_for(lambda: service.core.worker.breaker.snapshot().state is State.OPEN)  # type: ignore[union-attr]
            failed = len(service.failed)
            assert failed <= 100
            await trio.sleep(60)
            assert len(service.failed) - failed <= 50 + 4 * PROBES  # what was in flight, and the probes
            await service.idle()
            assert len(service.processed) == 100
            assert trio.current_time() < 200 + 40 + 30
            snapshot = service.core.worker.statistics().breaker
            assert snapshot is not None
            assert (snapshot.state, snapshot.opened) == (State.CLOSED, 1)
    told = [line["event"].split(":")[0] for line in lines if "circuit breaker" in line["event"]]
    assert told[0] == "circuit breaker opened"
    assert told[-1] == "circuit breaker closed"
    assert told.count("circuit breaker opened") == told.count("circuit breaker closed") == 1


@pytest.mark.slow
async def test_without_it_the_same_trouble_costs_far_more(autojump_clock) -> None:
    failures = {}
    for setting in ("90% of 30", "off"):
        queue = SimulatedQueue()
        put(queue, 60)
        async with SimulatedService(
            queue, Downstream(trio.current_time() + 120), BREAKER_FAILURES=setting, **SETTINGS
        ) as service:
            await service.idle()
            failures[setting] = len(service.failed)
    assert failures["off"] > 5 * failures["90% of 30"]


@pytest.mark.parametrize("raised", [Retry(after=1), Reject("no")])
async def test_retry_and_reject_are_no_failures(autojump_clock, raised: Exception) -> None:
    queue = SimulatedQueue(dead_letters=SimulatedQueue("dead"), max_receive_count=100)
    put(queue, 60)

    async def handle(message: Message) -> None:
        if message.receive_count < 3:
            raise raised

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert service.core.worker.breaker.snapshot().opened == 0  # type: ignore[union-attr]


async def test_ordinary_failures_never_open_it(autojump_clock) -> None:
    """Every second message fails at its first try."""
    queue = SimulatedQueue()
    put(queue, 300)

    async def handle(message: Message) -> None:
        if message.receive_count == 1 and int(message.body) % 2:
            raise ValueError("ordinary")

    async with SimulatedService(queue, handle) as service:
        await service.idle()
        assert service.core.worker.breaker.snapshot().opened == 0  # type: ignore[union-attr]
        assert len(service.failed) == 150


@pytest.mark.parametrize("when", [0, 5, 25, 60])
async def test_it_never_holds_up_a_drain(autojump_clock, when: float) -> None:
    queue = SimulatedQueue()
    put(queue, 60)
    async with SimulatedService(queue, Downstream(10_000), **SETTINGS) as service:
        await service.wait_for(lambda: service.core.worker.breaker.snapshot().state is State.OPEN)  # type: ignore[union-attr]
        await trio.sleep(when)
        began = trio.current_time()
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert trio.current_time() - began <= 3
        assert service.phase is Phase.MAINTENANCE
        service.maintenance("off")  # and an operator who has repaired something need not wait for the pause
        await service.wait_for(lambda: service.phase is Phase.RUNNING)
        assert service.core.worker.breaker.snapshot().state is State.PROBING  # type: ignore[union-attr]
        assert (await service.stop()).outcome is DrainOutcome.DRAINED


async def test_no_receive_begins_during_the_pause_and_probes_are_few(autojump_clock) -> None:
    queue = SimulatedQueue()
    put(queue, 200)
    async with SimulatedService(queue, Downstream(10_000), MAX_CONCURRENCY="40", **SETTINGS) as service:
        await service.wait_for(lambda: service.core.worker.breaker.snapshot().state is State.OPEN)  # type: ignore[union-attr]
        opened = trio.current_time()
        await trio.sleep(200)
    begun = [event for event in queue.history if type(event).__name__ == "ReceiveBegan" and event.at > opened]
    assert begun
    assert all(event.limit <= PROBES for event in begun)
    gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(begun)]
    assert sum(gap >= 10 for gap in gaps) >= 4


async def test_off_means_off(autojump_clock) -> None:
    queue = SimulatedQueue()
    put(queue, 50)
    async with SimulatedService(queue, Downstream(30), BREAKER_FAILURES="off") as service:
        await service.idle()
        assert service.core.worker.statistics().breaker is None


async def test_a_fifo_queue_keeps_its_order_through_it(autojump_clock) -> None:
    queue = SimulatedQueue(fifo=True, content_deduplication=True)
    for number in range(40):
        queue.put(f"{number:02}", group_id=str(number % 4))
    settings = {**SETTINGS, "BREAKER_FAILURES": "50% of 4"}
    async with SimulatedService(queue, Downstream(60), **settings) as service:
        await service.idle()
        assert service.core.worker.breaker.snapshot().opened >= 1  # type: ignore[union-attr]
    for group in "0123":
        done = [body for body in service.processed if int(body) % 4 == int(group)]
        assert done == sorted(done)
