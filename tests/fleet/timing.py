"""How long the fleet takes to answer, and what it costs etcd: instances in one process, on a simulated queue and a real etcd.

Everything that talks to etcd is the real thing (watcher, registrar, the follower behind `--wait`); what is simulated is SQS, so
that fifty instances fit into one process. `python -m tests.fleet --timing` prints the table.
"""

import math
import re
import statistics
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from svc.core import Core
from svc.devstack.stack import Etcd
from svc.etcd import fleet as etcd_fleet
from svc.etcd import registration
from svc.etcd.registration import Registrar, identity
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.fleet import Request, Standing, Wait
from svc.maintenance.orders import Order
from svc.maintenance.registration import Entry
from svc.settings import Settings, load
from svc.telemetry import logs
from svc.testing import SimulatedQueue


@dataclass
class Timing:
    """One size of fleet; seconds."""

    instances: int
    acknowledged: float
    """From the order to the last registration that says it drains, or has drained; median of the rounds."""
    acknowledged_worst: float
    drained: float
    """From the order until `--wait` is satisfied; median of the rounds."""
    puts_idle: float
    """Writes to etcd per instance and minute while nothing happens."""
    puts_per_toggle: float
    """Writes to etcd per instance for on and off together."""


async def _nothing(message: object) -> None:
    pass


def puts(etcd: Etcd) -> int:
    """Writes that etcd has taken since its start, by its own count."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{etcd.url}/metrics", timeout=5) as answer:
        found = re.search(r"^etcd_mvcc_put_total (\S+)", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def settings_of(etcd: Etcd, key: str, number: int, wait: int = 1) -> Settings:
    return load(
        {
            "ETCD_ENDPOINTS": etcd.endpoint,
            "MAINTENANCE_KEY": key,
            "INSTANCE_ID": f"i{number}",
            "SQS_WAIT_TIME_SECONDS": str(wait),
        }
    )


@asynccontextmanager
async def running(etcd: Etcd, key: str, count: int, *, wait: int = 1) -> AsyncIterator[Settings]:
    """So many instances, whose polls take so many seconds; left, all of them stop."""
    queue = SimulatedQueue()
    async with trio.open_nursery() as nursery:
        cores = []
        for number in range(count):
            settings = settings_of(etcd, key, number, wait)
            core = Core(
                settings,
                queue,
                _nothing,
                KeyWatcher,
                identity=identity(settings),
                make_registrar=Registrar,
                stall=math.inf,
            )
            cores.append(core)
            await nursery.start(core.run)
        yield settings_of(etcd, key, 0)
        for core in cores:
            core.manager.stop()


def says_it_drains(seen: Entry, request: Request) -> bool:
    said = seen.held.acknowledgement if seen.held else None
    return said is not None and said.revision == request.revision and said.phase in ("draining", "drained")


async def order(settings: Settings, count: int, *, on: bool, quiet: bool = False) -> tuple[float, float]:
    """Seconds until all have acknowledged the order, and until all have done it."""
    acknowledged = math.nan
    began = trio.current_time()
    request = await etcd_fleet.ask(settings, Order(on, quiet=quiet))

    def tell(standing: Standing) -> None:
        nonlocal acknowledged
        if math.isnan(acknowledged) and sum(says_it_drains(seen, request) for seen in standing.live) == count:
            acknowledged = trio.current_time() - began

    with trio.fail_after(60):
        await etcd_fleet.follow(settings, Wait(request), tell)
    return acknowledged, trio.current_time() - began


async def measure(count: int, *, rounds: int, idle_seconds: float) -> Timing:
    """Time a fleet of this size on an etcd of its own."""
    acknowledged, drained = [], []
    async with Etcd() as etcd, running(etcd, "/timing", count) as settings:
        await order(settings, count, on=False)  # all are registered and running
        before = puts(etcd)
        await trio.sleep(idle_seconds)
        idle = (puts(etcd) - before) / count * 60 / idle_seconds
        before = puts(etcd)
        for _ in range(rounds):
            await trio.sleep(
                2 * registration.AT_MOST_EVERY
            )  # nobody waits for his turn to write, as after a quick off and on
            first, last = await order(settings, count, on=True)
            acknowledged.append(first)
            drained.append(last)
            await order(settings, count, on=False)
        toggles = (puts(etcd) - before - 2 * rounds) / count / rounds
    return Timing(count, statistics.median(acknowledged), max(acknowledged), statistics.median(drained), idle, toggles)


async def quiet(rounds: int, *, instances: int = 3) -> list[float]:
    """Seconds from the order until `--wait=quiet` is satisfied, in each round: an idle fleet in polls of 20 s."""
    found = []
    async with Etcd() as etcd, running(etcd, "/quiet", instances, wait=20) as settings:
        await order(settings, instances, on=False)
        for _ in range(rounds):
            await trio.sleep(2 * registration.AT_MOST_EVERY)
            found.append((await order(settings, instances, on=True, quiet=True))[1])
            await order(settings, instances, on=False)
    return found


def tell_quiet(found: list[float]) -> None:
    """Print the quantiles."""
    at = sorted(found)
    median, high = statistics.median(at), at[math.ceil(0.99 * len(at)) - 1]
    print(f"three idle instances are quiet, of {len(at)} rounds: median {median:.3f} s, 99th percentile {high:.3f} s")


async def table(sizes: tuple[int, ...] = (1, 5, 20, 50), *, rounds: int = 10, idle_seconds: float = 60) -> None:
    """Print the table, in Markdown."""
    logs.configure("console", "error")
    print(
        "| instances | all acknowledged draining: median, worst | all drained: median "
        "| writes to etcd per instance: idle, for on and off |"
    )
    print("| --- | --- | --- | --- |")
    for size in sizes:
        held = await measure(size, rounds=rounds, idle_seconds=idle_seconds)
        print(
            f"| {held.instances} | {held.acknowledged * 1000:.0f} ms, {held.acknowledged_worst * 1000:.0f} ms | "
            f"{held.drained:.2f} s | {held.puts_idle:.1f} a minute, {held.puts_per_toggle:.1f} |",
            flush=True,
        )
