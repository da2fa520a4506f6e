"""Rows 1 to 3 at saturation: a consumer against a backlog, until it is gone or the time is over."""

import time
from dataclasses import dataclass
from pathlib import Path

from .consumers import CannotRun, Consumer, Place
from .processes import Process
from .stubbed import Stub

LOOK = 0.1
"""Seconds between two looks at what the stub has counted."""

START_SECONDS = 40.0
"""How long a consumer may take to delete its first messages."""


@dataclass(frozen=True)
class Saturation:
    """What one consumer did to one backlog."""

    messages: int
    """Deleted within the window that was measured."""
    seconds: float
    cpu: float
    """Seconds of CPU, user and system, of all the consumer's processes within the window."""
    stub_cpu: float
    requests: dict[str, int]
    """Calls within the window, by action."""

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_per_message(self) -> float:
        return self.cpu / self.messages

    @property
    def requests_per_message(self) -> float:
        return sum(self.requests.values()) / self.messages

    @property
    def stub_share(self) -> float:
        """How much of its core the stub used: where it nears one, the stub is what was measured."""
        return self.stub_cpu / self.seconds


def saturate(
    consumer: Consumer, stub: Stub, place: Place, *, backlog: int, seconds: float, core: int | None
) -> Saturation:
    """Run the consumer against `backlog` messages for at most so many seconds, warming up not counted."""
    fill(consumer, stub, place, backlog)
    with Process(consumer.command(place), consumer.environ(place), core=core, folder=Path.cwd()) as process:
        # The window begins when a tenth is done, or after two seconds of work, and ends before the backlog does: an empty
        # queue is not saturation.
        first = _until(process, stub, place, lambda stats, _: stats["deleted"] > 0, START_SECONDS)
        began = time.monotonic()
        first = _until(
            process, stub, place,
            lambda stats, _: stats["deleted"] >= backlog / 10 or time.monotonic() > began + 2, START_SECONDS,
        )  # fmt: skip
        last = _until(process, stub, place, lambda stats, _: stats["received"] >= 0.9 * backlog, seconds, give_up=False)
    stub.control("purge", queue=place.queue)
    (before, before_cpu), (after, after_cpu) = first, last
    requests = {action: count - before["calls"].get(action, 0) for action, count in after["calls"].items()}
    done = after["deleted"] - before["deleted"]
    if done <= 0:
        raise CannotRun("it stopped deleting messages")
    return Saturation(
        done, after["now"] - before["now"], after_cpu - before_cpu, after["cpu"] - before["cpu"],
        {action: count for action, count in requests.items() if count},
    )  # fmt: skip


def fill(consumer: Consumer, stub: Stub, place: Place, backlog: int) -> None:
    """A queue with so many messages that this consumer understands."""
    stub.control("load", queue=place.queue, count=0, body="")
    consumer.send(place)
    sent = stub.control("stats", queue=place.queue)["sent"]
    if sent:
        stub.control("multiply", queue=place.queue, count=backlog - 1)
    else:
        stub.control("load", queue=place.queue, count=backlog, body=consumer.body)
    stub.control("reset", queue=place.queue)


def _until(process, stub, place, reached, seconds, give_up=True):  # type: ignore[no-untyped-def]
    """Look until `reached`; returns what the stub has counted and the CPU that the consumer has used."""
    deadline = time.monotonic() + seconds
    while True:
        stats, cpu = stub.control("stats", queue=place.queue), process.cpu()
        if reached(stats, cpu):
            return stats, cpu
        if not process.running:
            raise CannotRun(f"it ended by itself: {process.output().strip()[-400:]}")
        if time.monotonic() > deadline:
            if give_up:
                raise CannotRun(f"no message was done within {seconds:g} s: {process.output().strip()[-400:]}")
            return stats, cpu
        time.sleep(LOOK)
