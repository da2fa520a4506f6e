"""What takes part in maintenance: the `Handler` protocol, and the report of a drain that all handlers share.

A handler is anything that can stop taking new work and finish what it has: the HTTP gate, the SQS worker, or one more of the
user's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable


class Handler(Protocol):
    """Something that takes work and can stop taking it. One more part is given to the manager to take part in maintenance."""

    name: str
    """Under this name it stands in `/health` and in the drain report."""

    after: tuple[str, ...]
    """Names of handlers that it outlives, because they use it: it is entered when these have drained, in what is left of the
    drain's time, and left before they are."""

    def enter(self) -> None:
        """Take nothing new from this moment on. Does not wait."""

    async def wait_drained(self, deadline: float) -> str | None:
        """Return when everything under way is finished or, by `deadline` (Trio time), given up: None when all was finished,
        else one sentence about what was not. May be cancelled, when the work is to go on after all."""

    def leave(self) -> None:
        """Take work again. Does not wait."""

    async def health(self) -> bool:
        """Whether it works. Answers within 5 s."""

    def statistics(self) -> object:
        """A frozen snapshot of its figures."""

    def drain(self) -> Mapping[str, object]:
        """The figures of its running drain, or of the last one, ready for JSON."""


@runtime_checkable
class QuietHandler(Protocol):
    """A handler that may be *quiet* before it has drained: nothing is at work in it, and nothing will be begun until `leave()`.
    What is still on its way to it goes back when it comes. Any other handler is quiet when it has drained."""

    def ask_quiet(self, asked: bool) -> None:
        """Whether it is to become quiet at a price: what would otherwise be worked on when it comes, goes back too. Does not
        wait. Once it is quiet, taking it back changes nothing."""

    def land_soon(self) -> None:
        """After `enter()`, when the process lives on: do not wait for what can be asked for again. Does not wait."""

    async def wait_quiet(self) -> None:
        """Return when it is quiet. Call it within a drain. May be cancelled."""


def in_order(handlers: Sequence[Handler]) -> tuple[Handler, ...]:
    """The handlers, each behind those that it outlives. Raises ValueError with a sentence where that cannot be."""
    names = [handler.name for handler in handlers]
    for handler in handlers:
        if names.count(handler.name) > 1:
            raise ValueError(f"two handlers are called {handler.name!r}")
        if unknown := sorted(set(handler.after) - set(names)):
            raise ValueError(
                f"the handler {handler.name!r} is to drain after {unknown[0]!r}, and there is no such handler"
            )
    left, ordered = list(handlers), list[Handler]()
    while left:
        placed = {handler.name for handler in ordered}
        ready = [handler for handler in left if placed.issuperset(handler.after)]
        if not ready:
            raise ValueError(f"the handlers {', '.join(sorted(h.name for h in left))} wait for each other to drain")
        ordered += ready
        left = [handler for handler in left if handler not in ready]
    return tuple(ordered)


class DrainOutcome(Enum):
    RUNNING = "running"
    DRAINED = "drained"
    EXPIRED = "expired"
    """Not everything was finished in time: `DrainReport.error` says what was not."""
    REVOKED = "revoked"
    """Maintenance was switched off before the drain had ended."""


@dataclass(frozen=True, slots=True)
class DrainReport:
    """A drain: the running one, or the last."""

    cause: str
    """`maintenance` or `stop`."""
    began: float
    """Trio time."""
    deadline: float
    """Trio time."""
    outcome: DrainOutcome = DrainOutcome.RUNNING
    ended: float | None = None
    """Trio time."""
    quiet: float | None = None
    """Trio time from which on nothing was at work, and nothing begins until maintenance is switched off; None: not yet."""
    error: str | None = None
    handlers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """What each handler says of its part, by its name."""
