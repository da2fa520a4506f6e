"""Messages that wait for their back-off: counted, the soonest named, at a cost that does not grow."""

import random
import time
import tracemalloc

import pytest
import trio

from svc import Message, Retry
from svc.consumer.postponed import KEPT, SHOWN, Postponed
from svc.maintenance.manager import DrainOutcome
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService


def test_it_counts_all_and_names_the_soonest() -> None:
    rng = random.Random(1)
    held, true = Postponed(), {str(number): rng.uniform(1, 43_200) for number in range(5000)}
    for message_id, until in true.items():
        held.add(message_id, until, 0)
    for now in (0, 0.5, 10, 500.25, 20_000, 43_000, 43_201):
        waiting = sorted((until, message_id) for message_id, until in true.items() if until > now)
        assert held.number(now) == len(waiting)
        assert list(held.first(now).items()) == [(message_id, until) for until, message_id in waiting[:SHOWN]]
    assert (held._number, held._kept, held._ids, held._seconds) == (0, 0, {}, [])


def test_a_time_that_changes_moves_it() -> None:
    held = Postponed()
    held.add("a", 10, 0)
    held.add("b", 20, 0)
    held.move("a", 10, 30.5, 5)
    assert list(held.first(5).items()) == [("b", 20), ("a", 30.5)]
    held.move("b", 20, 6, 6)  # visible now
    assert (held.number(6), held.first(6)) == (1, {"a": 30.5})
    held.move("a", 30.5, 40, 31)  # it was visible, and is not any more
    assert (held.number(31), held.first(31)) == (1, {"a": 40})
    assert held.number(40) == 0


def test_of_two_copies_the_last_counts() -> None:
    held = Postponed()
    held.add("a", 10, 0)
    held.add("a", 20, 0)
    assert held.first(0) == {"a": 20}
    assert held.first(15) == {"a": 20}


def test_two_copies_in_one_second_are_one_message_until_the_later_time() -> None:
    held = Postponed()
    held.add("a", 6.9, 0)
    held.add("a", 6.2, 0)
    held.move("a", 6.2, 6.5, 6.1)
    assert (held.number(6.1), held.first(6.1)) == (1, {"a": 6.9})
    held.move("a", 6.2, 6.0, 6.5)  # the earlier copy: the later one is still there
    assert (held.number(6.5), held.first(6.5)) == (1, {"a": 6.9})
    held.add("a", 7.0, 6.5)
    assert (held.number(6.5), held.first(6.5)) == (1, {"a": 7.0})
    assert (held.number(7), held.first(7)) == (0, {})


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_a_plain_list_would_be(seed: int) -> None:
    """Each message once; times on a grid, so that several fall together, on whole seconds and on the moment of the look."""
    rng, held, true, now = random.Random(seed), Postponed(), dict[str, float](), 0.0
    for number in range(400):
        now += rng.choice((0, 0, 0.25, 0.5, 1, 3))
        true = {message_id: until for message_id, until in true.items() if until > now}
        if true and rng.random() < 0.3:
            message_id = rng.choice(sorted(true))
            before, until = true.pop(message_id), now + rng.choice((0, 0.25, 1, 5.5, 30))
            held.move(message_id, before, until, now)
        else:
            message_id, until = f"m{number}", now + rng.choice((-1, 0, 0.25, 1, 2, 7.75, 30))
            held.add(message_id, until, now)
        if until > now:
            true[message_id] = until
        assert held.number(now) == len(true)
        assert held.first(now) == true
        assert list(held.first(now).values()) == sorted(true.values())
        assert held._kept == sum(map(len, held._ids.values())) == len(true)
        assert held._seconds == sorted(held._ids)
        assert held._coming[0] == min(held._coming) if held._coming else not held._number


def test_of_one_second_so_many_are_named_and_all_are_counted() -> None:
    held = Postponed()
    for number in range(SHOWN + 5):
        held.add(str(number), 10.0, 0)
    assert (held.number(0), held._kept) == (SHOWN + 5, SHOWN)
    assert list(held.first(0)) == [str(number) for number in range(SHOWN)]
    held.move(str(SHOWN), 10.0, 3.0, 0)  # it was counted, and is named now
    assert (held.number(0), next(iter(held.first(0)))) == (SHOWN + 5, str(SHOWN))
    assert (held.number(10), held.first(10), held._kept) == (0, {}, 0)


def test_what_is_kept_is_bounded_and_the_latest_go() -> None:
    held = Postponed()
    for number in range(KEPT + 1):
        held.add(str(number), float(number + 1), 0)
    assert (held._kept, held._seconds[-1], held.number(0)) == (KEPT, KEPT, KEPT + 1)
    held.move(str(KEPT), float(KEPT + 1), float(KEPT + 9), 0)  # whose id is not kept any more
    assert held.number(0) == KEPT + 1
    assert held.number(KEPT + 9) == 0


@pytest.mark.parametrize("now", [1.2, 1.5])
def test_what_was_visible_takes_nothing_with_it_when_it_is_put_off_again(now: float) -> None:
    held = Postponed()
    held.add("a", 1.2, 0)
    held.add("b", 1.9, 0)
    held.move("a", 1.2, 5.0, now)
    assert (held.number(now), held.first(now)) == (2, {"b": 1.9, "a": 5.0})
    held.move("never added", 10.0, 20.0, now)
    assert held.number(now) == 3


def test_neither_memory_nor_a_look_grows_with_how_many_wait() -> None:
    def look(number: int) -> tuple[float, int]:
        rng, held = random.Random(number), Postponed()
        tracemalloc.start()
        for index in range(number):
            held.add(f"{index:036}", rng.uniform(1, 43_200), 0)
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        took = []
        for _ in range(20):
            began = time.perf_counter()
            assert len(held.first(0.5)) == SHOWN
            assert held.number(0.5) == number
            took.append(time.perf_counter() - began)
        assert held._kept <= KEPT
        return min(took), memory

    few, many = look(1_000), look(30_000)
    assert many[0] < 5 * few[0] + 0.001
    assert many[1] < 5_000_000  # and no more than twice that with a million


@pytest.mark.parametrize("number", [150, 1200])
async def test_a_drain_names_the_soonest_hundred_and_counts_all(autojump_clock, number: int) -> None:
    queue = SimulatedQueue()
    for index in range(number):
        queue.put(str(index))

    async def later(message: Message) -> None:
        raise Retry(after=1000 + int(message.body))

    async with SimulatedService(queue, later, MAX_CONCURRENCY="1000") as service:
        await service.wait_for(lambda: len(service.endings) == number)
        service.maintenance("on")
        report = await service.drained()
        assert report.outcome is DrainOutcome.DRAINED
        figures = report.handlers["sqs"]
        assert figures["deferred_count"] == number
        named = figures["deferred"]
        assert len(named) == SHOWN
        assert all(999 - trio.current_time() < seconds <= 1000 + SHOWN for seconds in named.values())
