"""SQS in trouble, in virtual time: how often it is asked meanwhile, how soon the work goes on, what is told, and that nothing is
forgotten. That real connections which are refused, reset, or mute come out as these errors is `test_sqs.py`'s part."""

from collections.abc import Awaitable, Callable, Mapping

import pytest
import trio
from structlog.testing import capture_logs

from svc import Message
from svc.consumer.intake import BACKOFF_CAP, MISCONFIGURED_CAP
from svc.maintenance.handler import DrainOutcome
from svc.testing import Fault, SimulatedQueue
from svc.testing.service import SimulatedService

LASTS = 600.0
"""Seconds of an outage, from 5 on."""

TRANSIENT = ("error", "throttle", "timeout-before")
FATAL = ("denied", "no-queue")


def outage(what: str, lasts: float = LASTS, kind: str | None = None) -> list[Fault]:
    return [Fault(what, kind, start=5, end=5 + lasts)]  # type: ignore[arg-type]


def events(lines: list, *texts: str) -> list[str]:
    return [line["event"] for line in lines if any(text in line["event"] for text in texts)]


@pytest.mark.parametrize("what", [*TRANSIENT, *FATAL])
async def test_an_outage_costs_few_calls_ends_by_itself_and_is_told_once(autojump_clock, what: str) -> None:
    queue = SimulatedQueue(faults=outage(what))
    cap = MISCONFIGURED_CAP if what in FATAL else BACKOFF_CAP
    with capture_logs() as lines:
        async with SimulatedService(queue, SQS_WAIT_TIME_SECONDS="1") as service:
            await trio.sleep(100)
            held = service.core.worker.statistics()
            assert held.queue_error is not None
            assert held.queue_error_since == pytest.approx(5, abs=7)
            before = queue.calls["receive"]
            await trio.sleep(400)
            asked = queue.calls["receive"] - before
            patience = 6 if what == "timeout-before" else 0  # each call waits for its answer as long
            assert 400 / (cap + patience) - 2 <= asked <= 400 / (cap / 2 + patience) + 2
            assert service.core.worker.statistics().queue_error_since == held.queue_error_since
            queue.put("afterwards")
            await service.idle()
            assert service.processed == ["afterwards"]
            assert trio.current_time() <= 5 + LASTS + cap + patience + 1
            held = service.core.worker.statistics()
            assert (held.queue_error, held.queue_error_since) == (None, None)
    told = events(lines, "receiving failed", "receiving works")
    assert told == ["receiving failed, trying again", "receiving works again"]
    error = next(line["error"] for line in lines if "receiving failed" in line["event"])
    if what in FATAL:
        assert any(word in error for word in ("SQS_QUEUE_URL", "policy", "AWS_REGION"))  # what to do


@pytest.mark.parametrize(
    "what",
    [
        "error",
        *(pytest.param(more, marks=pytest.mark.slow) for more in ("denied", "throttle", "timeout-before", "no-queue")),
    ],
)
async def test_many_receivers_back_off_as_one(autojump_clock, what: str) -> None:
    queue = SimulatedQueue(faults=outage(what, kind="receive"), request_seconds=(0.1, 0.2))
    for number in range(3000):
        queue.put(str(number))

    async def work(message: Message) -> None:
        await trio.sleep(0.1)

    async with SimulatedService(queue, work, MAX_CONCURRENCY="200", SQS_WAIT_TIME_SECONDS="1") as service:
        await trio.sleep(4.9)
        assert service.core.worker.statistics().receives_outstanding > 3
        await trio.sleep(15)
        before = queue.calls["receive"]
        await trio.sleep(60)
        assert queue.calls["receive"] - before <= 60 / (BACKOFF_CAP / 2) + 2


@pytest.mark.parametrize("kind", ["delete", "change_visibility"])
@pytest.mark.parametrize("what", [*TRANSIENT, *FATAL])
async def test_settling_and_extending_in_an_outage(autojump_clock, what: str, kind: str) -> None:
    """Shorter than the lease: everything is settled in the end, once, and the calls are bounded."""
    queue = SimulatedQueue(faults=outage(what, 12, kind))
    for number in range(100):
        queue.put(str(number))
    seconds = 6 if kind == "delete" else 40  # a lease of 30 is extended at 20 at the latest

    async def work(message: Message) -> None:
        await trio.sleep(seconds)

    with capture_logs() as lines:
        async with SimulatedService(queue, work, SQS_WAIT_TIME_SECONDS="1") as service:
            await service.idle()
            assert len(service.processed) == 100
            assert service.lost == []
            assert len(service.runs) == 100
    # Ten batches of ten, of which each is tried every 2 s at the most; two heartbeats each.
    assert queue.calls["delete"] <= 10 + 10 * 12
    assert queue.calls["change_visibility"] <= 2 * 10 + 10 * 12
    if kind == "delete":
        assert events(lines, "settled") == ["messages could not be settled, trying again", "messages are settled again"]


@pytest.mark.expects_errors
async def test_a_drain_in_an_outage_ends_on_time_and_names_what_it_could_not_settle(autojump_clock) -> None:
    queue = SimulatedQueue(faults=outage("timeout-before", 1000))
    ids = {queue.put(str(number)) for number in range(10)}

    async def work(message: Message) -> None:
        await trio.sleep(8)

    async with SimulatedService(queue, work, DRAIN_TIMEOUT="10s", SQS_WAIT_TIME_SECONDS="1") as service:
        await trio.sleep(7)
        began = trio.current_time()
        service.maintenance("on")
        report = await service.drained()
        assert trio.current_time() - began <= 11
        assert report.outcome is DrainOutcome.EXPIRED
        figures = report.handlers["sqs"]
        assert {*figures["unsettled"], *figures["lost_ids"], *figures["deferred"]} == ids
        assert report.error is not None


def work(seconds: float) -> Callable[[Message], Awaitable[None]]:
    async def handle(message: Message) -> None:
        await trio.sleep(seconds)

    return handle


@pytest.mark.parametrize("what", ["unnamed", "unnamed-after"])
async def test_what_an_answer_does_not_name_is_not_confirmed(autojump_clock, what: str) -> None:
    queue = SimulatedQueue(faults=[Fault(what, "delete", nth=1, entries=(0, 2))])  # type: ignore[arg-type]
    for number in range(3):
        queue.put(str(number))
    async with SimulatedService(queue, work(1)) as service:
        await service.wait_for(lambda: queue.calls["delete"] == 1)
        await service.idle()
        assert queue.calls["delete"] == 2
        assert service.core.worker.statistics().counts.processed == 3
        assert sorted(service.processed) == ["0", "1", "2"]


async def test_what_stays_unconfirmed_is_told_and_lost_and_not_processed_again(autojump_clock) -> None:
    queue = SimulatedQueue(faults=[Fault("unnamed", "delete", start=0, end=31)])
    message_id = queue.put("once")
    with capture_logs() as lines:
        async with SimulatedService(queue, work(1)) as service:
            with trio.fail_after(100):
                await service.wait_for(lambda: queue.deleted == [message_id])
            assert (service.core.worker.statistics().counts.lost, len(service.runs)) == (1, 1)
    until_lost = lines[: [line["event"] for line in lines].index("message lost")]
    told = [line for line in until_lost if "could not be settled" in line["event"]]
    assert [(line["message_id"], line["attempts"], line["error"]) for line in told] == [
        (message_id, 3, "the answer does not name it")
    ]
    [lost] = [line for line in lines if line["event"] == "message lost"]
    assert "its lease ran out before the queue confirmed delete: the answer does not name it" in lost["error"]


@pytest.mark.parametrize(
    ("what", "why"),
    [("partial", "InternalError: An internal error"), ("unnamed", "does not name it"), ("error", "broke down")],
)
async def test_why_a_lease_is_not_extended_is_told(autojump_clock, what: str, why: str) -> None:
    queue = SimulatedQueue(faults=[Fault(what, "change_visibility")])  # type: ignore[arg-type]
    queue.put("long")
    with capture_logs() as lines:
        async with SimulatedService(queue, work(100)) as service:
            with trio.fail_after(31):
                await service.wait_for(lambda: service.core.worker.statistics().counts.lost == 1, every=1)
            assert trio.current_time() == pytest.approx(30)
    until_lost = lines[: [line["event"] for line in lines].index("message lost")]
    [told] = [line for line in until_lost if "could not be extended" in line["event"]]
    assert why in told["error"]
    [lost, *_] = [line for line in lines if line["event"] == "message lost"]
    assert lost["error"].startswith("its lease ran out before an extension was confirmed: ")
    assert why in lost["error"]


@pytest.mark.parametrize("refused", [0, 1])
async def test_the_one_of_a_group_whose_lease_is_not_extended_has_its_next_attempt_in_time(
    autojump_clock, refused: int
) -> None:
    queue = SimulatedQueue(faults=[Fault("partial", "change_visibility", nth=1, entries=(refused,))])
    for name in "ab":
        queue.put(name)
    async with SimulatedService(queue, work(35)) as service:
        await service.idle()
        assert queue.calls["receive"] <= 3  # they came together
        counts = service.core.worker.statistics().counts
        assert (counts.processed, counts.lost) == (2, 0)


class NamedWrongly(SimulatedQueue):
    """A FIFO queue behind a URL that does not end in .fifo."""

    known = False

    @property
    def fifo(self) -> bool | None:  # type: ignore[override]
        return super().fifo if self.known else None

    async def attributes(self) -> Mapping[str, str]:
        found = await super().attributes()
        self.known = True
        return found


async def test_a_queue_is_fifo_when_its_attributes_say_so(autojump_clock) -> None:
    queue = NamedWrongly(fifo=True, content_deduplication=True)
    async with SimulatedService(queue, work(5)) as service:
        assert not service.settings.sqs_queue_url.endswith(".fifo")
        await trio.sleep(1)
        for number in range(3):
            queue.put(str(number), group_id="group")
        await service.idle()
        began = [run.began for run in service.runs]
        assert service.processed == ["0", "1", "2"]
        assert began[1] - began[0] >= 5
        assert began[2] - began[1] >= 5
