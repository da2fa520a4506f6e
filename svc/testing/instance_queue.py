"""The queue as one instance of a simulated service reaches it, until the line is cut: so a process dies."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import trio

from svc.consumer.queue import DeadLetterQueue, Queue, Received, Refusal

T = TypeVar("T")


class Line:
    """The queue as one instance reaches it, until the line is cut."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.is_cut = False
        self._calls: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """Calls on the wire never answer, and further ones never leave."""
        self.is_cut = True
        for call in self._calls:
            call.cancel(reason="simulated crash")

    async def _through(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self.is_cut:
            with trio.CancelScope() as scope:
                self._calls.add(scope)
                try:
                    return await call()
                finally:
                    self._calls.discard(scope)
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    @property
    def max_receive_count(self) -> int | None:
        return self._queue.max_receive_count

    @property
    def fifo(self) -> bool | None:
        return self._queue.fifo

    @property
    def repeats_receives(self) -> bool:
        return self._queue.repeats_receives

    async def receive(
        self, *, limit: int, wait: int, visibility: int, attempt: str | None = None
    ) -> Sequence[Received]:
        return await self._through(
            lambda: self._queue.receive(limit=limit, wait=wait, visibility=visibility, attempt=attempt)
        )

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        return await self._through(lambda: self._queue.delete(receipts))

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        return await self._through(lambda: self._queue.change_visibility(timeouts))

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        return await self._through(lambda: self._queue.dead_letter(delivery, reason))

    async def send(self, body: str, **options: Any) -> str:
        return await self._through(lambda: self._queue.send(body, **options))

    async def attributes(self) -> Mapping[str, str]:
        return await self._through(self._queue.attributes)

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        return await self._through(self._queue.dead_letter_queue)

    async def look_at_dead_letters(self, most: int, *, seconds: float) -> Sequence[Received] | None:
        return await self._through(lambda: self._queue.look_at_dead_letters(most, seconds=seconds))
