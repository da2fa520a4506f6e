"""Time in which the process did not run counts for (almost) nothing. Exact, in virtual time."""

import pytest
import trio
import trio.testing

from svc.sqs import running_time
from svc.telemetry.loop_state import loop_state


async def test_a_deadline_is_met_to_the_tick(autojump_clock: trio.testing.MockClock) -> None:
    async with running_time.running() as lived:
        with lived.move_on_after(3) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() == 3
        with lived.move_on_after(0.7):
            await trio.sleep_forever()
        assert trio.current_time() == 4  # to the tick


async def test_what_answers_in_time_is_not_touched(autojump_clock: trio.testing.MockClock) -> None:
    async with running_time.running() as lived:
        with lived.move_on_after(3) as scope:
            await trio.sleep(2.9)
        await trio.sleep(10)
        assert not scope.cancel_called


async def test_a_stop_of_an_hour_counts_as_two_seconds(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    async with running_time.running() as lived:
        with lived.move_on_after(5):
            await trio.sleep(0.1)
            mock_clock.jump(3600)  # nothing of ours ran meanwhile
            await trio.sleep_forever()
        assert trio.current_time() == 3604  # two seconds are counted for the stop, and 2.9 s at 3603


async def test_the_answer_that_came_during_a_stop_is_taken(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    answered = trio.Event()
    async with running_time.running() as lived:
        with lived.move_on_after(5) as scope:
            mock_clock.jump(60)
            answered.set()
            await answered.wait()
        assert not scope.cancelled_caught


async def test_errors_come_out_as_they_are(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with running_time.running():
            raise ValueError("mine")
    with trio.move_on_after(1) as scope:
        async with running_time.running() as lived:
            with lived.move_on_after(60):
                await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_long_poll_that_waits_wakes_nobody_up_every_second(autojump_clock: trio.testing.MockClock) -> None:
    state = loop_state()
    async with running_time.running() as lived:
        await trio.sleep(1)
        for _ in range(5):
            passes = state.passes
            with lived.move_on_after(25):
                await trio.sleep(20)
            assert state.passes - passes <= 2 * 7  # one of two is this clock's


@pytest.mark.parametrize("begun_at", [0.0, 1.2, 3.0, 7.4])
async def test_what_begins_in_a_long_tick_has_its_time(autojump_clock: trio.testing.MockClock, begun_at: float) -> None:
    ended: dict[float, float] = {}

    async def call(lived: running_time.RunningTime, seconds: float) -> None:
        began = trio.current_time()
        with lived.move_on_after(seconds):
            await trio.sleep_forever()
        ended[seconds] = trio.current_time() - began

    async with running_time.running() as lived, trio.open_nursery() as nursery:
        nursery.start_soon(call, lived, 60)
        await trio.sleep(2 + begun_at)
        for seconds in (3, 17):
            nursery.start_soon(call, lived, seconds)
    for seconds, took in ended.items():
        assert seconds - running_time.TICK <= took <= seconds + running_time.TICK


async def test_a_stop_in_a_long_tick_counts_as_six_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with running_time.running() as lived:
        with lived.move_on_after(30):
            await trio.sleep(6)  # and the ticks have become long
            autojump_clock.jump(3600)
            await trio.sleep_forever()
        assert 3600 + 30 - 7 <= trio.current_time() <= 3600 + 30
