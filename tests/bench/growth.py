"""Row 6: what more messages in flight cost. For each MAX_CONCURRENCY: messages per second without work, and the memory of the
process while so many messages are held."""

import time
from dataclasses import replace
from pathlib import Path

from .consumers import PLAIN_BODY, CannotRun, Place, Svc
from .processes import Process
from .saturation import START_SECONDS, saturate
from .stubbed import Stub

SIZES = (1, 10, 100, 1_000, 10_000)

HELD_SECONDS = 12.0
"""How long each message's task sleeps: long enough for 10,000 to be taken before the first is done."""


def growth(
    svc: Svc, stub: Stub, etcd: str, *, sizes: tuple[int, ...], backlog: int, seconds: float, core: int | None
) -> list[dict[str, float]]:
    found = []
    for size in sizes:
        place = Place(stub.url, f"svc-growth-{size}", etcd, {"MAX_CONCURRENCY": str(size)})
        done = saturate(svc, stub, place, backlog=backlog, seconds=seconds, core=core)
        held = replace(place, queue=f"svc-held-{size}")
        found.append(
            {"in_flight": size, "per_second": done.per_second, "cpu_per_message": done.cpu_per_message}
            | memory(svc, stub, held, size=size, core=core)
        )
    return found


def memory(svc: Svc, stub: Stub, place: Place, *, size: int, core: int | None) -> dict[str, float]:
    """Bytes resident: `base` with nothing in flight, `held` with `size` messages in flight, `again` a second time."""
    settings = {"MESSAGE_PROCESSOR": "tests.bench.processors:sleep", "BENCH_WORK_SECONDS": str(HELD_SECONDS)}
    place = replace(place, settings={**place.settings, **settings})
    stub.control("load", queue=place.queue, count=0, body="")
    with Process(svc.command(place), svc.environ(place), core=core, folder=Path.cwd()) as process:
        _until(process, lambda: stub.control("stats", queue=place.queue)["calls"].get("ReceiveMessage", 0) > 0)
        time.sleep(1.5)
        found: dict[str, float] = {"base": process.resident()}
        for name in ("held", "again") if size == max(SIZES) else ("held",):
            taken = stub.control("stats", queue=place.queue)["received"] + size
            stub.control("load", queue=place.queue, count=size, body=PLAIN_BODY)
            _until(process, lambda taken=taken: stub.control("stats", queue=place.queue)["received"] >= taken)  # type: ignore[misc]
            # Nothing has been deleted yet: all are in flight. (Or this says so, and there is no figure.)
            time.sleep(0.5)
            left = sum(stub.control("counts", queue=place.queue).values())
            if left < size:
                raise CannotRun(f"{left} of {size} messages are left: they cannot all be in flight at once")
            found[name] = process.resident()
            if size == max(SIZES):
                _until(process, lambda: not stub.control("counts", queue=place.queue)["in flight"])
        found["per_message"] = (max(found["held"], found.get("again", 0)) - found["base"]) / size - len(PLAIN_BODY)
        return found


def _until(process: Process, reached, seconds: float = START_SECONDS) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not reached():
        if not process.running or time.monotonic() > deadline:
            raise CannotRun(f"not within {seconds:g} s: {process.output().strip()[-300:]}")
        time.sleep(0.1)
