"""Handlers of the user's own (`MAINTENANCE_HANDLERS`), made harmless: whatever one does, it is bounded and named, and no other
is held up by it.

Every method is called on the event loop, as the protocol says. What raises is noted as a failure of that handler and goes no
further. What waits is given up in time: `wait_drained` a second after the deadline, `health` after `PATIENCE`, even when it
ignores its cancellation. What blocks the event loop (a `time.sleep` in `enter`) blocks everything, as it does in a processor; the
watchdog names the place. Work that blocks belongs into `trio.to_thread.run_sync`, within `wait_drained`.
"""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio

from svc.defects import Defects, its_own
from svc.maintenance.handler import Handler
from svc.settings import printable

log = structlog.get_logger(__name__)

LATE = 1.0
"""Seconds after a drain's deadline at which a handler is given up."""

PATIENCE = 5.0
"""Seconds that an answer to a health check may take."""

LONGEST = 2000
"""Characters of figures that are shown."""

RESERVED = frozenset(
    [
        *("http", "sqs", "database", "cause", "outcome", "began", "ended", "seconds", "deadline", "error", "quiet"),
        *("maintenance", "timestamp", "handlers", "event", "level", "logger", "message", "code"),
    ]
)
"""Names that mean something else where a handler's name stands."""


class UnusableHandler(Exception):
    """`MAINTENANCE_HANDLERS` names nothing that can be a handler. The text says why."""


class UserHandler:
    """A `Handler` around one of the user's; what it waits for runs in `nursery`. Raises `UnusableHandler` when that lacks
    something."""

    def __init__(self, handler: Handler, origin: str, nursery: trio.Nursery, defects: Defects) -> None:
        name, after = getattr(handler, "name", None), getattr(handler, "after", ())
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) or name in RESERVED:
            raise UnusableHandler(
                f"what {origin!r} yields has the name {printable(repr(name)[:60])}; it must be one of its own: up to 40 small "
                "letters, digits and _"
            )
        if isinstance(after, str) or not all(isinstance(one, str) for one in (after or ())):
            raise UnusableHandler(f"`after` of the handler {name!r} must be a tuple of names")
        for method in ("enter", "wait_drained", "leave", "health", "statistics", "drain"):
            if not callable(getattr(handler, method, None)):
                raise UnusableHandler(f"the handler {name!r} has no method {method}() (see svc.Handler)")
        for method in ("enter", "leave", "statistics", "drain"):
            if inspect.iscoroutinefunction(getattr(handler, method)):
                raise UnusableHandler(f"the handler {name!r}: {method}() must be a plain def, nobody awaits it")
        self.name = name
        self.after = tuple(after or ())
        self._handler = handler
        self._nursery = nursery
        self._defects = defects
        self._failure: str | None = None

    def enter(self) -> None:
        self._failure = None
        self._call("enter")

    def leave(self) -> None:
        self._call("leave")

    async def wait_drained(self, deadline: float) -> str | None:
        answer = await self._within(deadline + LATE, lambda: self._handler.wait_drained(deadline))
        if answer is _NONE:
            answer = f"wait_drained() had not returned {LATE:g} s after its deadline"
        if not isinstance(answer, str | None):
            answer = f"wait_drained() returned a {type(answer).__name__}, neither None nor a sentence"
        told = self._failure or answer
        return None if told is None else printable(told[:500])

    async def health(self) -> bool:
        return await self._within(trio.current_time() + PATIENCE, self._handler.health) is True

    def statistics(self) -> Mapping[str, object]:
        return self._call("statistics", _shown)

    def drain(self) -> Mapping[str, object]:
        return self._call("drain", _shown)

    def _call(
        self, method: str, shown: Callable[[object], Mapping[str, object]] = lambda answer: {}
    ) -> Mapping[str, object]:
        try:
            answer = getattr(self._handler, method)()
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError(f"{method}() must be a plain def: nobody awaits what it returns")
            return shown(answer)
        except BaseException as error:  # a SystemExit, or asyncio's CancelledError, would end the service
            self._failed(method, error)
            return {}

    def _failed(self, method: str, error: BaseException) -> None:
        if method in ("enter", "wait_drained"):  # a look at its figures, or at its health, changes nothing
            self._failure = f"{method}() raised {type(error).__name__}"
        self._defects.note("handler", error, handler=self.name)

    async def _within(self, deadline: float, ask: Callable[[], Awaitable[object]]) -> object:
        """Its answer; `_NONE` when there was none by then, None when it raised. It runs in a task of its own, which is cancelled
        and not waited for."""
        answer: list[object] = []
        ended, scope = trio.Event(), trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    answer.append(await ask())
            except BaseException as raised:  # as above
                error = its_own(raised)
                answer.append(None)
                self._failed("wait_drained" if ask != self._handler.health else "health", error)
            finally:
                ended.set()

        self._nursery.start_soon(run)
        try:
            with trio.CancelScope(deadline=deadline):
                await ended.wait()
        finally:
            scope.cancel(reason="its time is over")
        return answer[0] if answer else _NONE


_NONE: Any = object()


def _shown(figures: object) -> Mapping[str, object]:
    """What can stand in a report: names, and what JSON can say of the values."""
    if not isinstance(figures, Mapping):
        return {}
    shown: dict[str, object] = {}
    for name, value in list(figures.items())[:50]:
        try:
            shown[printable(str(name)[:80])] = json.loads(json.dumps(value, default=repr, allow_nan=False)[:LONGEST])
        except (ValueError, TypeError, RecursionError):
            shown[printable(str(name)[:80])] = printable(repr(value)[:80])
    return shown
