"""`message.shutting_down`: the event by which a long processor learns that a drain has begun, whatever it runs on.

It is set once, in Trio's thread, and looked at or waited for from anywhere: Trio tasks, asyncio loops of other threads, threads.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable
from typing import overload

import sniffio
import trio


class ShuttingDown:
    """Set when the drain begins: a maintenance, or the stop of the service.

    What it asks for is to stop at a good point before the drain's deadline, at which the work is cancelled. How it stops is the
    processor's choice: return, raise `Retry()`, or go on, if the rest is short. When the maintenance ends, the service goes on
    with another one, that is not set: ask the message for it again, and do not keep it."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._on_trio = trio.Event()
        self._lock = threading.Lock()
        self._on_asyncio: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Whether the drain has begun. From any thread."""
        return self._set.is_set()

    @overload
    def wait(self) -> Awaitable[None]: ...
    @overload
    def wait(self, timeout: float) -> bool: ...

    def wait(self, timeout: float | None = None) -> Awaitable[None] | bool:
        """`await message.shutting_down.wait()` on Trio and on asyncio; in a plain function, which runs in a thread,
        `message.shutting_down.wait(timeout=seconds)`, which returns whether it is set. Raises `RuntimeError` for the one in the
        other's place."""
        try:
            library = sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            if timeout is None:
                raise RuntimeError("a plain function waits with shutting_down.wait(timeout=seconds)") from None
            return self._set.wait(min(max(timeout, 0.0), threading.TIMEOUT_MAX))
        if timeout is not None:
            raise RuntimeError(f"an async function on {library} waits with: await shutting_down.wait()")
        return self._on_trio.wait() if library == "trio" else self._wait_on_asyncio()

    async def _wait_on_asyncio(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._set.is_set():
                return
            self._on_asyncio.add(waiting)
        try:
            await waiting
        finally:
            with self._lock:
                self._on_asyncio.discard(waiting)

    def set(self) -> None:
        """The drain begins. In Trio's thread."""
        with self._lock:
            self._set.set()
            waiting, self._on_asyncio = self._on_asyncio, set()
        self._on_trio.set()
        for future in waiting:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                future.get_loop().call_soon_threadsafe(_wake, future)


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
