"""Row 4: from the moment at which SQS has a message to the moment at which its work starts.

The stub puts the messages itself, at known times of the machine's one monotonic clock, and each consumer's task writes down
when it starts. The n-th start belongs to the n-th message, which is exact where one message is under way at a time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .consumers import CannotRun, Consumer, Place
from .processes import Process
from .saturation import START_SECONDS, fill
from .stubbed import Stub

IDLE_EVERY = 0.1
IDLE_MESSAGES = 100
LOADED_SECONDS = 5.0
LOADED_SHARE = 0.5
"""Of what the same consumer did at saturation."""

BURST_EVERY = 0.02


def latency(
    consumer: Consumer, stub: Stub, place: Place, *, rate: float, folder: Path, core: int | None
) -> dict[str, dict[str, float]]:
    """`idle` and `loaded`: p50 and p99 in seconds. `rate` is what the consumer does at saturation, in messages per second."""
    stamps = folder / f"{place.queue}.stamps"
    stamps.write_text("")
    place = replace(
        place, stamps=stamps, settings={**place.settings, "MESSAGE_PROCESSOR": "tests.bench.processors:stamp"}
    )
    fill(consumer, stub, place, 1)
    stub.control("keep", queue=place.queue)
    burst = max(1, round(rate * LOADED_SHARE * BURST_EVERY))
    loaded = burst * int(LOADED_SECONDS / BURST_EVERY)
    with Process(consumer.command(place), consumer.environ(place), core=core, folder=Path.cwd()) as process:
        _wait(process, stamps, 1)
        time.sleep(1)
        found = {}
        for name, count, every, at_once in (
            ("idle", IDLE_MESSAGES, IDLE_EVERY, 1),
            ("loaded", loaded, BURST_EVERY, burst),
        ):
            before = len(stamps.read_text().splitlines())
            stub.control("reset", queue=place.queue)
            stub.control("schedule", queue=place.queue, count=count, every=every, burst=at_once)
            time.sleep(count / at_once * every)
            _wait(process, stamps, before + count)
            started = sorted(float(line) for line in stamps.read_text().splitlines()[before:])
            sent = stub.control("sent_at", queue=place.queue)["at"]
            waits = [start - put for put, start in zip(sent, started, strict=False)]
            found[name] = {"p50": percentile(waits, 50), "p99": percentile(waits, 99), "messages": len(waits)}
        found["loaded"]["per_second"] = burst / BURST_EVERY
        return found


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: a value that occurred."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def _wait(process: Process, stamps: Path, count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (done := len(stamps.read_text().splitlines())) < count:
        if not process.running or time.monotonic() > deadline:
            raise CannotRun(f"{done} of {count} messages were started: {process.output().strip()[-300:]}")
        time.sleep(0.05)
