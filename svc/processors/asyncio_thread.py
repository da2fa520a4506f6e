"""Processors written for asyncio: one event loop in a thread of its own, for every message, until the service has stopped.

A call goes there and back: the Trio task of the message posts the function to the loop and sleeps; the loop runs it in a task of
its own, with the message's context variables, and its end wakes the Trio task. A cancellation of the Trio task cancels the
asyncio task once, and waits for it: what ignores it is outlived as a stubborn Trio processor is.

Trio and asyncio share nothing but these calls: neither loop can hold up the other.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import outcome
import structlog
import trio

from svc.processors.tasks_left import STARTED, count_tasks, end_what_was_left

log = structlog.get_logger(__name__)

CLOSING_SECONDS = 5.0
"""How long the loop may take to close: its tasks are cancelled, its async generators closed."""


class LoopEnded(RuntimeError):
    """The asyncio loop has ended although it was needed: something called `loop.stop()`, or raised SystemExit in a task."""


class AsyncioThread:
    """The loop and its thread. Made by `opened()`."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._calls: set[_Call] = set()
        self._thread = threading.Thread(target=self._serve, name="asyncio processors", daemon=True)
        self._serving = trio.Event()
        self._ended = trio.Event()
        self._error: BaseException | None = None
        self._is_over = False

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls) -> AsyncIterator["AsyncioThread"]:
        """Within, the loop runs. Raises `LoopEnded`, in a group, when it ends by itself."""
        self = cls()
        self._thread.start()
        await self._serving.wait()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_the_loop)
                yield self
                if not self._is_over:
                    nursery.cancel_scope.cancel(reason="the processor is closed")
        finally:
            await self._close()

    @property
    def thread_id(self) -> int | None:
        """Of the thread that runs the loop, for whoever looks at its stack."""
        return self._thread.ident

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call it soon. From any thread; raises `LoopEnded`."""
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function)
        except RuntimeError as error:
            raise LoopEnded("the asyncio loop of the processors has ended") from error

    async def call(self, function: Callable[..., object], *arguments: object) -> object:
        """Run the function in the loop and return what it returns, or raise what it raises."""
        if self._ended.is_set():
            raise LoopEnded("the asyncio loop of the processors has ended")
        call = _Call(self, function, arguments)
        self._calls.add(call)
        try:
            self.post(call.begin)

            def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                call.raise_cancel = raise_cancel
                with contextlib.suppress(LoopEnded):
                    self.post(call.cancel)
                return trio.lowlevel.Abort.FAILED  # it goes on until the asyncio task has ended

            return await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._calls.discard(call)

    @contextlib.asynccontextmanager
    async def entered(self, manager: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        """Enter an async context manager in the loop and leave it there, both in one task, as asyncio's time-outs want it."""
        leave: asyncio.Event | None = None
        inside: list[Any] = []
        ready = trio.Event()

        async def hold() -> None:
            nonlocal leave
            leave = asyncio.Event()
            async with manager as inner:
                inside.append(inner)
                self._token.run_sync_soon(ready.set)
                await leave.wait()

        async with trio.open_nursery() as nursery:

            async def held() -> None:
                await self.call(hold)
                nursery.cancel_scope.cancel(reason="the processor's context manager has ended")

            nursery.start_soon(held)
            await ready.wait()
            yield inside[0]
            assert leave is not None
            self.post(leave.set)

    # -- in the loop's thread --

    def _serve(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                self._loop = loop = runner.get_loop()
                count_tasks(loop)
                try:
                    runner.run(self._run())
                finally:
                    self._is_over = True  # what runs yet is cancelled by the runner
        except BaseException as raised:
            error = raised
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._has_ended, error)

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._token.run_sync_soon(self._serving.set)
        await self._stop.wait()

    # -- in Trio's thread --

    def _has_ended(self, error: BaseException | None) -> None:
        self._error = error
        self._ended.set()
        self._serving.set()
        for call in self._calls:
            call.finish(outcome.Error(LoopEnded("the asyncio loop ended while the processor was at work")))

    async def _end_with_the_loop(self) -> None:
        await self._ended.wait()
        raise LoopEnded(
            "the asyncio loop of the processors has ended: something called loop.stop(), or raised SystemExit in a task"
        ) from self._error

    async def _close(self) -> None:
        with contextlib.suppress(LoopEnded):
            if self._stop is not None:
                self.post(self._stop.set)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSING_SECONDS):
            await self._ended.wait()
        if not self._ended.is_set():
            log.warning("the asyncio loop of the processors does not end: a task ignores its cancellation")


class _Call:
    """One function that runs in the loop, for a Trio task that waits."""

    def __init__(self, thread: AsyncioThread, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._thread = thread
        self._function = function
        self._arguments = arguments
        self._waiting = trio.lowlevel.current_task()
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[outcome.Outcome[object]] | None = None
        self._cancelled = False
        self._finished = False
        self.raise_cancel: trio.lowlevel.RaiseCancelT | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        """What it has started and has not ended."""

    # -- in the loop's thread --

    def begin(self) -> None:
        self._context.run(STARTED.set, self.tasks)
        assert self._thread._loop is not None
        self._task = asyncio.Task(self._run(), loop=self._thread._loop, context=self._context)
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel("the message is given back")

    async def _run(self) -> outcome.Outcome[object]:
        try:
            result = self._function(*self._arguments)
            while inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too: raised on, it would end the loop
            return outcome.Error(error)
        return outcome.Value(result)

    def _done(self, task: "asyncio.Task[outcome.Outcome[object]]") -> None:
        if self.tasks:
            self._thread._loop.create_task(self._end_what_was_left(task))  # type: ignore[union-attr]
        else:
            self._report(task)

    async def _end_what_was_left(self, ended: "asyncio.Task[outcome.Outcome[object]]") -> None:
        await end_what_was_left(self.tasks, self._context)
        self._report(ended)

    def _report(self, task: "asyncio.Task[outcome.Outcome[object]]") -> None:
        result: outcome.Outcome[object] | None
        if not task.cancelled():
            result = task.result()
        elif self._cancelled:
            result = None
        elif self._thread._is_over:
            result = outcome.Error(LoopEnded("the asyncio loop ended while the processor was at work"))
        else:
            result = outcome.Error(
                RuntimeError("the processor raised asyncio.CancelledError, and nobody had cancelled it")
            )
        with contextlib.suppress(trio.RunFinishedError):
            self._thread._token.run_sync_soon(self.finish, result)

    # -- in Trio's thread --

    def finish(self, result: outcome.Outcome[object] | None) -> None:
        """Wake the Trio task; None: it was cancelled as asked."""
        if self._finished:
            return
        self._finished = True
        if result is None:
            assert self.raise_cancel is not None
            result = outcome.capture(self.raise_cancel)
        trio.lowlevel.reschedule(self._waiting, result)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (extra `uvloop`)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
