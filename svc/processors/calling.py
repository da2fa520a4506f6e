"""How a processor is called: whatever form it has, as one awaitable function of a message.

A processor is one of

- `async def handle(message: Message) -> None`,
- `def handle(message: Message) -> None`, which runs in a worker thread,
- an async context manager function that yields either, for processors that hold connections. It is entered once, before the
  first message, and left after the last. It may take one argument, the service's `Settings`.

`opened()` turns each of them into one awaitable function. Nothing here knows of queues, receipt handles or maintenance.
"""

import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
import trio

from svc.processors.arguments import Prepare, prepared
from svc.processors.finding import UnusableProcessor, check, kind, name_of, opens, settings_arguments, without_partials
from svc.processors.message import Message, Process
from svc.processors.options import Options, options_of

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def opened(found: Callable[..., object], settings: object, *, threads: int) -> AsyncIterator[Process]:
    """Make a processor ready and yield the function that processes one message.

    `settings` goes to a context manager function that asks for it; `threads` bounds the worker threads of a plain `def`.
    Raises `UnusableProcessor` when a context manager yields something that is none.
    """
    options = options_of(found)
    if not opens(found):
        yield _as_async(found, options, name_of(found), threads)
        return
    manager = found(*settings_arguments(found, settings))
    assert isinstance(manager, AbstractAsyncContextManager)
    async with manager as inner:
        yielded = f"what {name_of(found)} yields"
        function = check(inner, yielded)
        if opens(function):
            raise UnusableProcessor(f"{yielded!r} is one more context manager function, not a function for messages")
        yield _as_async(function, options_of(function) or options, yielded, threads)


def _as_async(function: Callable[..., object], options: Options | None, name: str, threads: int) -> Process:
    prepare = None if options is None else prepared(function, options, name)
    plain = without_partials(function)
    if inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__):
        return _Direct(function, prepare)
    return _InThreads(function, prepare, threads)


def unstoppable(process: Process) -> Mapping[str, str]:
    """Message id → thread, of those threads of a plain `def` that go on although their message was given back."""
    found: Mapping[str, str] = getattr(inspect.unwrap(process), "unstoppable", {})
    return found


class _Direct:
    """An `async def`."""

    def __init__(self, function: Callable[..., object], prepare: Prepare | None) -> None:
        self._function: Any = function
        self._prepare = prepare
        self._warned = False

    async def __call__(self, message: Message) -> None:
        arguments = (message,) if self._prepare is None else self._prepare(message)
        if arguments is None:
            return
        result = await self._function(*arguments)
        if result is not None:
            await self._returned(result)

    async def _returned(self, result: object) -> None:
        """Returning is success, whatever is returned; except for what looks like a slip by which a message would be deleted
        unprocessed."""
        if inspect.isawaitable(result):
            # A plain function that only made a coroutine (a lambda, a decorator), or a forgotten await: nothing is done yet.
            result = await result
        if isinstance(result, BaseException):
            raise result  # `return Retry()` instead of `raise Retry()`
        if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(f"the processor returned {kind(result)} instead of doing the work")
        if hasattr(result, "__aenter__"):
            raise TypeError(f"the processor returned {kind(result)} instead of doing the work")
        if result is not None and not self._warned:
            self._warned = True
            log.warning(
                "the processor returned something; that is ignored, the message is processed. To have it tried again, raise "
                "Retry (told once)",
                returned=kind(result),
            )


class _InThreads(_Direct):
    """A plain `def`, in worker threads."""

    def __init__(self, function: Callable[..., object], prepare: Prepare | None, threads: int) -> None:
        super().__init__(function, prepare)
        self._limiter = trio.CapacityLimiter(threads)
        self._running: dict[object, _Thread] = {}

    @property
    def unstoppable(self) -> Mapping[str, str]:
        return {one.message_id: one.name for one in list(self._running.values()) if one.abandoned_at is not None}

    async def __call__(self, message: Message) -> None:
        this = _Thread(message.id)
        try:
            # Abandoned, not awaited, when cancelled: a thread cannot be stopped, and a drain has to end on time.
            # In a list: Trio refuses coroutines as results.
            (result,) = await trio.to_thread.run_sync(
                lambda: [self._work(this, message)], abandon_on_cancel=True, limiter=self._limiter
            )
        except trio.Cancelled:
            if this in self._running:
                this.abandoned_at = trio.current_time()
                log.warning(
                    "a thread goes on although its message was given back: threads cannot be stopped",
                    message_id=message.id,
                    thread=this.name,
                )
            raise
        if result is not None:
            await self._returned(result)

    def _work(self, this: "_Thread", message: Message) -> object:
        current = threading.current_thread()
        this.name = f"{name_of(self._function)} in thread {current.native_id}"
        self._running[this] = this
        try:
            arguments = (message,) if self._prepare is None else self._prepare(message)
            return None if arguments is None else self._function(*arguments)
        finally:
            del self._running[this]
            if this.abandoned_at is not None:
                log.info("the thread that went on has ended", message_id=message.id, thread=this.name)


class _Thread:
    """One call in a thread."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.name = ""
        self.abandoned_at: float | None = None
