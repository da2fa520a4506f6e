"""The backlog, for those who scale: exact in virtual time, and left out where it is not known."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import trio

from svc.consumer.queue import QueueUnavailable
from svc.defects import Defects
from svc.etcd.registration import identity
from svc.maintenance.fleet import Fleet
from svc.maintenance.orders import OutOfReach
from svc.maintenance.registration import Entry
from svc.settings import load
from svc.telemetry import scaling_metrics
from svc.telemetry.backlog import EVERY, RATE_LEAST, STALE, WANTED, Backlog, instances_of


class Place:
    """What is asked of SQS and etcd, and how often."""

    def __init__(self) -> None:
        self.visible = "600"
        self.instances = 3
        self.trouble: Exception | None = None
        self.etcd_trouble: Exception | None = None
        self.done = 0
        self.asked: list[float] = []
        self.defects = Defects()
        self.backlog = Backlog(self.attributes, self.count, lambda: self.done, self.defects)

    async def attributes(self) -> Mapping[str, str]:
        self.asked.append(trio.current_time())
        if self.trouble is not None:
            raise self.trouble
        return {"ApproximateNumberOfMessages": self.visible, "ApproximateNumberOfMessagesNotVisible": "9"}

    async def count(self) -> int:
        if self.etcd_trouble is not None:
            raise self.etcd_trouble
        return self.instances

    def shown(self) -> dict[str, float]:
        """As a scrape."""
        return {one.name: one.samples[0].value for one in scaling_metrics.of_the_backlog(self.backlog.look())}


@pytest.fixture
async def place(nursery) -> Place:
    held = Place()
    nursery.start_soon(held.backlog.run)
    return held


async def test_it_is_asked_once_a_minute_and_only_while_somebody_looks(autojump_clock, place: Place) -> None:
    await trio.sleep(1000)
    assert place.asked == []
    assert place.shown() == {}  # and now it is wanted
    for _ in range(20):
        await trio.sleep(15.1)
        assert place.shown()["svc_queue_backlog_messages"] == 600
    assert place.asked == [1000 + EVERY * n for n in range(6)]
    await trio.sleep(10_000)
    assert len(place.asked) <= 6 + WANTED / EVERY
    assert place.shown() == {}  # what was read then is no figure any more


async def test_the_rate_is_that_of_the_last_minutes_times_the_instances(autojump_clock, place: Place) -> None:
    place.shown()
    await trio.sleep(RATE_LEAST - 1)
    place.done = 88
    assert set(place.shown()) == {
        "svc_queue_backlog_messages", "svc_queue_instances", "svc_backlog_per_instance_messages",
    }  # fmt: skip
    await trio.sleep(1)
    place.done = 90
    # 90 in 45 s, by each of three: 6 a second.
    assert place.shown() == {
        "svc_queue_backlog_messages": 600,
        "svc_queue_instances": 3,
        "svc_backlog_per_instance_messages": 200,
        "svc_backlog_seconds": 100,
    }
    place.visible = "0"
    await trio.sleep(EVERY)
    assert place.shown()["svc_backlog_seconds"] == 0
    place.visible = "600"
    for _ in range(10):  # nothing is processed any more: there is no rate
        await trio.sleep(EVERY)
        place.shown()
    assert "svc_backlog_seconds" not in place.shown()


async def test_what_is_not_known_is_left_out(autojump_clock, place: Place) -> None:
    place.shown()
    await trio.sleep(1)
    assert place.shown()["svc_queue_instances"] == 3
    place.etcd_trouble = OutOfReach("etcd is away")
    await trio.sleep(EVERY)
    assert place.shown() == {"svc_queue_backlog_messages": 600}
    place.etcd_trouble, place.instances = None, 0  # registered by nobody yet: we are one
    await trio.sleep(EVERY)
    assert place.shown()["svc_queue_instances"] == 1
    place.trouble = QueueUnavailable("SQS is away")
    await trio.sleep(STALE - EVERY)
    assert place.shown() != {}
    await trio.sleep(EVERY + 1)
    assert place.shown() == {}
    place.trouble, place.visible = None, "many"
    await trio.sleep(EVERY)
    assert place.shown() == {}
    assert place.defects.counts["backlog"] == 0


@pytest.mark.expects_errors
async def test_what_nobody_foresaw_is_that_question_s_failure(autojump_clock, place: Place) -> None:
    place.trouble = ValueError("odd")
    place.shown()
    await trio.sleep(1)
    assert place.defects.counts["backlog"] == 1
    place.trouble = None
    await trio.sleep(EVERY)
    assert place.shown()["svc_queue_backlog_messages"] == 600


async def test_instances_of_other_queues_do_not_count() -> None:
    ours, theirs = load({"SQS_QUEUE_URL": "http://x/0/ours"}), load({"SQS_QUEUE_URL": "http://x/0/theirs"})

    class Board:
        async def look(self) -> Fleet:
            held = [replace(identity(one), id=str(n)) for n, one in enumerate((ours, theirs, ours))]
            entries = (*(Entry(one.id, one, 5) for one in held), Entry("odd", None, 5))
            return Fleet(None, 0, None, {}, entries, 5)

    count = partial(instances_of, Board())  # type: ignore[arg-type]
    assert await count(ours.sqs_queue_url)() == 2
    assert await count(theirs.sqs_queue_url)() == 1
