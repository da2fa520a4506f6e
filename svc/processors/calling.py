"""How a processor is called: whatever form it has, as one awaitable function of a message.

A processor is one of

- `async def handle(message: Message) -> None`,
- `def handle(message: Message) -> None`, which runs in a worker thread,
- an `async def` for asyncio, when `@processor(runtime="asyncio")` or `MESSAGE_RUNTIME` says so (`asyncio_thread.py`),
- an async context manager function that yields either, for processors that hold connections. It is entered once, before the
  first message, and left after the last. It may take one argument, the service's `Settings`.

`opened()` turns each of them into one awaitable function. Nothing here knows of queues, receipt handles or maintenance.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import structlog
import trio

from svc.processors import envelopes
from svc.processors.arguments import Prepare, prepared, prepared_items, wants_batch
from svc.processors.asyncio_thread import AsyncioThread
from svc.processors.batch import UNMARKED, AnyProcess, Batch, Batching
from svc.processors.envelopes import Peel
from svc.processors.exactly_once import around, around_batch
from svc.processors.finding import (
    UnusableProcessor,
    check,
    kind,
    name_of,
    not_done,
    opens,
    settings_arguments,
    without_partials,
)
from svc.processors.message import Message
from svc.processors.one_process import OneProcess
from svc.processors.options import Options, Runtime, options_of
from svc.processors.threads import ThreadRun, Threads
from svc.processors.unit_of_work import UnitOfWork

log = structlog.get_logger(__name__)


class AsyncioLoop(Protocol):
    """Where asyncio processors run: `AsyncioThread`, or in tests a loop in virtual time."""

    async def call(self, function: Callable[..., object], *arguments: object) -> object: ...

    def entered(self, manager: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[Any]: ...


@contextlib.asynccontextmanager
async def opened(
    found: Callable[..., object],
    settings: object,
    *,
    threads: int,
    runtime: Runtime | Literal["auto"] = "auto",
    unit_of_work: UnitOfWork | None = None,
    open_asyncio: Callable[[], AbstractAsyncContextManager[AsyncioLoop]] = AsyncioThread.opened,
) -> AsyncIterator[AnyProcess]:
    """Make a processor ready and yield the function that processes one message, or what processes batches.

    `settings` goes to a context manager function that asks for it; `threads` bounds the worker threads of a plain `def`;
    `runtime` is where a function runs that does not say it itself; `unit_of_work` is for one that says `exactly_once`. Raises
    `UnusableProcessor` when a context manager yields something that is none, and `LoopEnded` (in groups) when the asyncio loop
    of a processor ends by itself.
    """
    options = options_of(found)
    on_asyncio = _runtime(found, options, runtime, name_of(found)) == "asyncio"
    async with contextlib.AsyncExitStack() as held:
        loop = await held.enter_async_context(open_asyncio()) if on_asyncio else None
        function, name = found, name_of(found)
        if opens(found):
            manager = found(*settings_arguments(found, settings))
            assert isinstance(manager, AbstractAsyncContextManager)
            inner = await held.enter_async_context(manager if loop is None else loop.entered(manager))
            name = f"what {name} yields"
            function = check(inner, name, marked=options is not None)
            if opens(function):
                raise UnusableProcessor(f"{name!r} is one more context manager function, not a function for messages")
            own = options_of(function)
            if own is not None and own.runtime == "asyncio" and loop is None:
                raise UnusableProcessor(f"{name!r} runs on asyncio, so the context manager function has to say it too")
            options = own or options
        yield _as_async(function, options, name, threads, loop, unit_of_work)


def _as_async(
    function: Callable[..., object],
    options: Options | None,
    name: str,
    threads: int,
    loop: AsyncioLoop | None,
    unit: UnitOfWork | None,
) -> AnyProcess:
    if options is None and wants_batch(function):
        raise UnusableProcessor(f"{name!r} wants a svc.Batch: say how large, @processor(batch=…)")
    batching = options is not None and options.batch is not None
    prepare = None if options is None or batching else prepared(function, options, name)
    runtime: Runtime = "thread" if not _is_async(function) else "trio" if loop is None else "asyncio"
    once = options is not None and options.exactly_once is not False
    if options is not None and prepare is not None and once:
        function, prepare = around(function, prepare, options, unit, runtime=runtime, name=name)
    read = prepared_items(function, options, name) if options is not None and batching else None
    if options is not None and batching and once:
        function = around_batch(function, options, unit, runtime=runtime, name=name)
    made: _Direct
    if runtime == "thread":
        made = _InThreads(function, prepare, threads)
    else:
        made = _Direct(function, prepare) if loop is None else _OnAsyncio(function, prepare, loop)
    made.envelopes = () if options is None else options.envelopes
    made.unit_of_work = unit if once else None
    if options is None or options.batch is None or read is None:
        return made
    made.of_batches = True
    return Batching(options.batch, options.linger, read, made)


def _is_async(function: Callable[..., object]) -> bool:
    plain = without_partials(function)
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)


def _runtime(
    found: Callable[..., object], options: Options | None, default: Runtime | Literal["auto"], name: str
) -> Runtime:
    """Where it runs. Raises `UnusableProcessor` where that cannot be."""
    said = options.runtime if options is not None else None
    wanted = said or (default if default != "auto" else None)
    if opens(found):
        if said == "thread":
            raise UnusableProcessor(f"{name!r} is an async context manager function: it runs on trio or asyncio")
        return wanted if wanted == "asyncio" else "trio"
    if not _is_async(found):
        if said in ("trio", "asyncio"):
            raise UnusableProcessor(
                f"{name!r} is a plain function, which runs in threads, not on {said}: make it an async def"
            )
        return "thread"
    if wanted == "thread":
        raise UnusableProcessor(f"{name!r} is an async def, which cannot run in a thread: make it a plain def")
    return wanted or "trio"


def _made(process: Any) -> Any:
    """What `opened()` made, inside of whatever is around it."""
    return inspect.unwrap(process)


def threads_of(process: AnyProcess) -> Threads:
    """The threads of a plain `def`; of anything else none."""
    found = getattr(_made(process), "threads", None)
    return found if isinstance(found, Threads) else Threads(1)


def sender_context(process: AnyProcess, message: Message) -> Mapping[str, str]:
    """The trace context that travels within the envelopes of a message that came for this processor."""
    peels: Sequence[str | Peel] = getattr(_made(process), "envelopes", ())
    return envelopes.sender_context(message.body, peels) if peels else {}


def asyncio_loop(process: AnyProcess) -> AsyncioThread | None:
    """The loop that a processor's functions run on, for the watchdog; None for one on Trio, or in threads."""
    loop = getattr(_made(process), "loop", None)
    return loop if isinstance(loop, AsyncioThread) else None


class _Direct:
    """An `async def`."""

    envelopes: Sequence[str | Peel] = ()
    of_batches = False

    def __init__(self, function: Callable[..., object], prepare: Prepare | None) -> None:
        self._function: Any = function
        self._prepare = prepare
        self._stay = OneProcess()
        self._warned = False
        self.unit_of_work: UnitOfWork | None = None

    async def __call__(self, message: Message | Batch[Any]) -> None:
        arguments = (message,) if self._prepare is None else self._arguments(message)
        if arguments is None:
            return
        try:
            result = await self._function(*arguments)
        finally:
            self._stay.leave_if_forked()
        if result is not None:
            await self._returned(result)

    def _arguments(self, message: Message | Batch[Any]) -> tuple[object, ...] | None:
        if self._prepare is None or isinstance(message, Batch):
            return (message,)
        return self._prepare(message)

    async def _returned(self, result: object) -> None:
        """Returning is success, whatever is returned; except for what looks like a slip by which a message would be deleted
        unprocessed."""
        if inspect.isawaitable(result):
            # A plain function that only made a coroutine (a lambda, a decorator), or a forgotten await: nothing is done yet.
            result = await result
        if isinstance(result, BaseException):
            raise result  # `return Retry()` instead of `raise Retry()`
        if not_done(result):
            raise TypeError(f"the processor returned {kind(result)} instead of doing the work")
        if result is not None and self.of_batches:
            # As others' batches do (AWS Lambda's list of failures). Ignored, it would delete what has failed.
            raise TypeError(f"the processor returned {kind(result)}: say what becomes of an item at the item")
        if result is not None and not self._warned:
            self._warned = True
            log.warning(
                "the processor returned something; that is ignored, the message is processed. To have it tried again, raise "
                "Retry (told once)",
                returned=kind(result),
            )


class _OnAsyncio(_Direct):
    """An `async def` for asyncio."""

    def __init__(self, function: Callable[..., object], prepare: Prepare | None, loop: AsyncioLoop) -> None:
        super().__init__(functools.partial(loop.call, self._in_its_thread), prepare)
        self._asynchronous: Any = function
        self.loop = loop

    async def _in_its_thread(self, *arguments: object) -> object:
        try:
            return await self._asynchronous(*arguments)
        finally:
            self._stay.leave_if_forked()


class _InThreads(_Direct):
    """A plain `def`, in worker threads."""

    def __init__(self, function: Callable[..., object], prepare: Prepare | None, threads: int) -> None:
        super().__init__(function, prepare)
        self.threads = Threads(threads)

    async def __call__(self, message: Message | Batch[Any]) -> None:
        run = ThreadRun(
            self.threads, *([message.id] if isinstance(message, Message) else [item.message.id for item in message])
        )
        try:
            # Left behind, not awaited, when cancelled: a thread cannot be stopped, and a drain has to end on time.
            # In a list: Trio refuses coroutines as results.
            (result,) = await trio.to_thread.run_sync(
                lambda: [self._work(run, message)],
                abandon_on_cancel=True,
                limiter=run,  # type: ignore[arg-type]  # anything with these two methods, says Trio's documentation
            )
        except trio.Cancelled:
            run.give_back()
            raise
        finally:
            run.task_ends()
        if result is not None:
            await self._returned(result)

    def _work(self, run: ThreadRun, message: Message | Batch[Any]) -> object:
        if not run.begin(f"{name_of(self._function)} in thread {threading.current_thread().native_id}"):
            return None
        returned = False
        try:
            arguments = self._arguments(message)
            result = None if arguments is None else self._function(*arguments)
            returned = result is None or not (self.of_batches or isinstance(result, BaseException) or not_done(result))
            return result
        finally:
            self._stay.leave_if_forked()
            if isinstance(message, Batch):
                run.finished = [
                    item.message.id for item in message if item.mark is None or (returned and item.mark is UNMARKED)
                ]
            elif returned:
                run.finished = [message.id]
