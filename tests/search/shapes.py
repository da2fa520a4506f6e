"""Schedules of a shape of their own: what chance alone brings together too rarely. Each takes a schedule that was drawn at
random, and keeps what it does not need to be otherwise: its instances, most of its faults, what the processors do."""

import dataclasses
import random

from svc.testing.faults import Fault

from .schedule import Arrival, Flip, Schedule, Work

HELD_LANDINGS = 0.04
"""Of all schedules."""

COPIES = 0.04
"""Of all schedules; half as many on FIFO queues, which have none."""

HOLDS = (0.5, 1.5, 3.0, 4.5, 7.0)
"""Seconds that a landing is held. The client of a receive gives up 5 s after its wait."""


def shaped(schedule: Schedule) -> Schedule:
    """The schedule, or another in its place. The others are as they were drawn."""
    rng = random.Random(f"shape {schedule.seed}")
    kind = rng.random()
    if kind < HELD_LANDINGS:
        return held_landing(schedule, rng)
    if kind < HELD_LANDINGS + COPIES and not schedule.setup.fifo:
        return copies(schedule, rng)
    return schedule


def held_landing(schedule: Schedule, rng: random.Random) -> Schedule:
    """Several receives are out, and one landing, or some, are held: the queue has handed out what does not arrive for seconds. In
    that time maintenance is switched on, off, and sometimes on again."""
    setup = schedule.setup
    batch = rng.choice((1, 1, 2, 3))
    setup = dataclasses.replace(
        setup,
        batch=batch,
        concurrency=rng.choice((5 * batch, 10 * batch, 100)),
        wait=rng.choice((1, 2, 5, 20)),
        receivers=rng.choice((2, 3, 10)),
        breaker=rng.choice(("off", "off", setup.breaker)),
        missed=0.0,
    )
    if not setup.threads:
        kind = rng.random()
        if kind < 0.4:
            size = rng.choice((2, 3, 10))
            setup = dataclasses.replace(setup, batching=size, lingering=rng.choice((0.0, 0.1, 1.0, 3.0)))
        setup = dataclasses.replace(setup, asyncio=rng.random() < 0.3)
    arrivals, flips, faults = list(schedule.arrivals), list(schedule.flips), list(schedule.faults)
    for _ in range(rng.choice((1, 1, 2))):
        at, hold = float(rng.randrange(1, 12)), rng.choice(HOLDS)
        # As many as make further receives follow the first, which come back full.
        for _ in range(batch * rng.choice((2, 3, 5)) + rng.choice((0, 1))):
            runs = (Work(seconds=rng.choice((0.0, 0.1, 0.5, 3.0))),) if rng.random() < 0.5 else ()
            group = rng.choice("abcde") if setup.fifo else "a"
            arrivals.append(Arrival(at, group, runs, readable=not setup.typed or rng.random() < 0.8))
        if rng.random() < 0.7:
            faults.insert(0, Fault("delay-after", "receive", rng.randrange(1, 7), end=at + 10.0, seconds=hold))
        else:
            faults.insert(0, Fault("delay-after", "receive", start=at - 1.0, end=at + 0.1, seconds=hold))
        on = round(at + rng.uniform(0.0, 0.7) * hold, 1)
        off = round(on + rng.uniform(0.0, 0.9) * (at + hold - on), 1)
        flips += [Flip(on, "on"), Flip(off, "off")]
        if rng.random() < 0.5:
            flips.append(Flip(round(off + rng.choice((0.0, 0.1, 0.5, hold)), 1), "on"))
    return dataclasses.replace(
        schedule,
        setup=setup,
        arrivals=tuple(sorted(arrivals, key=lambda arrival: arrival.at)),
        flips=tuple(sorted(flips, key=lambda flip: flip.at)),
        faults=tuple(faults),
    )


def copies(schedule: Schedule, rng: random.Random) -> Schedule:
    """A standard queue that hands out most messages twice: in one answer, in two, to one instance or several, by two receipts or
    by the same one."""
    setup = dataclasses.replace(
        schedule.setup,
        duplicates=rng.choice((0.3, 0.6, 0.9)),
        together=rng.choice((0.0, 0.5, 1.0)),
        repeats=rng.choice((0.0, 0.3, 0.8)),
        batch=rng.choice((2, 3, 10)),
        concurrency=rng.choice((2, 3, 10, 100)),
    )
    return dataclasses.replace(schedule, setup=setup)
