"""Threads that a drain left behind, seen from the worker. In virtual time: a stand-in goes on after its cancellation, as a thread
does. With real threads: `test_processor_trouble.py` and `tests/processors/test_threads.py`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from structlog.testing import capture_logs

from svc.core import Core
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.registration import acknowledgement
from svc.processors import Message
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService
from svc.testing.threads import VirtualThreads

pytestmark = pytest.mark.expects_errors


class Work:
    """Takes so many seconds, whatever becomes of it; notes when it works on what."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs: list[tuple[str, float]] = []
        self.at_once = Counter[str]()
        self.most = 0

    @contextmanager
    def noted(self, message: Message) -> Iterator[None]:
        self.runs.append((message.body, trio.current_time()))
        self.at_once[message.id] += 1
        self.most = max(self.most, self.at_once[message.id])
        yield
        self.at_once[message.id] -= 1

    async def __call__(self, message: Message) -> None:
        with self.noted(message):
            await trio.sleep(self.seconds)


def service(queue: SimulatedQueue, work: Work, **settings: object) -> SimulatedService:
    def in_threads(settings, queue, process, *args, **options) -> Core:
        return Core(settings, queue, VirtualThreads(process, 10), *args, **options)

    settings = {"DRAIN_TIMEOUT": "2s", "SQS_WAIT_TIME_SECONDS": 1, **settings}
    return SimulatedService(queue, work, make_core=in_threads, **settings)


async def test_a_thread_is_in_every_report_until_it_ends(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(30)
    message_id = queue.put("long")
    async with service(queue, work) as running:
        await running.at_work("long", seconds=1)
        running.maintenance("on")
        first = await running.drained()
        assert first.outcome is DrainOutcome.EXPIRED
        assert first.handlers["sqs"]["threads"].keys() == {message_id}
        running.maintenance("off")
        await trio.sleep(2)
        assert running.core.worker.statistics().threads.keys() == {message_id}
        # Nothing is in flight, and yet this drain is not clean.
        queue_is_empty = running.core.worker.ledger
        assert not queue_is_empty
        running.maintenance("on")
        second = await running.drained()
        assert second.outcome is DrainOutcome.EXPIRED
        assert second.handlers["sqs"]["stubborn"] == (message_id,)
        assert "still running after the cancellation" in second.error
        told = acknowledgement(running.core.manager.state(), in_flight=0)
        assert told.phase == "expired"
        assert told.drain["threads"] == 1


async def test_a_drain_waits_for_a_thread_that_was_left_behind(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(8)
    queue.put("long")
    async with service(queue, work) as running:
        await running.at_work("long", seconds=1)
        running.maintenance("on")
        await running.drained()
        running.maintenance("off")
        await trio.sleep_until(7.5)
        running.maintenance("on")
        report = await running.drained()
        assert report.outcome is DrainOutcome.DRAINED
        assert report.ended == pytest.approx(8)
        assert report.handlers["sqs"]["threads"] == {}


async def test_while_a_thread_that_was_left_behind_goes_on_nothing_is_quiet(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(8)
    queue.put("long")
    async with service(queue, work) as running:
        await running.at_work("long", seconds=1)
        running.maintenance("on")
        await running.drained()
        running.maintenance("off")
        await trio.sleep_until(7.5)
        running.maintenance('{"enabled": true, "quiet": true}')
        assert (await running.drained()).quiet == pytest.approx(8)


async def test_a_message_is_not_begun_beside_its_own_thread(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(30)
    message_id = queue.put("long")
    async with service(queue, work) as running:
        await running.at_work("long", seconds=1)
        running.maintenance("on")
        await running.drained()
        with capture_logs() as logs:
            running.maintenance("off")
            await running.idle()
    assert work.most == 1
    assert work.runs == [("long", 0)]  # the thread has finished it: it came back, and was deleted
    assert queue.deleted == [message_id]
    told = [line for line in logs if line["event"].startswith("a message has come back while its thread goes on")]
    assert [line["thread"] for line in told] == ["a task in the place of a thread"]
    # Each time it costs a receive: so the pauses grow.
    assert 4 <= queue.receive_count(message_id) <= 8


async def test_what_comes_in_its_last_receive_waits_for_its_thread(autojump_clock) -> None:
    dead = SimulatedQueue("dead")
    queue, work = SimulatedQueue(dead_letters=dead, max_receive_count=2), Work(30)
    queue.put("long")
    async with service(queue, work) as running:
        await running.at_work("long", seconds=1)
        running.maintenance("on")
        await running.drained()
        running.maintenance("off")
        await running.idle()
        assert running.processed == ["long"]
    assert trio.current_time() >= 30
    assert work.most == 1
    assert dead.bodies == []


async def test_the_copy_of_a_message_that_is_lost_does_not_begin_beside_its_thread(autojump_clock) -> None:
    # Delivered twice at once: the second waits for the first, whose lease is refused because the second has taken over.
    queue, work = SimulatedQueue(duplicates=1.0), Work(30)
    queue.put("long")
    async with service(queue, work, SQS_VISIBILITY_TIMEOUT_SECONDS=4) as running:
        await running.wait_for(lambda: running.lost != [])
        queue._server._chances = SimulatedQueue()._server._chances
        await running.wait_for(lambda: running.processed == ["long"])
    assert work.most == 1


async def test_what_lands_runs_beside_threads_that_were_left_behind(autojump_clock) -> None:
    queue, work = SimulatedQueue(), Work(60)
    for number in range(10):
        queue.put(f"long {number}")
    async with service(queue, work, MAX_CONCURRENCY=10) as running:
        await running.at_work("long 9", seconds=1)
        running.maintenance("on")
        report = await running.drained()
        assert len(report.handlers["sqs"]["threads"]) == 10
        work.seconds = 1
        running.maintenance("off")
        queue.put("short")
        await running.wait_for(lambda: "short" in running.processed)
        assert trio.current_time() < 30
        running.core.manager.stop()
