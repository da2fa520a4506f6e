"""`svc dlq`: looks into the dead-letter queue without keeping anything from it, and moves its messages back.

SQS has no way to look without receiving: what is looked at is hidden from others for a moment, costs one receive of its count,
and is released at once. Moving back is receive, send, delete: SQS's own move task cannot be stopped at a number, keeps
`RejectReason`, and emulators do not have it. Nothing is deleted before its copy is confirmed, so an interruption at any point
loses nothing; at worst a message stands in both queues, and is named.

Knows the calls of a queue and nothing of AWS or terminals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from svc.consumer.queue import MAX_BATCH, QueueError, Received, Refusal, number_in

LOOK_SECONDS = 30
"""How long what is looked at stays hidden when it cannot be released."""

MOVE_SECONDS = 120
"""How long a batch on its way back is hidden: ten sends, each given up after 5 s, and its delete, tried a few times."""

WAIT = 1
"""Seconds of long poll: with any wait at all SQS asks all of its servers, and an empty answer means that there is nothing."""

DELETE_TRIES = 4

TIDY = 5.0
"""Seconds that releasing may take at the end, whatever ended it."""


class DeadLetters(Protocol):
    """Of the dead-letter queue."""

    async def receive(self, *, limit: int, wait: int, visibility: int) -> Sequence[Received]: ...

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]: ...

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]: ...

    async def attributes(self) -> Mapping[str, str]: ...


class Source(Protocol):
    """Of the queue that they came from."""

    async def take_back(self, delivery: Received) -> None:
        """Send this message, with its attributes and its group, without its `RejectReason`. Sent twice within five minutes, a
        FIFO queue takes it once."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What SQS says of a queue; approximate, as it says itself."""

    visible: int
    hidden: int
    """In flight, or delayed."""


async def depth(queue: DeadLetters) -> Depth:
    found = await queue.attributes()

    names = ("", "NotVisible", "Delayed")
    visible, in_flight, delayed = (number_in(found, f"ApproximateNumberOfMessages{name}") or 0 for name in names)
    return Depth(visible, in_flight + delayed)


async def look(dead: DeadLetters, most: int) -> list[Received]:
    """Up to `most` messages, each once. They are visible to others again when this returns or raises."""
    found: dict[str, Received] = {}
    held: list[str] = []
    ends = trio.current_time() + LOOK_SECONDS / 2
    try:
        while len(found) < most and trio.current_time() < ends:
            brought = await _landed(dead, min(MAX_BATCH, most - len(found)), LOOK_SECONDS)
            held += [delivery.receipt for delivery in brought]
            fresh = {delivery.message.id: delivery for delivery in brought if delivery.message.id not in found}
            found |= fresh
            if not fresh:
                break
            await trio.lowlevel.checkpoint_if_cancelled()
    finally:
        await _release(dead, held)
    return list(found.values())


async def _landed(dead: DeadLetters, limit: int, visibility: int) -> list[Received]:
    """A receive is never cut off: what SQS hands to it then would stay hidden. It takes its wait and five seconds at most."""
    with trio.CancelScope(shield=True):
        brought = await dead.receive(limit=limit, wait=WAIT, visibility=visibility)
    return list(brought)


@dataclass(slots=True)
class Moved:
    """What became of a redrive. True at every moment, so that it can be told whatever ends it."""

    count: int = 0
    """Confirmed in the queue and gone from the dead-letter queue."""
    twice: list[str] = field(default_factory=list)
    """Ids of messages that were sent, and whose delete is not confirmed: they may be in both queues."""
    stop: bool = False
    """Set from outside: end after the message that is on its way."""


async def redrive(
    dead: DeadLetters, source: Source, most: int, moved: Moved, on_moved: Callable[[int], None] = lambda count: None
) -> None:
    """Move up to `most` messages back, in the order in which they come. Raises `QueueError` when a call fails; `moved` tells then
    how far it came, and what was not sent is released."""
    while moved.count + len(moved.twice) < most and not moved.stop:
        limit = min(MAX_BATCH, most - moved.count - len(moved.twice))
        batch = await _landed(dead, limit, MOVE_SECONDS)
        if not batch:
            return
        await _move(dead, source, batch, moved)
        on_moved(moved.count)


async def _move(dead: DeadLetters, source: Source, batch: Sequence[Received], moved: Moved) -> None:
    sent: list[Received] = []
    # On its way until its delete is confirmed: what ends us in between finds it here.
    moved.twice += [delivery.message.id for delivery in batch]
    try:
        for delivery in batch:
            if moved.stop:
                break
            await source.take_back(delivery)
            sent.append(delivery)
    finally:
        unsent = batch[len(sent) :]
        for delivery in unsent:
            moved.twice.remove(delivery.message.id)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + MOVE_SECONDS / 2):
            for delivery in await _deleted(dead, sent):
                moved.twice.remove(delivery.message.id)
                moved.count += 1
        await _release(dead, [delivery.receipt for delivery in unsent])


async def _deleted(dead: DeadLetters, sent: Sequence[Received]) -> list[Received]:
    """Delete what is confirmed in the queue; returns what is confirmed to be deleted."""
    left, done = list(sent), []
    for attempt in range(DELETE_TRIES):
        if not left:
            break
        if attempt:
            await trio.sleep(2**attempt / 4)
        try:
            refused = await dead.delete([delivery.receipt for delivery in left])
        except QueueError:
            continue
        done += [delivery for delivery in left if delivery.receipt not in refused]
        left = [delivery for delivery in left if delivery.receipt in refused]
    return done


async def _release(dead: DeadLetters, receipts: Sequence[str]) -> None:
    """As well as it can be done: what is not released becomes visible by itself."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + TIDY):
        for first in range(0, len(receipts), MAX_BATCH):
            try:
                await dead.change_visibility(dict.fromkeys(receipts[first : first + MAX_BATCH], 0))
            except QueueError:
                continue
