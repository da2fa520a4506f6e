"""The bench measures what it says: its stub is an SQS, it counts what is asked of it, and its table is what was counted.

What the bench finds is no matter of tests; see `python -m tests.bench --help`.
"""

import time
import uuid
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from svc.devstack.stack import Etcd
from tests.bench import picture, report
from tests.bench.consumers import FLOOR, SVC, Consumer, Place
from tests.bench.latency import percentile
from tests.bench.saturation import saturate
from tests.bench.stubbed import Stub
from tests.testing.test_queue_contract import (
    Kingdom,
    _over_the_wire,
    _settings,
    clock,
    test_a_batch_is_refused_by_entry,
    test_a_message_comes_again_when_its_lease_is_over,
    test_a_message_comes_as_it_was_sent,
    test_a_message_that_is_visible_again_has_no_lease_to_change,
    test_a_released_message_comes_at_once,
    test_deletes_within_and_after_the_lease_and_once_more,
    test_ten_entries_a_batch,
)

# The stub against the contract that the simulated queue, moto and LocalStack are held against. It knows no FIFO queues and no
# redrive: nothing that is measured needs them.
__all__ = [
    "clock",
    "test_a_batch_is_refused_by_entry",
    "test_a_message_comes_again_when_its_lease_is_over",
    "test_a_message_comes_as_it_was_sent",
    "test_a_message_that_is_visible_again_has_no_lease_to_change",
    "test_a_released_message_comes_at_once",
    "test_deletes_within_and_after_the_lease_and_once_more",
    "test_ten_entries_a_batch",
]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as running:
        yield running
        assert running.errors() == "", "calls that the stub did not understand"


@pytest.fixture
def kingdom(stub: Stub) -> Kingdom:
    name = f"contract-{uuid.uuid4().hex[:12]}"
    return Kingdom("stub", _over_the_wire(stub.url, name), _settings(stub.url, name, None))


@pytest.mark.parametrize("consumer", [SVC, pytest.param(FLOOR, marks=pytest.mark.slow)], ids=lambda one: one.key)
def test_a_small_backlog(consumer: Consumer, stub: Stub, etcd: Etcd, queue_name: str) -> None:
    place = Place(stub.url, queue_name, etcd.endpoint, {"LOG_LEVEL": "warning", "SQS_WAIT_TIME_SECONDS": "1"})
    done = saturate(
        consumer, stub, place, backlog=4000, seconds=20, core=None
    )  # the floor is through 600 between two looks
    assert 0 < done.messages <= 4000
    assert done.cpu > 0
    assert {"ReceiveMessage"} <= set(done.requests)
    assert 0.1 < done.requests_per_message < 2.5


def test_a_long_poll_ends_with_the_first_message_or_with_its_time(stub: Stub, queue_name: str) -> None:
    stub.control("load", queue=queue_name, count=0, body="")
    began = time.monotonic()
    assert stub.sqs("ReceiveMessage", QueueUrl=stub.queue_url(queue_name), WaitTimeSeconds=1) == {}
    assert time.monotonic() - began >= 1
    # The stub itself puts a message a second later.
    stub.control("schedule", queue=queue_name, count=2, every=1.0, body="{now}")
    for _ in range(2):
        [message] = stub.sqs("ReceiveMessage", QueueUrl=stub.queue_url(queue_name), WaitTimeSeconds=20)["Messages"]
        assert float(message["Body"]) - began >= 1
    assert time.monotonic() - began < 20
    assert stub.control("stats", queue=queue_name)["calls"] == {"ReceiveMessage": 3}


def test_copies_have_ids_of_their_own(stub: Stub, queue_name: str) -> None:
    first = str(uuid.uuid4())
    stub.control("load", queue=queue_name, count=1, body=f'{{"id": "{first}", "task": "x"}}')
    stub.control("multiply", queue=queue_name, count=4)
    answer = stub.sqs("ReceiveMessage", QueueUrl=stub.queue_url(queue_name), MaxNumberOfMessages=10)
    bodies = [message["Body"] for message in answer["Messages"]]
    assert len(set(bodies)) == 5
    assert {len(body) for body in bodies} == {len(bodies[0])}
    assert stub.control("stats", queue=queue_name)["calls"] == {"ReceiveMessage": 1}


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile(list(range(1, 101)), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7.0


def _result() -> dict[str, object]:
    run = {"per_second": 2000.0, "cpu_per_message": 0.0004, "requests": 0.2, "stub_share": 0.1}
    slow = run | {"per_second": 500.0, "cpu_per_message": 0.0016, "requests": 1.1}
    fast = run | {"per_second": 4000.0, "cpu_per_message": 0.0002}
    one = {"how": "", "versions": "x 1"}
    return {
        "date": "2026-01-01", "command": "python -m tests.bench", "repeats": 1,
        "machine": {"cpu": "a cpu", "cores": 2, "system": "Linux 6", "python": "3.11.0"},
        "consumers": {
            "svc": one | {"title": "svc", "saturation": [run], "quiet": {"receives_per_hour": 180.0, "requests_per_message": 2}},
            "floor": one | {"title": "floor", "saturation": [slow]},
            "slow": one | {"title": "slow peer", "saturation": [slow]},
            "fast": one | {"title": "fast peer", "saturation": [fast]},
            "sqs-consumer": one | {"title": "sqs-consumer (Node)", "saturation": [run | {"per_second": 1900.0}]},
            "broken": one | {"title": "broken peer", "error": "it needs a moon"},
        },
        "reaction": {name: {"p50": 0.004, "p99": 0.030, "toggles": 50} for name in ("last_receive", "draining")},
        "growth": [
            {"in_flight": 10_000, "per_second": 2000.0, "cpu_per_message": 0.0004, "held": 2**27, "per_message": 5000.0}
        ],
    }  # fmt: skip


def test_the_table_says_what_was_found_and_where_a_peer_is_ahead() -> None:
    text = report.markdown(_result(), "pictures/growth.svg")
    assert "| slow peer | 500 | 1600 µs | 4.00 |" in text
    assert "| broken peer | cannot run: it needs a moon |" in text
    assert "| svc | 0.200 | 2.00 | 180 | $8 – $80 |" in text
    assert "**Ahead of svc**: fast peer, in messages per second (by a factor of 2.0), CPU per message" in text
    assert "Ahead of svc**: slow peer" not in text
    assert "pictures/growth.svg" in text
    goals = {goal["goal"]: goal["holds"] for goal in report.goals_of(_result())}
    assert goals["≤ 0.21 requests per message at saturation"] is True
    assert goals["CPU per message ≤ 0.42 × the floor on asyncio"] is True
    assert goals["messages per second ≥ 3 × the best Python peer"] is False
    assert goals["messages per second ≥ sqs-consumer's (Node)"] is True
    assert goals["p99 from put to last receive ≤ 20 ms"] is False
    assert goals["p99 send to start idle ≤ 50 ms"] is None


def test_the_picture_is_well_formed() -> None:
    rows = [{"in_flight": size, "per_second": size * 3.5, "held": size * 1e6} for size in (1, 10, 100)]
    drawn = ElementTree.fromstring(picture.growth(rows))
    circles = [one for one in drawn.iter() if one.tag.endswith("circle")]
    assert len(circles) == 2 * len(rows)
    assert all(60 <= float(one.attrib["cy"]) <= 250 for one in circles)
