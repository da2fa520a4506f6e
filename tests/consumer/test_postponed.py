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

    few, many = look(1_000), look(100_000)
    assert many[0] < 5 * few[0] + 0.001
    assert many[1] < 10_000_000  # 100 bytes for each, and no more with a million


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
