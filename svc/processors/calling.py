"""The user's side of the fence: what a processor gets, what it may raise, how it is found, and the default one.

A processor is named by `MESSAGE_PROCESSOR=module:attribute` and is one of

- `async def handle(message: Message) -> None`,
- `def handle(message: Message) -> None`, which runs in a worker thread,
- an async context manager function that yields either, for processors that hold connections. It is entered once, before the
  first message, and left after the last. It may take one argument, the service's `Settings`.

`opened()` turns each of them into one awaitable function. Nothing here knows of queues, receipt handles or maintenance.
"""

import contextlib
import functools
import importlib
import inspect
import json
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

import structlog
import trio

log = structlog.get_logger(__name__)

Process = Callable[["Message"], Awaitable[None]]
"""What the worker calls for each message. What it raises is the message's fate; it returns nothing."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as a processor sees it. It cannot be changed."""

    id: str
    """SQS's message id: the same for every delivery of the message."""
    body: str
    attributes: Mapping[str, str | bytes] = field(default_factory=lambda: MappingProxyType({}))
    """The sender's message attributes by name; numbers come as SQS sends them, as strings."""
    receive_count: int = 1
    """How often the message has been received, this time included (SQS: approximate)."""
    sent_at: datetime | None = None
    """When it was sent, in UTC; None if the queue did not say."""
    group_id: str | None = None
    """The message group (FIFO queues, and fair queues)."""

    def json(self) -> Any:
        """The body, read as JSON. Raises `json.JSONDecodeError` (a `ValueError`) when it is none."""
        return json.loads(self.body)


class Retry(Exception):
    """Raised by a processor: give the message back to the queue and make it visible again in `after` seconds (0-43200)."""

    def __init__(self, reason: str = "", *, after: float = 0) -> None:
        if not 0 <= after <= 43_200:
            raise ValueError(f"Retry(after={after!r}): SQS takes 0 to 43200 seconds")
        super().__init__(reason or f"retry in {after:g} s")
        self.after = after


class Reject(Exception):
    """Raised by a processor: this message can never be processed. It goes to the dead-letter queue at once, with the reason as
    a message attribute; where the queue has none it is deleted, with an error in the log."""

    def __init__(self, reason: str = "rejected by the processor") -> None:
        super().__init__(reason)
        self.reason = reason


class UnusableProcessor(Exception):
    """`MESSAGE_PROCESSOR` names nothing that can process messages. The text says why."""


def find(path: str) -> Callable[..., object]:
    """The object that `module:attribute` names. Raises `UnusableProcessor`."""
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise UnusableProcessor(f"{path!r} is not of the form module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UnusableProcessor(
                f"there is no module {error.name!r} (is its folder the working directory, or on PYTHONPATH?)"
            ) from error
        raise UnusableProcessor(f"importing {module_name!r} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise UnusableProcessor(f"importing {module_name!r} failed: {_short(error)}") from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UnusableProcessor(f"module {module_name!r} has no attribute {attribute!r}") from None
        except Exception as error:
            raise UnusableProcessor(f"reading {path!r} failed: {_short(error)}") from error
    return check(found, path)


def check(found: object, name: str) -> Callable[..., object]:
    """`found`, if it can be a processor. Raises `UnusableProcessor`, which calls it `name`."""
    if inspect.isclass(found) or not callable(found):
        raise UnusableProcessor(f"{name!r} is {_kind(found)}, not a function or an async context manager function")
    if inspect.isasyncgenfunction(found) or inspect.isgeneratorfunction(inspect.unwrap(_without_partials(found))):
        raise UnusableProcessor(f"{name!r} is a generator function: decorate it with contextlib.asynccontextmanager")
    arguments = 1 if not _opens(found) else None
    try:
        signature = inspect.signature(found)
        if arguments is None:
            _settings_arguments(found, None)
        else:
            signature.bind(object())
    except ValueError:
        pass  # no signature to be had (a builtin): the first message will tell
    except TypeError:
        raise UnusableProcessor(f"{name!r} cannot be called with one message: its signature is {signature}") from None
    return found


@contextlib.asynccontextmanager
async def opened(found: Callable[..., object], settings: object, *, threads: int) -> AsyncIterator[Process]:
    """Make a processor ready and yield the function that processes one message.

    `settings` goes to a context manager function that asks for it; `threads` bounds the worker threads of a plain `def`.
    Raises `UnusableProcessor` when a context manager yields something that is none.
    """
    if not _opens(found):
        yield _as_async(found, threads)
        return
    manager = found(*_settings_arguments(found, settings))
    assert isinstance(manager, AbstractAsyncContextManager)
    async with manager as inner:
        yielded = f"what {_name(found)} yields"
        function = check(inner, yielded)
        if _opens(function):
            raise UnusableProcessor(f"{yielded!r} is one more context manager function, not a function for messages")
        yield _as_async(function, threads)


def _as_async(function: Callable[..., object], threads: int) -> Process:
    plain = _without_partials(function)
    if inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__):
        return _Direct(function)
    return _InThreads(function, threads)


def unstoppable(process: Process) -> Mapping[str, str]:
    """Message id → thread, of those threads of a plain `def` that go on although their message was given back."""
    found: Mapping[str, str] = getattr(inspect.unwrap(process), "unstoppable", {})
    return found


class _Direct:
    """An `async def`."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function: Any = function
        self._warned = False

    async def __call__(self, message: Message) -> None:
        result = await self._function(message)
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
            raise TypeError(f"the processor returned {_kind(result)} instead of doing the work")
        if hasattr(result, "__aenter__"):
            raise TypeError(f"the processor returned {_kind(result)} instead of doing the work")
        if result is not None and not self._warned:
            self._warned = True
            log.warning(
                "the processor returned something; that is ignored, the message is processed. To have it tried again, raise "
                "Retry (told once)",
                returned=_kind(result),
            )


class _InThreads(_Direct):
    """A plain `def`, in worker threads."""

    def __init__(self, function: Callable[..., object], threads: int) -> None:
        super().__init__(function)
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
        this.name = f"{_name(self._function)} in thread {current.native_id}"
        self._running[this] = this
        try:
            return self._function(message)
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


def _opens(found: object) -> bool:
    """Whether this is a function made by `contextlib.asynccontextmanager`: it wraps an async generator function."""
    return callable(found) and inspect.isasyncgenfunction(inspect.unwrap(_without_partials(found)))


def _without_partials(found: Callable[..., object]) -> Callable[..., object]:
    while isinstance(found, functools.partial):
        found = found.func
    return found


def _settings_arguments(found: Callable[..., object], settings: object) -> tuple[object, ...]:
    """`(settings,)` for a context manager function that takes an argument, `()` for one that takes none."""
    signature = inspect.signature(found)
    with contextlib.suppress(TypeError):
        signature.bind(settings)
        return (settings,)
    signature.bind()
    return ()


def _short(error: BaseException) -> str:
    """One line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _kind(thing: object) -> str:
    return f"the class {thing.__name__}" if inspect.isclass(thing) else f"a {type(thing).__name__}"


def _name(thing: object) -> str:
    return getattr(thing, "__qualname__", repr(thing))


class _SimulatedWork(Protocol):
    simulated_work_seconds: tuple[float, float]


@contextlib.asynccontextmanager
async def simulated(settings: _SimulatedWork) -> AsyncIterator[Process]:
    """The default processor: sleeps for a random time within `SIMULATED_WORK_SECONDS`, then succeeds."""
    least, most = settings.simulated_work_seconds

    async def handle(message: Message) -> None:
        took = random.uniform(least, most)
        await trio.sleep(took)
        log.info("simulated work done", seconds=round(took, 2), body=message.body[:60])

    yield handle
