"""Two-way calls: a watch, and the keep-alive of a lease.

gRPC offers them only as blocking iterators: each has one thread, which hands over and does nothing else.

Nothing here may decide what an answer means, or let the thread out.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import trio

from svc.etcd.channel import Trouble, etcdrpc, grpc
from svc.etcd.keys import encoded, range_end

T = TypeVar("T")


class Stream(Generic[T]):
    """A two-way call to which these requests have been sent, as an async context manager. It owns the thread that gRPC's iterator
    needs. `call` makes the call of an iterator of requests; `read` parses an answer; `understood` says what an error means."""

    def __init__(
        self,
        call: Callable[[Iterator[Any]], Any],
        requests: Sequence[Any],
        read: Callable[[Any], T],
        understood: Callable[[Any], Trouble],
    ) -> None:
        self._send, self._receive = trio.open_memory_channel[T | Trouble](math.inf)
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._make = call
        self._read = read
        self._understood = understood
        # It must stay open: a request iterator that ends closes our half of the call, and etcd's gRPC proxy ends the other then,
        # before it has answered.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in requests:
            self._requests.put(request)
        self._call: Any = None

    async def __aenter__(self) -> Self:
        self._call = self._make(iter(self._requests.get, None))
        threading.Thread(target=self._pump, name="etcd-stream", daemon=True).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        self._requests.put(None)
        # The cancelled call ends at once, and the thread with it; a bound, since nobody can promise that for foreign
        # code.
        with trio.move_on_after(1, shield=True):
            await self._ended.wait()

    async def receive(self) -> T | Trouble:
        """The next answer, or the `Trouble` with which the call ended."""
        return await self._receive.receive()

    def end(self, trouble: Trouble) -> None:
        """Let `receive()` give this trouble next."""
        self._send.send_nowait(trouble)

    def _pump(self) -> None:
        """In the thread: hand each response over to Trio."""
        trouble = Trouble("etcd ended the call", "")
        try:
            for response in self._call:
                self._token.run_sync_soon(
                    self._send.send_nowait, self._read(response)
                )  # unbounded, never closed: it cannot raise
        except grpc.RpcError as error:
            trouble = self._understood(error)
        except trio.RunFinishedError:
            return
        except Exception as error:
            trouble = Trouble(f"the call broke: {error!r}", "")
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.end, trouble)
            self._token.run_sync_soon(self._ended.set)


def watch_requests(names: Sequence[str], prefixes: Sequence[str], revision: int) -> list[Any]:
    """What is sent to watch these keys, and all whose names begin so, from a revision on."""
    asked = [(encoded(name), b"") for name in names] + [(encoded(prefix), range_end(prefix)) for prefix in prefixes]
    return [
        etcdrpc.WatchRequest(create_request=etcdrpc.WatchCreateRequest(key=key, range_end=end, start_revision=revision))
        for key, end in asked
    ]
