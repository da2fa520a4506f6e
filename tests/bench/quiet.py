"""Row 3 where little happens: what an idle consumer asks of SQS in an hour, and what one message a second costs.

All consumers at once, each with one process on an empty queue and another on a queue that gets a message a second: they sleep
nearly all the time, so that they do not disturb each other, and the time is spent once.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from .consumers import PLAIN_BODY, CannotRun, Consumer, Place
from .processes import Process
from .saturation import START_SECONDS
from .stubbed import Stub

WINDOW = 60.0
"""Seconds that are counted: three long polls of 20 s."""

EVERY = 1.0
"""Seconds between two messages of the trickle."""


def quiet(
    consumers: Iterable[Consumer], stub: Stub, etcd: str, *, core: int | None, window: float = WINDOW
) -> dict[str, dict[str, float]]:
    """For each consumer: `receives_per_hour` idle, and `requests_per_message` at a message a second."""
    with ExitStack() as stack:
        running: dict[str, tuple[Place, Place]] = {}
        for one in consumers:
            try:
                idle, trickle = Place(stub.url, f"{one.key}-idle", etcd), Place(stub.url, f"{one.key}-trickle", etcd)
                for place in (idle, trickle):
                    stub.control("load", queue=place.queue, count=0, body="")
                    one.send(
                        place
                    )  # a first message, from which the stub makes the others; an idle queue's is consumed
                    if not stub.control("stats", queue=place.queue)["sent"]:
                        stub.control("load", queue=place.queue, count=1, body=PLAIN_BODY)
                    stub.control("keep", queue=place.queue)
                    stack.enter_context(Process(one.command(place), one.environ(place), core=core, folder=Path.cwd()))
                running[one.key] = (idle, trickle)
            except CannotRun:
                continue  # its row says so already
        places = [place for pair in running.values() for place in pair]
        deadline = time.monotonic() + START_SECONDS + 5 * len(places)
        while time.monotonic() < deadline and not all(
            stub.control("stats", queue=place.queue)["deleted"] for place in places
        ):
            time.sleep(0.1)
        time.sleep(1)  # what starting up brought with it is over
        count = int(window / EVERY)
        for _, trickle in running.values():
            stub.control("reset", queue=trickle.queue)
            stub.control("schedule", queue=trickle.queue, count=count, every=EVERY)
        began = time.monotonic()
        time.sleep(window)
        found = {}
        for key, (idle, trickle) in running.items():
            receives = [
                at for at in stub.control("receives", queue=idle.queue, since=began)["at"] if at < began + window
            ]
            found[key] = {"receives_per_hour": len(receives) * 3600 / window}
            stats = stub.control("stats", queue=trickle.queue)
            if stats["deleted"]:
                found[key]["requests_per_message"] = sum(stats["calls"].values()) / stats["deleted"]
        return found
