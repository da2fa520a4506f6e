"""The asyncio loop of processors in virtual time: trio-asyncio's, whose clock is Trio's. Not on Python 3.14, where trio-asyncio
cannot be imported; there, test such processors on the real stack."""

import contextlib
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import outcome

from svc.processors import count_tasks, end_what_was_left, started_here


class VirtualAsyncio:
    """Stands in for `svc.processors.asyncio_thread.AsyncioThread`. Made by `opened()`."""

    def __init__(self, loop: Any) -> None:
        # trio-asyncio would look for it in the context of the task that calls: but a message's task may have been started by one
        # that does not know of the loop, or knows another instance's.
        self._loop = loop

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls) -> AsyncIterator["VirtualAsyncio"]:
        """Within, there is a loop."""
        try:
            import trio_asyncio
        except (ImportError, AttributeError):
            raise NotImplementedError(
                "asyncio processors have no virtual time on this Python (trio-asyncio does not run on 3.14): use svc_stack"
            ) from None
        async with trio_asyncio.open_loop() as loop:
            count_tasks(loop)
            yield cls(loop)

    async def call(self, function: Callable[..., object], *arguments: object) -> object:
        """Run the function in the loop and return what it returns, or raise what it raises."""

        async def run() -> outcome.Outcome[object]:
            started = started_here()
            try:
                result = function(*arguments)
                while inspect.isawaitable(result):
                    result = await result
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # raised on, the last two would end the loop
                return outcome.Error(error)
            finally:
                if started:
                    await end_what_was_left(started, contextvars.copy_context())
            return outcome.Value(result)

        ended: outcome.Outcome[object] = await self._loop.run_aio_coroutine(run())
        return ended.unwrap()

    def entered(self, manager: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[Any]:
        """Enter an async context manager in the loop."""
        import trio_asyncio

        entered: AbstractAsyncContextManager[Any] = trio_asyncio.aio_as_trio(manager)
        return entered
