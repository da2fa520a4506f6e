"""The end of connections, seen through to the other side.

An operator who reads `pg_stat_activity` after a drain must find none of ours. `close()` of a connection says good-bye and does
not wait: the server's process for it may be listed some milliseconds more. So a second descriptor of the socket is kept, and the
end has come when the server has closed its side, which it does after the process has left that list.

A connection that somebody still uses (a thread that cannot be stopped, a processor that ignored its cancellation) is ended in
three steps: its statement is cancelled; our side of the socket is closed, at which the server rolls back and goes; and if it does
not (it is frozen, or the network is cut), the socket is shut down, so that at least whoever waits on our side wakes up with an
error.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import select
import socket
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

import psycopg

Raw: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_ENDED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Farewell:
    """Watches the other side of a connection that is open yet. Everything here may block for as long as it is told."""

    def __init__(self, connection: Raw) -> None:
        self.connection = connection
        self._socket: socket.socket | None = None
        with contextlib.suppress(psycopg.Error, OSError, ValueError):
            descriptor = connection.fileno()
            self._socket = socket.socket(fileno=os.dup(descriptor))
            if connection.closed or connection.fileno() != descriptor:
                self.forget()  # closed in between: the descriptor may be anybody's by now

    def stop_sending(self) -> None:
        """The server sees the end of the connection, and ends its side. What is under way on ours goes on to wait for that."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Whoever waits for the server's answer on this connection gets an error now."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def descriptor(self) -> int | None:
        return None if self._socket is None else self._socket.fileno()


def wait_ended(farewells: Iterable[Farewell], seconds: float) -> list[Farewell]:
    """Wait until the server has ended its side of each, for `seconds` at most; returns those that it has not."""
    left = {descriptor: one for one in farewells if (descriptor := one.descriptor()) is not None}
    poll = select.poll()
    for descriptor in left:
        poll.register(descriptor, _ENDED & ~select.POLLNVAL)
    deadline = time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        for descriptor, happened in poll.poll(rest * 1000):
            if happened & _ENDED:
                poll.unregister(descriptor)
                del left[descriptor]
    return list(left.values())


def cancel(raw: "psycopg.Connection[Any]", seconds: float) -> None:
    """Ask the server to cancel the statement that is under way, if there is one. Blocks, for so many seconds."""
    with contextlib.suppress(psycopg.Error, OSError):
        raw.cancel_safe(timeout=seconds)


def cancel_either(raw: Raw, loop: asyncio.AbstractEventLoop | None, seconds: float) -> None:
    """The same for a connection of `loop` too."""
    if isinstance(raw, psycopg.Connection):
        cancel(raw, seconds)
    elif loop is not None:
        in_loop(loop, raw.cancel_safe(timeout=seconds), seconds)


def in_loop(loop: asyncio.AbstractEventLoop, coroutine: Any, seconds: float) -> None:
    """Run it in a loop of another thread, which may be busy, or have ended."""
    try:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(seconds)
    except RuntimeError:
        coroutine.close()  # the loop has ended
    except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, psycopg.Error, OSError):
        pass
