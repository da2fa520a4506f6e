"""The fence: no receive before the switch was looked at by an instance that is registered, nor after a standstill."""

import pytest
import trio
from structlog.testing import capture_logs

from svc.maintenance.fence import PATIENCE, STALL, TICK, Fence
from svc.telemetry.loop_state import loop_state
from svc.wakeup import REST


class Parts:
    """A fence with a clock of its own, and what it asked for."""

    def __init__(self) -> None:
        self.time = 0.0
        self.asked: list[str] = []
        self.fence = Fence(
            stall=STALL,
            clock=lambda: self.time,
            check=lambda: self.asked.append("check"),
            look=lambda: self.asked.append("look"),
            on_open=lambda: self.asked.append("open"),
        )


@pytest.fixture
def parts(autojump_clock) -> Parts:
    return Parts()


async def opened(parts: Parts) -> None:
    parts.fence.registered(trio.current_time(), True)
    await trio.sleep(0.1)
    parts.fence.looked(trio.current_time(), True)
    assert parts.fence.is_open
    parts.asked.clear()


async def test_it_opens_after_a_registration_and_a_look_that_began_after_it(autojump_clock) -> None:
    parts = Parts()
    assert not parts.fence.is_open
    parts.fence.looked(trio.current_time(), True)  # before the registration: who switches now does not see us
    assert not parts.fence.is_open
    await trio.sleep(1)
    before = trio.current_time()
    await trio.sleep(1)
    parts.fence.registered(before, True)
    parts.fence.looked(before, True)
    assert not parts.fence.is_open
    parts.fence.looked(trio.current_time(), True)
    assert parts.fence.is_open
    assert parts.asked == ["look", "open"]


async def test_an_etcd_out_of_reach_opens_it_only_for_work_that_had_begun(autojump_clock) -> None:
    parts = Parts()
    parts.fence.registered(trio.current_time(), False)
    parts.fence.looked(trio.current_time(), False)
    assert not parts.fence.is_open  # nobody can know of us
    parts.fence.looked(trio.current_time(), True)
    assert not parts.fence.is_open  # nor now: etcd is back, and we are not registered
    parts.fence.registered(trio.current_time(), True)
    parts.fence.looked(trio.current_time(), True)
    assert parts.fence.is_open
    parts.time += 5
    assert not parts.fence.is_open
    parts.fence.looked(trio.current_time(), False)
    assert not parts.fence.is_open  # the registration has not been tried
    parts.fence.registered(trio.current_time(), False)
    parts.fence.looked(trio.current_time(), False)
    assert parts.fence.is_open  # with etcd gone the last known state stands


async def test_a_registration_that_is_refused_is_not_waited_for(autojump_clock) -> None:
    parts = Parts()
    parts.fence.registered(trio.current_time(), True)  # answered: refused
    parts.fence.looked(trio.current_time(), True)
    assert parts.fence.is_open


async def test_a_registration_that_is_never_answered_is_waited_for_with_a_bound(autojump_clock) -> None:
    parts = Parts()
    looks = 0
    while not parts.fence.is_open:
        parts.fence.registered(trio.current_time(), False)
        parts.fence.looked(trio.current_time(), True)
        looks += 1
        await trio.sleep(10)
        assert looks < 10
    assert trio.current_time() == PATIENCE + 10


async def test_a_standstill_closes_it_whoever_notices_first(autojump_clock) -> None:
    for notice in ("receive", "tick"):
        parts = Parts()
        await opened(parts)
        parts.time += STALL
        assert parts.fence.is_open  # a busy loop is no standstill
        parts.time += STALL + 0.1
        await trio.sleep(1)
        if notice == "tick":
            parts.fence.tick()
        assert not parts.fence.is_open
        assert parts.asked == ["check"]


async def test_answers_to_what_was_asked_before_the_standstill_do_not_open_it(autojump_clock) -> None:
    parts = Parts()
    await opened(parts)
    asked_before = trio.current_time()
    await trio.sleep(5)
    parts.time += 5
    assert not parts.fence.is_open
    parts.fence.registered(asked_before, True)
    parts.fence.looked(asked_before, True)
    assert not parts.fence.is_open
    parts.fence.looked(trio.current_time(), True)
    assert not parts.fence.is_open  # not registered since
    await trio.sleep(1)
    parts.fence.registered(trio.current_time(), True)
    assert not parts.fence.is_open
    parts.fence.looked(trio.current_time(), True)
    assert parts.fence.is_open
    parts.time += 5  # and again
    assert not parts.fence.is_open


async def test_it_ticks_by_itself(autojump_clock, nursery) -> None:
    asked: list[float] = []
    fence = Fence(stall=STALL, check=lambda: asked.append(trio.current_time()))
    nursery.start_soon(fence.run)
    await trio.sleep(60)
    assert asked == []
    assert TICK < STALL


async def test_beaten_by_another_thread_it_closes_when_the_beat_stays_away(autojump_clock, nursery) -> None:
    parts = Parts()
    await opened(parts)
    nursery.start_soon(parts.fence.run)
    for _ in range(60):
        assert parts.fence.beat() is None
        parts.time += 1
        await trio.sleep(1)
    assert parts.asked == []
    parts.time += STALL + 0.1
    tick = parts.fence.beat()  # whoever comes first: the beat must not hide it
    assert tick is not None
    assert parts.fence.beat() is not None
    assert not parts.fence.is_open
    tick()
    assert parts.asked == ["check"]
    assert parts.fence.beat() is None


async def test_beaten_it_wakes_nobody_up_but_now_and_then(autojump_clock, nursery) -> None:
    fence, state = Fence(stall=STALL, clock=lambda: 0.0), loop_state()
    fence.beat()
    nursery.start_soon(fence.run)
    passes = state.passes
    await trio.sleep(100)
    assert state.passes - passes <= 2 * 100 / REST + 2  # one of two is this clock's


async def test_when_the_beat_has_ended_it_ticks_by_itself_again(autojump_clock, nursery) -> None:
    closed: list[float] = []
    fence = Fence(stall=STALL, check=lambda: closed.append(trio.current_time()))
    nursery.start_soon(fence.run)
    for _ in range(10):
        fence.beat()
        await trio.sleep(1)
    await trio.sleep(100)
    assert len(closed) <= 1


async def test_simulated_time_knows_no_standstill(autojump_clock) -> None:
    fence = Fence()
    fence.registered(trio.current_time(), True)
    fence.looked(trio.current_time(), True)
    await trio.sleep(80_000)
    assert fence.is_open
    await fence.run()  # nothing to tick for


async def test_a_standstill_is_told_and_its_end_too(autojump_clock) -> None:
    with capture_logs() as lines:
        parts = Parts()
        await opened(parts)
        assert not lines  # an ordinary start has no trouble to tell of
        parts.time += 5.16
        parts.fence.tick()
        await trio.sleep(1.52)
        parts.fence.registered(trio.current_time(), True)
        parts.fence.looked(trio.current_time(), True)
    began, over = lines
    assert (began["event"], began["seconds"]) == (
        "this process has stood still: looking at the switch before the next receive",
        5.2,
    )
    assert (over["event"], over["after_seconds"]) == ("receives may begin again after the standstill", 1.5)


async def test_looks_alone_do_not_open_it_before_a_registration_was_tried(autojump_clock) -> None:
    parts = Parts()
    for _ in range(3):
        parts.fence.looked(trio.current_time(), True)
        await trio.sleep(PATIENCE)
    assert not parts.fence.is_open


async def test_a_registration_that_is_confirmed_again_asks_for_no_later_look(autojump_clock) -> None:
    parts = Parts()
    parts.fence.registered(trio.current_time(), True)
    await trio.sleep(1)
    began = trio.current_time()
    await trio.sleep(1)
    parts.fence.registered(trio.current_time(), True)
    parts.fence.looked(began, True)
    assert parts.fence.is_open


async def test_open_it_hears_nothing(autojump_clock) -> None:
    parts = Parts()
    parts.fence.registered(trio.current_time(), False)
    parts.fence.looked(trio.current_time(), True)
    await trio.sleep(PATIENCE)
    parts.fence.looked(trio.current_time(), True)  # etcd answers, and has not answered the registration
    assert parts.fence.is_open
    for answered in (False, True):
        parts.fence.registered(trio.current_time(), answered)
        parts.fence.looked(trio.current_time(), answered)
    assert parts.fence.is_open
    assert parts.asked == ["open"]
