"""What can go wrong between a client and a simulated queue, as data: a `Fault` says what happens, and to which calls.

    faults=[
        Fault("throttle", "receive", nth=2),              # the second receive
        Fault("timeout-after", "delete", start=10, end=20),  # every delete that begins in [10, 20)
        Fault("partial", "delete", nth=1, entries=(0, 3)),   # its first and fourth entry are refused
    ]

The first fault that hits a call is the one that happens. `random_faults()` makes such a list from a seed. Pure: nothing
here waits or knows of queues.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from svc.consumer.queue import MAX_BATCH, QueueTimeout
from svc.sqs import wire

CallKind = Literal["receive", "delete", "change_visibility", "dead_letter", "send", "attributes"]

What = Literal[
    "delay",
    "delay-after",
    "throttle",
    "error",
    "error-after",
    "timeout-before",
    "timeout-after",
    "partial",
    "unnamed",
    "unnamed-after",
    "denied",
    "no-queue",
    "defect",
    "defect-after",
]


class SimulatedDefect(Exception):
    """What the client breaks by: no `QueueError`, and nobody expects it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the simulated queue, as it begins."""

    number: int
    """From 1, over all kinds of calls."""
    kind: CallKind
    nth: int
    """From 1, among the calls of this kind."""
    at: float
    """Trio time at which the client began."""
    limit: int = 0
    wait: int = 0
    visibility: int = 0
    attempt: str | None = None
    receipts: tuple[str, ...] = ()
    timeouts: Mapping[str, int] = field(default_factory=dict)
    body: str = ""

    @property
    def patience(self) -> float:
        """After how many seconds the client gives up, as the real one does (`svc/sqs/queue.py`)."""
        return self.wait + wire.LANDING_SECONDS if self.kind == "receive" else wire.CALL_SECONDS


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the calls that it hits."""

    what: What
    """
    - `delay`: the request takes `seconds` longer (and the client gives up after 5 s, or for a receive 5 s after its
    wait).
    - `delay-after`: the answer takes `seconds` longer: the server acts in time.
    - `throttle`, `error` (a 500), `denied`, `no-queue`: the server answers with an error and does not act.
    - `error-after`: the server acts, then answers with a 500.
    - `timeout-before`: the request is lost; the server never acts, the client gives up.
    - `timeout-after`: the server acts, its answer is lost, the client gives up.
    - `defect`, `defect-after`: the client itself breaks, by an exception that is no `QueueError`, before the server acts or
      after it has.
    - `partial`: the `entries` of a batch call (delete, change_visibility) are refused with `InternalError`.
    - `unnamed`, `unnamed-after`: the answer to a batch call does not name the `entries`; the server has not acted on
      them, or has.
    """
    kind: CallKind | None = None
    """Which kind of call; None: any."""
    nth: int | None = None
    """Which call of that kind (of all calls where `kind` is None), from 1; None: each one."""
    start: float = 0.0
    """Hits calls that begin at this Trio time or later …"""
    end: float = math.inf
    """… and before this one."""
    seconds: float = 0.0
    """Of a delay."""
    entries: tuple[int, ...] = (0,)
    """Positions of a batch, from 0."""

    def __post_init__(self) -> None:
        if self.what not in get_args(What) or self.kind not in (None, *get_args(CallKind)):
            raise ValueError(f"no such fault: {self}")

    def hits(self, call: Call) -> bool:
        """Whether this call is one of those that the fault is for."""
        if self.kind is not None and self.kind != call.kind:
            return False
        if self.nth is not None and self.nth != (call.number if self.kind is None else call.nth):
            return False
        return self.start <= call.at < self.end


Faults = Sequence[Fault] | Callable[[Call], Fault | None]
"""What goes wrong: a list, of which the first that hits a call happens, or a function that decides for each call."""


def fault_for(faults: Faults, call: Call) -> Fault | None:
    """The fault that happens to this call."""
    if callable(faults):
        return faults(call)
    return next((fault for fault in faults if fault.hits(call)), None)


def error_of(fault: Fault | None, call: Call) -> Exception | None:
    """The error that the call ends with, if it does."""
    match fault.what if fault else None:
        case "throttle":
            return wire.service_error(call.kind, "RequestThrottled", "Request is throttled.", 400)
        case "error" | "error-after":
            return wire.service_error(call.kind, "InternalError", "We encountered an internal error.", 500)
        case "denied":
            return wire.service_error(call.kind, "AccessDenied", "Access to the resource is denied.", 403)
        case "no-queue":
            return wire.service_error(call.kind, "QueueDoesNotExist", "The specified queue does not exist.", 400)
        case "defect" | "defect-after":
            return SimulatedDefect(f"in {call.kind}")
        case _:
            return None


def timed_out(call: Call) -> QueueTimeout:
    """The error of a client that has given up."""
    return QueueTimeout(f"{call.kind}: SQS did not answer within {call.patience:g} s; it may have acted all the same")


def random_faults(
    rng: random.Random,
    *,
    most: int = 8,
    calls: int = 40,
    until: float = 60.0,
    what: Sequence[What] = ("delay", "throttle", "error", "error-after", "timeout-before", "timeout-after", "partial"),
) -> list[Fault]:
    """Up to `most` faults, all of them over for calls that begin after Trio time `until`: some hit one of the first
    `calls` calls of a kind, some every call of a kind for up to 10 s. The same `rng` state gives the same list."""
    faults = []
    for _ in range(rng.randint(0, most)):
        chosen = rng.choice(what)
        of_entries = chosen in ("partial", "unnamed", "unnamed-after")
        kinds = ("delete", "change_visibility") if of_entries else get_args(CallKind)
        kind = rng.choice(kinds)
        entries = tuple(sorted(rng.sample(range(MAX_BATCH), rng.randint(1, MAX_BATCH)))) if of_entries else (0,)
        seconds = round(rng.uniform(0.1, 8.0), 1) if chosen == "delay" else 0.0
        if rng.random() < 0.7:
            nth, start, end = rng.randint(1, calls), 0.0, until
        else:
            nth, start = None, round(rng.uniform(0, until * 0.9), 1)
            end = min(until, round(start + rng.uniform(0.5, 10), 1))
        faults.append(Fault(chosen, kind, nth, start, end, seconds, entries))
    return faults
