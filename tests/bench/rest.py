"""What a consumer costs before the first message and between messages: CPU of its start, memory after it, CPU at rest."""

import time
from pathlib import Path

from .consumers import Consumer, Place
from .processes import Process
from .saturation import START_SECONDS, _until
from .stubbed import Stub

SETTLE_SECONDS = 5.0
"""After the first receive, before what is at rest is measured."""


def rest(consumer: Consumer, stub: Stub, place: Place, *, window: float, core: int | None) -> dict[str, float]:
    """`start_cpu` in seconds until the first receive, `resident` in bytes some seconds after it, `cpu_per_second` over `window`
    seconds in which nothing happens."""
    stub.control("load", queue=place.queue, count=0, body="")
    with Process(consumer.command(place), consumer.environ(place), core=core, folder=Path.cwd()) as process:
        _, started = _until(
            process, stub, place, lambda stats, _: stats["calls"].get("ReceiveMessage", 0) > 0, START_SECONDS
        )
        time.sleep(SETTLE_SECONDS)
        before, began = process.cpu(), time.monotonic()
        time.sleep(window)
        used = process.cpu() - before
        return {
            "start_cpu": started, "resident": float(process.resident()),
            "cpu_per_second": used / (time.monotonic() - began),
        }  # fmt: skip
