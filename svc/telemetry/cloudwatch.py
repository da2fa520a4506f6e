"""CloudWatch: the main figures, once a minute and once more at the stop, when `CLOUDWATCH_NAMESPACE` is set.

`Figures` adds up what happens within the minute; `Publisher` sends it, in one PutMetricData. It is never in the way: it runs
beside the work, every call has a bound, the stop waits `LAST` seconds for it at most, and whatever goes wrong in it, of whatever
kind, ends in one line of the log and in another try a minute later. Sums that could not be sent go out with the next minute's.

The only dimension is the queue's name. So all instances on a queue write to the same metrics: the statistic Sum adds them up.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
import trio

from svc.consumer.breaker_state import State
from svc.consumer.ledger import Entry, Outcome
from svc.consumer.observer import Action, Result, Unobserved
from svc.consumer.queue import Received
from svc.consumer.worker import WorkerStatistics
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase
from svc.settings import Settings, queue_address
from svc.sqs import aws_client
from svc.telemetry.backlog import BacklogFigures

log = structlog.get_logger(__name__)

EVERY = 60.0
"""Seconds between two publications: CloudWatch's own standard resolution."""

CALL = 10.0
"""Seconds that CloudWatch may take to answer."""

LAST = 2.0
"""Seconds that the stop waits for the last publication."""

KEPT = 3600.0
"""Seconds for which sums are kept that could not be published; then they are given up."""

COUNTED = {outcome: f"Messages{outcome.value.capitalize()}" for outcome in Outcome}
COUNTS = (*COUNTED.values(), "Receives", "EmptyReceives", "SqsRequests", "Drains", "DrainsExpired")
TIMES = ("QueueWait", "ProcessingTime")

Snapshots = Callable[[], tuple[WorkerStatistics, MaintenanceState]]

Opener = Callable[[], AbstractAsyncContextManager[Sequence[aws_client.Call]]]


@dataclass(slots=True)
class Spread:
    """A statistic set: how many values, their sum, the least and the greatest."""

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def add(self, value: float) -> None:
        self.absorb(Spread(1, value, value, value))

    def absorb(self, other: "Spread") -> None:
        if other.count:
            self.least = min(self.least, other.least) if self.count else other.least
            self.most = max(self.most, other.most) if self.count else other.most
            self.count += other.count
            self.total += other.total


@dataclass(slots=True)
class Minute:
    """What happened since `since` (Trio time) and has not been published."""

    since: float = field(default_factory=trio.current_time)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    times: dict[str, Spread] = field(default_factory=lambda: {name: Spread() for name in TIMES})

    def absorb(self, later: "Minute") -> None:
        for name, count in later.counts.items():
            self.counts[name] += count
        for name, spread in later.times.items():
            self.times[name].absorb(spread)


class Figures(Unobserved):
    """An `observer.Observer`: a few additions for each message."""

    def __init__(self) -> None:
        self.minute = Minute()

    def landed(self, entry: Entry) -> None:
        if entry.message.sent_at is not None:
            # SQS's clock against ours: a small difference must not count as a negative time.
            waited = (datetime.now(UTC) - entry.message.sent_at).total_seconds()
            self.minute.times["QueueWait"].add(max(0.0, waited))

    def worked(self, entry: Entry, error: BaseException | None) -> None:
        assert entry.began_at is not None
        self.minute.times["ProcessingTime"].add(trio.current_time() - entry.began_at)

    def ended(self, entry: Entry) -> None:
        assert entry.ended is not None
        self.minute.counts[COUNTED[entry.ended]] += 1

    def called(self, action: Action, result: Result, seconds: float, entries: int) -> None:
        self.minute.counts["SqsRequests"] += 1

    def received(self, deliveries: Sequence[Received]) -> None:
        self.minute.counts["Receives"] += 1
        self.minute.counts["EmptyReceives"] += not deliveries

    def drain_ended(self, report: DrainReport) -> None:
        self.minute.counts["Drains"] += 1
        self.minute.counts["DrainsExpired"] += report.outcome is DrainOutcome.EXPIRED


class Publisher:
    """Sends `figures`, and what `look` sees at that moment. `opened` opens a client of CloudWatch."""

    def __init__(
        self,
        settings: Settings,
        figures: Figures,
        look: Snapshots,
        opened: Opener | None = None,
        *,
        backlog: Callable[[], BacklogFigures | None] = lambda: None,
    ) -> None:
        self._backlog = backlog
        self._namespace = settings.cloudwatch_namespace
        self._queue_name = queue_address(settings.sqs_queue_url).name
        self._figures = figures
        self._look = look
        self._opened = opened or (lambda: aws_client.opened(settings, [aws_client.Pool(1)], "cloudwatch"))
        self._failing_since: float | None = None

    async def run(self, stop: trio.Event) -> None:
        """Ends at most `LAST` seconds after `stop`. Raises nothing."""
        self._backlog()  # so that it is known in a minute
        with trio.CancelScope() as bound:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_soon_after, stop, bound)
                await self._publish_until(stop)
                nursery.cancel_scope.cancel(reason="the last figures are published")

    async def _publish_until(self, stop: trio.Event) -> None:
        last = False
        while not last:
            try:
                async with self._opened() as (call,):
                    while not last:
                        with trio.move_on_after(EVERY):
                            await stop.wait()
                        last = stop.is_set()
                        await self._publish(call)
            except Exception as error:
                self._failed(error)
                with trio.move_on_after(EVERY):
                    await stop.wait()
                last = stop.is_set()

    async def _publish(self, call: Callable[..., Awaitable[object]]) -> None:
        minute, self._figures.minute = self._figures.minute, Minute()
        try:
            with trio.fail_after(CALL):
                await call("put_metric_data", Namespace=self._namespace, MetricData=self._data(minute))
        except Exception as error:
            if trio.current_time() - minute.since < KEPT:
                minute.absorb(self._figures.minute)
                self._figures.minute = minute
            self._failed(error)
        else:
            if self._failing_since is not None:
                log.info(
                    "CloudWatch takes the figures again",
                    after_seconds=round(trio.current_time() - self._failing_since, 1),
                )
            self._failing_since = None

    def _failed(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = trio.current_time()
            log.warning("CloudWatch does not take the figures; tried again every minute", error=_told(error))

    def _data(self, minute: Minute) -> list[dict[str, Any]]:
        worker, maintenance = self._look()
        now = {
            "MessagesInFlight": worker.counts.in_flight,
            "Draining": maintenance.phase in (Phase.DRAINING, Phase.STOPPING),
            "InMaintenance": maintenance.phase is Phase.MAINTENANCE,
            "BreakerOpen": worker.breaker is not None and worker.breaker.state is not State.CLOSED,
        }
        common = {
            "Timestamp": datetime.now(UTC),
            "Dimensions": [{"Name": "QueueName", "Value": self._queue_name}],
        }
        return [
            *(
                {"MetricName": name, "Unit": "Count", "Value": float(count), **common}
                for name, count in minute.counts.items()
            ),
            *({"MetricName": name, "Unit": "Count", "Value": float(value), **common} for name, value in now.items()),
            *(
                {"MetricName": name, "Unit": "Seconds", "StatisticValues": _statistics(spread), **common}
                for name, spread in minute.times.items()
                if spread.count
            ),
            *({**datum, **common} for datum in _of_the_backlog(self._backlog())),
        ]


def _of_the_backlog(held: BacklogFigures | None) -> list[dict[str, Any]]:
    """What is known. All instances tell of the same queue: the statistic Average, and not Sum."""
    if held is None:
        return []
    values = (
        ("Backlog", "Count", float(held.messages)),
        ("BacklogPerInstance", "Count", held.per_instance),
        ("BacklogTime", "Seconds", held.seconds),
    )
    return [{"MetricName": name, "Unit": unit, "Value": value} for name, unit, value in values if value is not None]


def _statistics(spread: Spread) -> Mapping[str, float]:
    return {
        "SampleCount": float(spread.count),
        "Sum": spread.total,
        "Minimum": spread.least,
        "Maximum": spread.most,
    }


async def _end_soon_after(stop: trio.Event, bound: trio.CancelScope) -> None:
    await stop.wait()
    bound.deadline = trio.current_time() + LAST


def _told(error: Exception) -> str:
    """The error in words. Of what is unknown only the type: it may hold signed headers."""
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CALL:g} s"
    told = getattr(error, "response", None)  # a botocore ClientError
    if isinstance(told, Mapping):
        of_aws = told.get("Error", {})
        code = str(of_aws.get("Code", "an error without a code"))
        advice = "; the role needs cloudwatch:PutMetricData" if "Denied" in code or "Authoriz" in code else ""
        return f"{code}: {str(of_aws.get('Message', ''))[:300]}{advice}"
    return type(error).__name__
