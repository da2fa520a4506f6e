"""A schedule: what arrives when, what the processor does with it, and everything that goes wrong. Plain data, no behaviour.

A schedule prints as the Python expression that makes it, defaults left out, so that a failure found by Hypothesis reads as a
small scenario and can be pasted into a test. `random_schedules.py` draws them. Times are Trio seconds.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from svc.testing import Notice, Outage
from svc.testing.faults import Fault

from .troubles import EtcdSetup

CALM_AFTER = 10.0
"""Seconds from the last thing that a schedule does to the calm at its end: calls that were late have acted by then."""


class _Short:
    """Prints without the fields that hold their default."""

    __slots__ = ()

    def __repr__(self) -> str:
        told = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if value != default:
                told.append(f"{f.name}={_told(value)}")
        return f"{type(self).__name__}({', '.join(told)})"


def _told(value: Any) -> str:
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return "(" + " ".join(f"{_told(one)}," for one in value) + ")"
    if isinstance(value, (Fault, Outage)):
        return _Short.__repr__(value)  # type: ignore[arg-type]
    return repr(value)


@dataclass(frozen=True, repr=False)
class Setup(_Short):
    """The settings of all instances, and the nature of the queue."""

    fifo: bool = False
    visibility: int = 10
    wait: int = 5
    drain_timeout: float = 10.0
    concurrency: int = 10
    batch: int = 10
    poll_interval: float = 1.0
    max_receives: int | None = None
    """None: the queue has no dead-letter queue."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds, of each journey of a call, from-to."""
    duplicates: float = 0.0
    together: float = 0.0
    """Of the duplicates, those that come in the answer of the first delivery, if there is room."""
    repeats: float = 0.0
    """A delivery is handed out again by the same receipt, within one answer or by a later one while it is in flight there."""
    disorder: float = 0.0
    missed: float = 0.0
    reread: float = 10.0
    """Every so many seconds the switch is read again."""
    retry_backoff: str = "off"
    linger: float = 0.1
    receivers: int = 10
    batching: int = 0
    """Messages in a batch at most; 0: the processor takes one message at a time."""
    lingering: float = 0.0
    """Seconds that a message waits for its batch."""
    asyncio: bool = False
    """The processor runs on asyncio."""
    typed: bool = False
    """It takes the payload, a number, and the message."""
    resurrections: float = 0.0
    old_receipts: bool = False
    """A change of visibility by an old receipt acts."""
    threads: bool = False
    """The processor runs in threads: cancelled, it goes on to its end."""
    breaker: str = "off"
    """BREAKER_FAILURES; the window is 20 s, the pause 1 to 4 s."""


@dataclass(frozen=True, repr=False)
class Work(_Short):
    """What the processor does in one run."""

    does: Literal["succeed", "fail", "retry", "reject", "exit", "leave"] = "succeed"
    """`exit`: raises SystemExit. `leave`: returns and leaves a nursery open, with a task in it. Both fail."""
    seconds: float = 0.1
    """After so many."""
    again: int = 0
    """`Retry(after=…)`."""
    stubborn: float = 0.0
    """Cancelled, it goes on for so many seconds and does then what it does."""


@dataclass(frozen=True, repr=False)
class Arrival(_Short):
    """One message."""

    at: float = 0.0
    group: str = "a"
    """Its message group, if the queue is a FIFO queue."""
    runs: tuple[Work, ...] = ()
    """Its first runs, at whatever instance. Further ones succeed after 0.1 s."""
    readable: bool = True
    """Its body is what a typed processor wants."""


@dataclass(frozen=True, repr=False)
class Flip(_Short):
    """The maintenance key is written."""

    at: float = 0.0
    value: str | None = "on"
    delay: float = 0.0
    copies: int = 1
    """Of the notice that the watchers get; 0: it is lost."""
    instance: int | None = None
    """The key of this instance alone."""


@dataclass(frozen=True, repr=False)
class Ask(_Short):
    """An operator switches maintenance on and waits until the fleet has drained, as `svc maintenance on --wait` does."""

    at: float = 0.0
    delay: float = 0.0
    copies: int = 1
    """Of the notice that the watchers get."""
    quiet: bool = False
    """As `--wait=quiet`."""
    instance: int | None = None
    """As `--instance`."""


@dataclass(frozen=True, repr=False)
class Nap(_Short):
    """The machine of all instances sleeps, and the queue does not."""

    at: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, repr=False)
class Life(_Short):
    """One instance, from its start to its end."""

    start: float = 0.0
    end: float | None = None
    """None: at the very end of the schedule, by a stop."""
    how: Literal["stop", "crash", "cancel", "fail"] = "stop"
    """`crash`: SIGKILL. `cancel`: as a second SIGTERM. `fail`: a part of it ends by an exception that nobody expects."""
    part: str = ""
    """Which one fails, of `PARTS`."""


@dataclass(frozen=True, repr=False)
class Schedule(_Short):
    seed: int = 0
    """Of everything that the queue, the service's jitter and Trio's scheduler draw."""
    setup: Setup = field(default_factory=Setup)
    arrivals: tuple[Arrival, ...] = ()
    flips: tuple[Flip, ...] = ()
    outages: tuple[Outage, ...] = ()
    lives: tuple[Life, ...] = (Life(),)
    faults: tuple[Fault, ...] = ()
    asks: tuple[Ask, ...] = ()
    naps: tuple[Nap, ...] = ()
    write_seconds: tuple[float, float] = (0.0, 0.0)
    """How long a registration is on its way, from-to."""
    etcd: EtcdSetup | None = None
    """None: a stand-in for watcher and registrar, whose leases do not lapse."""

    @property
    def calm_at(self) -> float:
        """From then on nothing happens that the service did not begin: maintenance is off, one instance lives at least."""
        ends = [arrival.at for arrival in self.arrivals]
        ends += [flip.at + flip.delay for flip in self.flips]
        ends += [ask.at + ask.delay for ask in self.asks]
        ends += [outage.end for outage in self.outages]
        ends += [life.end or life.start for life in self.lives]
        ends += [fault.end for fault in self.faults]
        ends += [nap.at for nap in self.naps]
        ends += [self.etcd.ends] if self.etcd is not None else []
        return max(ends, default=0.0) + CALM_AFTER

    @property
    def notices(self) -> tuple[Notice, ...]:
        told = sorted((*self.flips, *self.asks), key=lambda change: change.at)
        return tuple(Notice(change.delay, change.copies) for change in told)
