"""How much waits in the queue, for those who scale: messages, messages for each instance, seconds at the present rate.

One question to SQS and one to etcd a minute, and only while somebody looks (a scrape, or CloudWatch). What is not known is left
out: a scaler that gets no figure waits, one that gets a wrong one acts. The rate is this instance's own, times the instances: it
is right where the load is even.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from svc.consumer.queue import QueueError, number_in
from svc.defects import Defects
from svc.maintenance.orders import OutOfReach, Switchboard
from svc.wakeup import WakeUp

EVERY = 60.0
"""Seconds between two questions: CloudWatch's resolution, and what a call to SQS is worth."""

WANTED = 300.0
"""Seconds after the last look for which it is asked on."""

STALE = 180.0
"""Seconds after which an answer is no figure any more."""

RATE_OVER = 300.0
"""Seconds over which messages are counted for the rate: work that takes minutes ends in lumps."""

RATE_LEAST = 45.0
"""Seconds below which there is no rate."""

PATIENCE = 10.0
"""Seconds that the two answers are waited for."""


@dataclass(frozen=True, slots=True)
class BacklogFigures:
    messages: int
    """That wait, as SQS says: approximate. Without those in flight or delayed."""
    instances: int | None
    """Registered in the fleet for this queue, this one included. None: etcd does not say."""
    seconds: float | None
    """Until all of them are processed at the present rate. None: there is no rate, because nothing is processed."""

    @property
    def per_instance(self) -> float | None:
        return None if self.instances is None else self.messages / self.instances


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    messages: int
    instances: int | None


class Backlog:
    """`attributes` asks SQS, `instances` the fleet, `done` counts the messages that this instance has taken out of the queue."""

    def __init__(
        self,
        attributes: Callable[[], Awaitable[Mapping[str, str]]],
        instances: Callable[[], Awaitable[int]],
        done: Callable[[], int],
        defects: Defects,
    ) -> None:
        self._attributes = attributes
        self._instances = instances
        self._done = done
        self._defects = defects
        self._wake_up = WakeUp()
        self._wanted_at = -float("inf")
        self._reading: _Reading | None = None
        self._counted: deque[tuple[float, int]] = deque()

    def look(self) -> BacklogFigures | None:
        """What is known; None: nothing. Whoever looks lets it be asked on."""
        now = trio.current_time()
        self._wanted_at = now
        self._wake_up.notify()
        held = self._reading
        if held is None or now - held.at > STALE:
            return None
        return BacklogFigures(held.messages, held.instances, self._seconds(held, now))

    def _seconds(self, held: _Reading, now: float) -> float | None:
        if not held.messages:
            return 0.0
        since, before = self._counted[0]
        done = self._done() - before
        if held.instances is None or now - since < RATE_LEAST or not done:
            return None
        return held.messages * (now - since) / (done * held.instances)

    async def run(self) -> None:
        """Ends only by cancellation."""
        while True:
            await self._wake_up.wait_until(lambda: trio.current_time() - self._wanted_at < WANTED)
            await self._read()
            await trio.sleep(EVERY)

    async def _read(self) -> None:
        now = trio.current_time()
        self._counted.append((now, self._done()))
        while now - self._counted[0][0] > RATE_OVER:
            self._counted.popleft()
        try:
            with trio.move_on_after(PATIENCE):
                messages = number_in(await self._attributes(), "ApproximateNumberOfMessages")
                if messages is not None:
                    self._reading = _Reading(now, messages, await self._count())
        except QueueError:
            pass  # the probe tells; what was read last is good for a while
        except Exception as defect:
            self._defects.note("backlog", defect)

    async def _count(self) -> int | None:
        try:
            return max(1, await self._instances())
        except OutOfReach:
            return None


def instances_of(board: Switchboard, queue_url: str) -> Callable[[], Awaitable[int]]:
    """Counts those that are registered for this queue. It raises `OutOfReach`."""

    async def count() -> int:
        fleet = await board.look()
        return sum(entry.held is not None and entry.held.queue == queue_url for entry in fleet.entries)

    return count
