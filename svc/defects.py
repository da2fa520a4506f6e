"""Defects of our own: exceptions that nobody expected, and what becomes of them.

One in a single call (a receive, a settlement call, a heartbeat, a request) is that call's failure: `Defects.note` logs it with
its traceback and counts it, and whoever made the call backs off as after any other failure. One that ends a part for good
ends the service: `Defects.guard` says once which part it was, and raises `PartFailed`. What is in flight is given back on the way
out.

An error that has a remedy is no defect and never comes here: it has a class of its own at its border.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Literal, get_args

import structlog
import trio

log = structlog.get_logger(__name__)

Part = Literal[
    "api",
    "backlog",
    "batches",
    "cloudwatch",
    "database",
    "fence",
    "handler",
    "heartbeat",
    "intake",
    "manager",
    "message",
    "observer",
    "page",
    "probe",
    "protection",
    "queue_attributes",
    "receive",
    "registrar",
    "request",
    "settlement",
    "signals",
    "watchdog",
    "watcher",
    "worker",
]
"""Where it happened: a kind of call, or a part that runs as long as the service does."""


class PartFailed(Exception):
    """A part has ended by an unexpected exception, which is the cause of this one, and has been told."""


class Defects:
    """`on_crash` is called once, when the first part fails for good: in the middle of that, so it must not raise or wait."""

    def __init__(
        self, *, on_crash: Callable[[], None] = lambda: None, remedied: tuple[type[Exception], ...] = ()
    ) -> None:
        """`remedied`: errors that may end a part and say themselves what to do; they are let through."""
        self._on_crash = on_crash
        self._known = (trio.Cancelled, KeyboardInterrupt, GeneratorExit, PartFailed, *remedied)
        self._crashed = False
        self.counts: dict[Part, int] = dict.fromkeys(get_args(Part), 0)
        """How many since the start, by where they happened."""

    @property
    def crashed(self) -> bool:
        """A part has failed for good: the service is about to end."""
        return self._crashed

    def note(self, part: Part, error: BaseException, **context: object) -> None:
        """One call has failed in a way that nobody expected; the service goes on. `context` goes into the log."""
        self.counts[part] += 1
        log.error(
            "internal error: this is a defect of the service; one call has failed by it, the work goes on",
            part=part,
            **context,
            exc_info=error,
        )

    def crash(self, part: Part, error: BaseException) -> PartFailed:
        """A part has failed for good; returns what to raise for it."""
        self.counts[part] += 1
        if self._crashed:
            log.warning("another part has failed while the service ends", part=part, error=repr(error))
        else:
            self._crashed = True
            log.critical(
                "the service has failed: this is a defect of it; what is in flight is given back, then the process ends",
                part=part,
                exc_info=error,
            )
            self._on_crash()
        return PartFailed(f"{part}: {type(error).__name__}")

    async def guard(self, part: Part, run: Callable[..., Awaitable[object]], *args: object, **options: object) -> None:
        """Run a part. Raises `PartFailed` when it ends by an unexpected exception. A cancellation goes through, and so does what
        has been told already."""
        try:
            await run(*args, **options)
        except BaseException as raised:
            unexpected = self._unexpected_in(raised)
            if unexpected is None:
                raise
            raise self.crash(part, unexpected) from unexpected

    def _unexpected_in(self, raised: BaseException) -> BaseException | None:
        if isinstance(raised, BaseExceptionGroup):
            return raised.split(self._known)[1]
        return None if isinstance(raised, self._known) else raised


def its_own(raised: BaseException) -> BaseException:
    """What code of the user's raised. When the task that called it is cancelled, a cancellation that is part of it is raised on
    instead; any other one is that code's own mistake (a stored one, one that left its scope), and an error like any other."""
    if trio.current_effective_deadline() == -math.inf:
        if isinstance(raised, trio.Cancelled):
            raise raised
        if isinstance(raised, BaseExceptionGroup) and (cancelled := raised.split(trio.Cancelled)[0]) is not None:
            raise cancelled
    return raised
