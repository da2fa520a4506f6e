"""Time in which the process did not run counts for (almost) nothing. Exact, in virtual time."""

import pytest
import trio
import trio.testing

from svc.sqs import running_time


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
