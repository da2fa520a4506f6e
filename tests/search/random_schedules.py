"""Draws schedules: `random_schedule(seed)` one from a seed (fast, for the long search); `schedules()` is the Hypothesis strategy
(slow, shrinks)."""

import dataclasses
import random

from hypothesis import strategies as st

from svc.testing import Outage
from svc.testing.faults import Fault, What, random_faults

from .schedule import Arrival, Ask, Flip, Life, Nap, Schedule, Setup, Work
from .shapes import shaped
from .troubles import random_etcd

PARTS = ("intake", "heartbeat", "settlement", "watcher", "registrar", "fence", "manager")
"""Of an instance, those that may fail."""

FAULT_SECONDS = 8.0
"""The longest delay that a fault causes."""

VALUES = ("on", "off", "on", "off", None, '{"enabled": true}', "maybe")
FAULTS: tuple[What, ...] = (
    "error",
    "throttle",
    "delay",
    "error-after",
    "timeout-before",
    "timeout-after",
    "partial",
    "denied",
)
DEFECTS: tuple[What, ...] = ("defect", "defect-after", "unnamed", "unnamed-after")
WORKS = (
    "succeed",
    "succeed",
    "succeed",
    "succeed",
    "fail",
    "fail",
    "retry",
    "retry",
    "reject",
    "reject",
    "exit",
    "leave",
)
BACKOFFS = ("off", "1s-4s", "5s-15m", "20s")
BREAKERS = ("off", "50% of 1", "60% of 3")
ENDS = ("stop", "crash", "cancel")
GROUPS = "abc"


def random_schedule(seed: int) -> Schedule:
    """The schedule of this seed."""
    return shaped(_drawn(seed))


def _drawn(seed: int) -> Schedule:
    rng = random.Random(seed)
    span = rng.choice((4, 10, 20))

    def moment() -> float:
        # Half of them on whole seconds, so that things happen at the same instant.
        return float(rng.randrange(span + 1)) if rng.random() < 0.5 else rng.randrange(10 * span) / 10

    fifo = rng.random() < 0.35
    visibility = rng.choice((2, 4, 6, 10, 30))
    odd = not fifo and rng.random() < 0.3
    most = rng.choice((0.0, 0.0, 0.02, 0.2, 0.6))
    setup = Setup(
        fifo=fifo,
        visibility=visibility,
        wait=rng.choice((0, 1, 2, 5, 20)),
        drain_timeout=rng.choice((1.0, 2.0, 3.0, 5.0, 10.0, 30.0)),
        concurrency=rng.choice((1, 2, 3, 5, 10, 100)),
        batch=rng.choice((1, 2, 3, 10, 10)),
        poll_interval=rng.choice((0.5, 1.0)),
        max_receives=rng.choice((None, None, 1, 2, 3)),
        latency=(rng.choice((0.0, most)), most),
        duplicates=rng.choice((0.0, 0.3)) if odd else 0.0,
        disorder=rng.choice((0.0, 0.5)) if odd else 0.0,
        missed=rng.choice((0.0, 0.3)) if odd else 0.0,
        reread=rng.choice((3.0, 10.0)),
        retry_backoff=rng.choice(BACKOFFS),
        breaker=rng.choice(BREAKERS),
    )
    burst = rng.random() < 0.3

    def work() -> Work:
        does = rng.choice(WORKS)
        seconds = rng.choice((0.0, 0.1, 0.5, 1.0, 3.0, visibility * 1.0, visibility * 2.5))
        again = rng.choice((0, 1, 3, 7)) if does == "retry" else 0
        return Work(does, seconds, again, rng.choice((0.5, 3.0, 40.0)) if rng.random() < 0.1 else 0.0)

    at = moment()
    arrivals = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 12))):
        if not burst:
            at = moment()
        runs = tuple(work() for _ in range(rng.choice((0, 1, 1, 1, 2, 3))))
        arrivals.append(Arrival(at, rng.choice(GROUPS) if fifo else "a", runs))
    flips = []
    for _ in range(rng.choice((0, 1, 2, 2, 3, 5))):
        tricky = rng.random() < 0.3
        delay = rng.choice((0.0, 0.5, 5.0)) if tricky else 0.0
        flips.append(Flip(moment(), rng.choice(VALUES), delay, rng.choice((0, 1, 2)) if tricky else 1))
    outages = ()
    if rng.random() < 0.15:
        start = moment()
        outages = (Outage(start, start + rng.choice((0.5, 3.0, 8.0))),)
    lives = [Life()]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        if rng.random() < 0.6:  # one after the other
            end = max(lives[-1].start, moment())
            lives[-1] = dataclasses.replace(lives[-1], end=end, how=rng.choice(ENDS))
            lives.append(Life(round(end + rng.choice((0.0, 1.0, 3.0)), 1)))
        else:  # side by side
            start = moment()
            lives.append(Life(start, start + moment(), rng.choice(ENDS)) if rng.random() < 0.5 else Life(start))
    faults = random_faults(rng, most=rng.choice((0, 0, 2, 5)), calls=12, until=float(span), what=FAULTS)
    setup = dataclasses.replace(
        setup, linger=rng.choice((0.1, 0.1, 0.0, 2.0, 5.0)), receivers=rng.choice((10, 10, 1, 3))
    )
    # From another seed, so that schedules with and without a fleet are alike in all else.
    rng = random.Random(f"fleet {seed}")
    asks: tuple[Ask, ...] = ()
    write_seconds = (0.0, 0.0)
    if rng.random() < 0.5:
        asks = tuple(Ask(moment(), rng.choice((0.0, 0.0, 0.3))) for _ in range(rng.choice((1, 1, 2, 3))))
        write_seconds = (0.0, rng.choice((0.0, 0.1, 0.6, 2.5)))
        flips += [Flip(ask.at + rng.choice((0.0, 0.2, 1.0, 4.0)), "off") for ask in asks if rng.random() < 0.4]
        if rng.random() < 0.4:  # on, off and on again, before an answer to the first has had its time to arrive
            off = round(asks[-1].at + rng.choice((0.1, 0.5, 1.0, 1.1, 2.1, 5.1)), 1)
            flips.append(Flip(off, "off"))
            asks = (*asks, Ask(round(off + rng.choice((0.1, 0.4, 0.8)), 1), rng.choice((0.0, 0.3))))
        flips += [Flip(moment(), rng.choice(("on", None)), instance=0) for _ in range(rng.choice((0, 0, 2)))]
    # And from one more: what only a defect does, of ours or of whoever answers for SQS.
    rng = random.Random(f"defects {seed}")
    if rng.random() < 0.3:
        faults += random_faults(rng, most=rng.choice((1, 2, 4)), calls=12, until=float(span), what=DEFECTS)
    for number, life in enumerate(lives):
        if rng.random() < (0.4 if life.end is not None else 0.1):
            end = life.end if life.end is not None else max(life.start, moment())
            lives[number] = Life(life.start, end, "fail", rng.choice(PARTS))
    # And from one more: what kind of processor it is.
    rng = random.Random(f"processor {seed}")
    if rng.random() < 0.3:
        setup = dataclasses.replace(
            setup, batching=rng.choice((1, 2, 3, 5, 10, 100)), lingering=rng.choice((0.0, 0.1, 1.0, 1.0, 3.0, 20.0))
        )
    if rng.random() < 0.1:
        setup = dataclasses.replace(setup, asyncio=True)
    if rng.random() < 0.1:
        setup = dataclasses.replace(setup, typed=True)
        arrivals = [dataclasses.replace(arrival, readable=rng.random() < 0.8) for arrival in arrivals]
    # And from one more: what is asked for, and every fifth on an etcd in trouble.
    rng = random.Random(f"etcd {seed}")
    etcd = None
    if seed % 5 == 3:
        asks = asks or tuple(Ask(moment()) for _ in range(rng.choice((1, 2))))
        lives += [Life()] * rng.choice((0, 1, 1))
        etcd = random_etcd(rng, span, len(lives), [ask.at for ask in asks])
        setup = dataclasses.replace(
            setup, retry_backoff=rng.choice(("off", "1s-4s")), max_receives=rng.choice((setup.max_receives, 1))
        )
        for ask in asks:  # something at work, or on its way, when somebody asks
            for _ in range(rng.choice((0, 1, 3))):
                at = round(max(0.0, ask.at + rng.choice((-1.0, -0.5, 0.1, 0.5, 1.5))), 1)
                runs = (Work(seconds=rng.choice((0.5, 3.0))),)
                arrivals.append(Arrival(at, rng.choice(GROUPS) if fifo else "a", runs))
        outages = ()
    asks = tuple(
        dataclasses.replace(
            ask, quiet=rng.random() < 0.5, instance=rng.randrange(len(lives)) if rng.random() < 0.2 else None
        )
        for ask in asks
    )
    # And from one more: work that cannot be stopped, and a machine that sleeps.
    rng = random.Random(f"threads {seed}")
    naps: tuple[Nap, ...] = ()
    if rng.random() < 0.15 and not (setup.batching or setup.asyncio):
        setup = dataclasses.replace(setup, threads=True)
    if rng.random() < 0.15 and etcd is None:
        lengths = (1.0, visibility * 0.5, visibility * 1.0, visibility * 3.0)
        naps = tuple(Nap(moment(), rng.choice(lengths)) for _ in range(rng.choice((1, 1, 2))))
    if not fifo and rng.random() < 0.15:
        setup = dataclasses.replace(setup, resurrections=rng.choice((0.2, 0.6)))
    if not fifo and rng.random() < 0.3:
        setup = dataclasses.replace(setup, old_receipts=True)
        # An error after the deed is the risk that is taken: what answers is taken not to have acted.
        faults = tuple(
            dataclasses.replace(fault, what="timeout-after") if fault.what == "error-after" else fault
            for fault in faults
        )
        if rng.random() < 0.5:
            faults += (Fault("timeout-after", "change_visibility", rng.randrange(1, 4), end=float(span)),)
    return Schedule(
        seed=seed,
        naps=tuple(sorted(naps, key=lambda nap: nap.at)),
        etcd=etcd,
        setup=setup,
        arrivals=tuple(sorted(arrivals, key=lambda arrival: arrival.at)),
        flips=tuple(sorted(flips, key=lambda flip: flip.at)),
        outages=outages,
        lives=tuple(lives),
        faults=tuple(faults),
        asks=tuple(sorted(asks, key=lambda ask: ask.at)),
        write_seconds=write_seconds,
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """The same, for Hypothesis: shrinks towards few messages, whole seconds and no faults."""
    moments = st.one_of(st.integers(0, 20).map(float), st.integers(0, 100).map(lambda tenths: tenths / 10))
    fifo = draw(st.booleans())
    visibility = draw(st.sampled_from((10, 2, 4, 6, 30)))
    chances = st.just(0.0) if fifo else st.sampled_from((0.0, 0.0, 0.3))
    most = draw(st.sampled_from((0.0, 0.02, 0.2, 0.6)))
    setup = Setup(
        fifo=fifo,
        visibility=visibility,
        wait=draw(st.sampled_from((5, 0, 1, 2, 20))),
        drain_timeout=draw(st.sampled_from((10.0, 1.0, 3.0, 30.0))),
        concurrency=draw(st.sampled_from((10, 1, 2, 3, 100))),
        batch=draw(st.sampled_from((10, 1, 3))),
        max_receives=draw(st.sampled_from((None, 1, 2, 3))),
        latency=(draw(st.sampled_from((0.0, most))), most),
        duplicates=draw(chances),
        disorder=draw(chances),
        missed=draw(chances),
        reread=draw(st.sampled_from((10.0, 3.0))),
        retry_backoff=draw(st.sampled_from(BACKOFFS)),
        linger=draw(st.sampled_from((0.1, 0.0, 2.0, 5.0))),
        receivers=draw(st.sampled_from((10, 1, 3))),
        breaker=draw(st.sampled_from(BREAKERS)),
        batching=draw(st.sampled_from((0, 0, 2, 3, 10))),
        lingering=draw(st.sampled_from((0.0, 1.0, 20.0))),
        asyncio=draw(st.sampled_from((False, False, False, True))),
        typed=draw(st.sampled_from((False, False, False, True))),
    )
    works = st.builds(
        lambda does, seconds, again, stubborn: Work(does, seconds, again if does == "retry" else 0, stubborn),
        st.sampled_from(("succeed", "fail", "retry", "reject", "exit", "leave")),
        st.sampled_from((0.1, 0.0, 0.5, 1.0, 3.0, visibility * 1.0, visibility * 2.5)),
        st.sampled_from((0, 1, 3, 7)),
        st.sampled_from((0.0, 0.0, 0.5, 3.0, 40.0)),
    )
    arrivals = st.builds(
        Arrival, moments, st.sampled_from(GROUPS if fifo else "a"), st.lists(works, max_size=3).map(tuple)
    )
    flips = st.builds(
        Flip, moments, st.sampled_from(VALUES), st.sampled_from((0.0, 0.5, 5.0)), st.sampled_from((1, 0, 2))
    )
    lives = st.builds(
        lambda start, lasts, how, part: Life(
            start, None if lasts is None else start + lasts, how, part if how == "fail" else ""
        ),
        moments,
        st.one_of(st.none(), moments),
        st.sampled_from((*ENDS, "fail")),
        st.sampled_from(PARTS),
    )
    outages = st.builds(lambda start, lasts: (Outage(start, start + lasts),), moments, st.sampled_from((0.5, 3.0, 8.0)))
    seconds = st.sampled_from((1.0, 0.3, 3.0, FAULT_SECONDS))
    single_faults = st.builds(
        lambda what, kind, nth, late: Fault(what, kind, nth, 0.0, 20.0, late if what == "delay" else 0.0),
        st.sampled_from(FAULTS + DEFECTS),
        st.sampled_from(("delete", "receive", "change_visibility", "dead_letter", "attributes")),
        st.integers(1, 8),
        seconds,
    )
    lasting_faults = st.builds(
        lambda what, kind, start, lasts, late: Fault(
            what, kind, None, start, start + lasts, late if what == "delay" else 0.0
        ),
        st.sampled_from(FAULTS + DEFECTS),
        st.sampled_from(("delete", "receive", "change_visibility", None)),
        moments,
        st.sampled_from((1.0, 3.0, 10.0)),
        seconds,
    )
    by_time = lambda things: tuple(sorted(things, key=lambda thing: thing.at))  # noqa: E731
    return Schedule(
        seed=draw(st.integers(0, 999)),
        setup=setup,
        arrivals=by_time(draw(st.lists(arrivals, min_size=1, max_size=8))),
        flips=by_time(draw(st.lists(flips, max_size=4))),
        outages=draw(st.one_of(st.just(()), outages)),
        lives=(draw(st.one_of(st.just(Life()), lives)), *draw(st.lists(lives, max_size=2))),
        faults=tuple(draw(st.lists(st.one_of(single_faults, lasting_faults), max_size=4))),
        asks=by_time(
            draw(st.lists(st.builds(Ask, moments, st.sampled_from((0.0, 0.3)), quiet=st.booleans()), max_size=2))
        ),
        write_seconds=(0.0, draw(st.sampled_from((0.0, 0.1, 0.6)))),
    )
