"""A queue that reports its calls to an observer: what was asked, how it ended, how long it took.

It wraps any `Queue` and changes nothing: results and errors go through as they are, and there is no checkpoint that the queue
itself does not have (between a receive's answer and the ledger there may be none).
"""

from collections.abc import Mapping, Sequence
from types import TracebackType

import trio

from svc.consumer.observer import Action, Observer, Result
from svc.consumer.queue import (
    DeadLetterQueue,
    MessageRefused,
    Queue,
    QueueError,
    QueueMisconfigured,
    QueueTimeout,
    QueueUnavailable,
    Received,
    Refusal,
)


class ObservedQueue:
    """For the methods see `svc.consumer.queue.Queue`."""

    def __init__(self, queue: Queue, observer: Observer) -> None:
        self._queue = queue
        self._observer = observer

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
        with _Call(self._observer, "receive", 0):
            deliveries = await self._queue.receive(limit=limit, wait=wait, visibility=visibility, attempt=attempt)
        self._observer.received(deliveries)
        return deliveries

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        with _Call(self._observer, "delete", len(receipts)):
            return await self._queue.delete(receipts)

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        with _Call(self._observer, "change_visibility", len(timeouts)):
            return await self._queue.change_visibility(timeouts)

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        with _Call(self._observer, "dead_letter", 1):
            return await self._queue.dead_letter(delivery, reason)

    async def send(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: int | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        with _Call(self._observer, "send", 1):
            return await self._queue.send(
                body, attributes=attributes, delay=delay, group_id=group_id, deduplication_id=deduplication_id
            )

    async def attributes(self) -> Mapping[str, str]:
        with _Call(self._observer, "attributes", 0):
            return await self._queue.attributes()

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        with _Call(self._observer, "attributes", 0):
            return await self._queue.dead_letter_queue()

    async def look_at_dead_letters(self, most: int, *, seconds: float) -> Sequence[Received] | None:
        # Not counted: it is somebody's look, several calls, and no part of the work.
        return await self._queue.look_at_dead_letters(most, seconds=seconds)


class _Call:
    """Times one call, and names how it ended."""

    __slots__ = ("_action", "_began", "_entries", "_observer")

    def __init__(self, observer: Observer, action: Action, entries: int) -> None:
        self._observer = observer
        self._action: Action = action
        self._entries = entries

    def __enter__(self) -> None:
        self._began = trio.current_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        result: Result = "ok" if error is None else _result(error)
        self._observer.called(self._action, result, trio.current_time() - self._began, self._entries)


def _result(error: BaseException) -> Result:
    match error:
        case QueueTimeout():
            return "timeout"
        case QueueUnavailable():
            return "unavailable"
        case QueueMisconfigured():
            return "misconfigured"
        case MessageRefused():
            return "refused"
        case QueueError():
            return "error"
        case trio.Cancelled():
            return "cancelled"
    return "error"
