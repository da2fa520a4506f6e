"""`svc dlq` and the page: look into the dead-letter queue without keeping anything from it, move letters back, delete them.

SQS has no way to look without receiving: what is looked at is hidden from others for a moment, costs one receive of its count,
and is released at once. Moving back is receive, send, delete: SQS's own move task (`move_tasks.py`) cannot choose, cannot be
stopped at a number, and keeps `RejectReason`. Nothing is deleted before its copy is confirmed, so an interruption at any point
loses nothing; at worst a letter stands in both queues, and is named.

All three are one sieve (`_sift`): it receives letters, hands over those that are meant, and holds the others until it ends, or it
would receive them again and again. What it holds is bounded in number and time, and given back whatever ends it.

Knows the calls of a queue and nothing of AWS or terminals.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from svc.consumer.queue import (
    MAX_BATCH,
    MAX_VISIBILITY,
    MessageRefused,
    QueueError,
    QueueMisconfigured,
    QueueUnavailable,
    Received,
    Refusal,
    number_in,
)

LOOK_SECONDS = 30
"""How long what is looked at stays hidden when it cannot be released, and a quarter of a second more for each letter that the
look may take."""

MOVE_SECONDS = 120
"""The same for what is moved or deleted: ten sends, each given up after 5 s, and their delete, tried a few times."""

WAIT = 1
"""Seconds of long poll: with any wait at all SQS asks all of its servers, and an empty answer means that there is nothing."""

DELETE_TRIES = 4

TIDY = 5.0
"""Seconds that releasing may take at the end, whatever ended it, and one more for each two hundred letters."""

RELEASE_PAUSE = 0.5
"""Seconds until a release that failed is tried again."""

RELEASES = 8
"""Calls at once that release."""

Matches = Callable[[Received], bool]
"""Which letters are meant; it never raises."""


class DeadLetters(Protocol):
    """Of the dead-letter queue."""

    async def receive(self, *, limit: int, wait: int, visibility: int) -> Sequence[Received]: ...

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]: ...

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]: ...

    async def attributes(self) -> Mapping[str, str]: ...


class Source(Protocol):
    """Of the queue that they came from."""

    async def take_back(self, delivery: Received) -> None:
        """Send this message, with its attributes and its group, without what a `Reject` has added. Sent twice within five
        minutes, a FIFO queue takes it once."""


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


@dataclass(slots=True)
class Sifted:
    """How far a look, a redrive or a purge came. True at every moment, so that it can be told whatever ends it."""

    looked_at: int = 0
    """Letters, each counted once."""
    cut_short: bool = False
    """It ended by its bound in number or time: there may be more that are meant."""
    stop: bool = False
    """Set from outside: end after the letter that is on its way."""


@dataclass(slots=True)
class Moved(Sifted):
    """What became of a redrive."""

    count: int = 0
    """Confirmed in the queue and gone from the dead-letter queue."""
    twice: list[str] = field(default_factory=list)
    """Ids of messages whose send or delete got no answer, or whose delete failed: they may be in both queues."""


@dataclass(slots=True)
class Purged(Sifted):
    """What became of a purge."""

    count: int = 0
    """Confirmed to be deleted."""
    unconfirmed: list[str] = field(default_factory=list)
    """Ids of those whose delete is not confirmed: they may be there still."""


def everything(letter: Received) -> bool:
    return True


async def look(
    dead: DeadLetters,
    most: int,
    *,
    matches: Matches = everything,
    scan: int | None = None,
    sifted: Sifted | None = None,
    seconds: float = math.inf,
) -> list[Received]:
    """Up to `most` letters that match, each once. They are visible to others again when this returns or raises. It looks at
    `scan` letters (default: `most`), and receives for so many `seconds`, at most. Raises `QueueError`."""
    scan = most if scan is None else scan
    found: list[Received] = []

    async def keep(letters: Sequence[Received], held: dict[str, str]) -> None:
        found.extend(letters)

    hidden = LOOK_SECONDS + scan // 4
    left = lambda: most - len(found)  # noqa: E731
    await _sift(dead, sifted or Sifted(), left, keep, matches=matches, scan=scan, hidden=hidden, seconds=seconds)
    return found


async def redrive(
    dead: DeadLetters,
    source: Source,
    most: int,
    moved: Moved,
    on_moved: Callable[[int], None] = lambda count: None,
    *,
    matches: Matches = everything,
    scan: int | None = None,
) -> None:
    """Move up to `most` letters that match back, in the order in which they come; look at `scan` letters at most, where not
    everything matches. Raises `QueueError` when a call fails; `moved` tells then how far it came, and what was not sent is
    released."""

    async def move(letters: Sequence[Received], held: dict[str, str]) -> None:
        _let_go(letters, held)
        await _move(dead, source, letters, moved)
        on_moved(moved.count)

    left = lambda: most - moved.count - len(moved.twice)  # noqa: E731
    await _sift(dead, moved, left, move, matches=matches, scan=scan, hidden=MOVE_SECONDS + (scan or 0) // 4)


async def purge(
    dead: DeadLetters,
    most: int,
    purged: Purged,
    on_purged: Callable[[int], None] = lambda count: None,
    *,
    matches: Matches = everything,
    scan: int | None = None,
) -> None:
    """Delete up to `most` letters that match, and nothing else. As `redrive` in everything else."""

    async def delete(letters: Sequence[Received], held: dict[str, str]) -> None:
        _let_go(letters, held)
        purged.unconfirmed += [letter.message.id for letter in letters]
        await _settle(dead, letters, purged.unconfirmed, partial(_count, purged))
        on_purged(purged.count)

    left = lambda: most - purged.count - len(purged.unconfirmed)  # noqa: E731
    await _sift(dead, purged, left, delete, matches=matches, scan=scan, hidden=MOVE_SECONDS + (scan or 0) // 4)


async def _sift(
    dead: DeadLetters,
    sifted: Sifted,
    left: Callable[[], int],
    act: Callable[[Sequence[Received], dict[str, str]], Awaitable[None]],
    *,
    matches: Matches,
    scan: int | None,
    hidden: int,
    seconds: float = math.inf,
) -> None:
    """Receive until `left()` is 0, nothing new comes, or a bound is reached. `act` gets the letters that match, and what is held:
    receipt → id; what it leaves there is released at the end."""
    held: dict[str, str] = {}
    hidden = min(hidden, MAX_VISIBILITY)
    ends = trio.current_time() + min(seconds, math.inf if scan is None else hidden / 2)
    try:
        while (wanted := left()) > 0 and not sifted.stop:
            room = MAX_BATCH if scan is None else scan - sifted.looked_at
            if room <= 0 or trio.current_time() >= ends:
                sifted.cut_short = True
                return
            # Who chooses cannot know how many of those that come are meant.
            limit = min(MAX_BATCH, room, wanted if matches is everything else MAX_BATCH)
            brought = await _landed(dead, limit, hidden)
            # What comes again is no news: the queue has shown what it has.
            known = set(held.values())
            held |= {letter.receipt: letter.message.id for letter in brought}
            fresh = list({letter.message.id: letter for letter in brought if letter.message.id not in known}.values())
            if not fresh:
                return
            sifted.looked_at += len(fresh)
            if meant := [letter for letter in fresh if matches(letter)][:wanted]:
                await act(meant, held)
            await trio.lowlevel.checkpoint_if_cancelled()
    finally:
        await _release(dead, list(held))


async def _landed(dead: DeadLetters, limit: int, visibility: int) -> list[Received]:
    """A receive is never cut off: what SQS hands to it then would stay hidden. It takes its wait and five seconds at most."""
    with trio.CancelScope(shield=True):
        brought = await dead.receive(limit=limit, wait=WAIT, visibility=visibility)
    return list(brought)


def _let_go(letters: Sequence[Received], held: dict[str, str]) -> None:
    """From here on another sees to them."""
    for letter in letters:
        held.pop(letter.receipt, None)


async def _move(dead: DeadLetters, source: Source, batch: Sequence[Received], moved: Moved) -> None:
    sent: list[Received] = []
    tried = 0
    # On its way until its delete is confirmed: what ends us in between finds it here.
    moved.twice += [delivery.message.id for delivery in batch]
    try:
        for delivery in batch:
            if moved.stop:
                break
            tried += 1
            await source.take_back(delivery)
            sent.append(delivery)
    except (MessageRefused, QueueMisconfigured):
        tried -= 1  # it was not taken
        raise
    finally:
        # One that got no answer may have been taken: it is named, and stays where it is.
        for delivery in batch[tried:]:
            moved.twice.remove(delivery.message.id)
        await _settle(dead, sent, moved.twice, partial(_count, moved))
        await _release(dead, [delivery.receipt for delivery in batch[len(sent) :]])


def _count(of: Moved | Purged) -> None:
    of.count += 1


async def _settle(
    dead: DeadLetters, letters: Sequence[Received], pending: list[str], on_deleted: Callable[[], None]
) -> None:
    """Delete them, and take the ids of those whose delete is confirmed out of `pending`."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + MOVE_SECONDS / 2):
        for letter in await _deleted(dead, letters):
            pending.remove(letter.message.id)
            on_deleted()


async def _deleted(dead: DeadLetters, sent: Sequence[Received]) -> list[Received]:
    """Delete these; returns what is confirmed to be deleted."""
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
    batches = [receipts[first : first + MAX_BATCH] for first in range(0, len(receipts), MAX_BATCH)]

    async def release() -> None:
        while batches:
            batch = batches.pop(0)
            try:
                await dead.change_visibility(dict.fromkeys(batch, 0))
            except QueueUnavailable:
                batches.append(batch)
                await trio.sleep(RELEASE_PAUSE)
            except QueueError:
                continue

    with trio.CancelScope(shield=True, deadline=trio.current_time() + TIDY + len(receipts) / 200):
        async with trio.open_nursery() as nursery:
            for _ in range(min(RELEASES, len(batches))):
                nursery.start_soon(release)
