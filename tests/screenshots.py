"""The pictures of the documents, made anew: the real page on a simulated queue, after a quarter of an hour of simulated traffic.

    python -m tests.screenshots            # all of them, into docs/pictures/; needs chromium and chromedriver
    python -m tests.screenshots draining   # one

A quarter of an hour passes in a few seconds: the service's clock goes from one event to the next until the browser looks.
"""

import base64
import json
import logging
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from svc.testing import Outage
from svc.testing.faults import Fault
from tests import browser
from tests.browser import Browser
from tests.stage import Stage, stage

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
WIDE, PHONE = (1180, 900), (390, 844)
WARM = 905.0
"""Seconds of traffic before the picture."""


async def traffic(held: Stage) -> None:
    """Orders come in waves; most take some seconds, now and then one fails."""
    rng = random.Random(7)
    while True:
        now = trio.current_time()
        rate = 2.2 + 1.1 * math.sin(now / 140) + 0.5 * math.sin(now / 31)
        await trio.sleep(rng.expovariate(max(0.3, rate)))
        todo: dict[str, object] = {"seconds": round(rng.uniform(1, 9), 1)}
        if rng.random() < 0.006:
            todo = {
                "seconds": 0.4,
                "fail": rng.choice(("warehouse: no such article 4711", "payment: card was declined")),
            }
        held.queue.put(json.dumps(todo))


def running(held: Stage) -> None:
    held.skip(WARM)


def draining(held: Stage) -> None:
    running(held)
    held.put(*({"seconds": seconds} for seconds in (14, 17, 19, 22, 26)))
    held.skip(2)
    held.do(lambda: held.switch.set('{"enabled": true, "reason": "database upgrade", "by": "ops"}'))
    held.skip(5)


def maintenance(held: Stage) -> None:
    draining(held)
    held.skip(90)


def expired(held: Stage) -> None:
    running(held)
    held.put({"seconds": 3000}, {"seconds": 3000})
    held.skip(2)
    held.do(lambda: held.switch.set('{"enabled": true, "reason": "database upgrade", "by": "ops"}'))
    held.skip(75)


def etcd_lost(held: Stage) -> None:
    running(held)


def sqs_lost(held: Stage) -> None:
    running(held)
    held.do(lambda: held.faults.append(Fault("error")))
    held.skip(45)


PICTURES: dict[str, tuple[Callable[[Stage], None], str]] = {
    "running": (running, "Running"),
    "draining": (draining, "Draining"),
    "maintenance": (maintenance, "In maintenance"),
    "drain-expired": (expired, "In maintenance, but the drain ran out of time"),
    "etcd-lost": (etcd_lost, "Running"),
    "sqs-lost": (sqs_lost, "The queue is out of reach"),
}


def take(page: Browser, name: str, *, size: tuple[int, int], dark: bool = False) -> None:
    page.look(size=size, dark=dark, still=True)
    page.run("scrollTo(0, 0)")
    page.until(lambda: page.run("return document.getAnimations().length") == 0)
    taken = page.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path = FOLDER / f"{name}.png"
    path.write_bytes(base64.b64decode(taken["data"]))
    print(f"{path.relative_to(FOLDER.parent)}: {path.stat().st_size // 1024} KiB", flush=True)


def main() -> None:
    why = browser.missing()
    if why is not None:
        sys.exit(why)
    wanted = sys.argv[1:] or list(PICTURES)
    FOLDER.mkdir(exist_ok=True)
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as profile, browser.browser(Path(profile)) as page:
        for name in wanted:
            reach, title = PICTURES[name]
            outages = [Outage(WARM - 130, 1e9)] if name == "etcd-lost" else []
            with stage(outages=outages) as held:
                held.spawn(lambda held=held: traffic(held))
                reach(held)
                page.open(held.url)
                page.shows("#title", title)
                page.shows("#depth-note", "ago")
                page.shows("#chart-processed .now", "/ s")
                take(page, name, size=WIDE)
                if name == "draining":
                    take(page, "draining-phone", size=PHONE, dark=True)
                page.leave()


if __name__ == "__main__":
    main()
