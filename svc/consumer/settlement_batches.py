"""Which settlements leave, when, and together with which: everything that `settlement.py` decides before it sends.

A settlement is *ready* and lingers a little for company; or it is *put off*, because its last call failed; or it is *overtaken*:
a change of visibility while a heartbeat for the same message is on the wire, which could undo it. A batch leaves for one of three
named reasons: `size` (it is full), `time` (one of it has lingered long enough) or `flush` (no company can be expected soon, or a
drain wants everything out now).

Nothing here waits, sends, logs or reads a clock: `now` is Trio's time.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from svc.backoff import backoff
from svc.consumer.ledger import Action, Entry
from svc.consumer.queue import MAX_BATCH

RETRY_FIRST, RETRY_CAP = 0.2, 2.0
"""Seconds before the second try of a settlement, and the most before a later one."""

Reason = Literal["size", "time", "flush"]


@dataclass(frozen=True, slots=True)
class Batch:
    action: Action
    entries: Sequence[Entry]


class Batches:
    def __init__(self, *, linger: float, rng: random.Random) -> None:
        """`linger`: seconds that a settlement waits for company at most."""
        self._linger = linger
        self._rng = rng
        self._ready: dict[Action, deque[tuple[float, Entry]]] = {action: deque() for action in Action}
        """With the time until which each lingers."""
        self._put_off: list[tuple[float, int, Action, Entry]] = []
        """A heap, by the time of the next try."""
        self._number = 0  # of those that were put off since the start: no two of them compare equal
        self._overtaken: list[tuple[float, Entry]] = []
        """As `_ready`."""
        self._pause_until: dict[Action, float] = {}
        """Of actions whose last call got no answer: when everything that waits for it is tried together."""
        self.flushing = False
        """While true nothing lingers: set by a drain."""
        self.left: dict[str, int] = {"size": 0, "time": 0, "flush": 0}
        """How many batches left for which reason."""

    def put(self, entry: Entry, action: Action, now: float) -> None:
        """A settlement is to be sent."""
        entry.attempts = 0
        # A quarter at most of what is left of the lease: the rest is for trying again.
        until = now + max(0.0, min(self._linger, (entry.lease.until - now) / 4))
        pause = self._pause_until.get(action, now)
        if entry.lease.extending and action is Action.CHANGE_VISIBILITY:
            self._overtaken.append((until, entry))
        elif now < pause < entry.lease.until and not self.flushing:
            self._wait_until(pause, action, entry)
        else:
            self._ready[action].append((until, entry))

    def flush(self, flushing: bool, now: float) -> None:
        """From now on everything leaves at once, or lingers again."""
        self.flushing = flushing
        if flushing:
            self._pause_until.clear()
            # What only waits because others failed has a right to its one try before the drain ends.
            untried = [held for held in self._put_off if not held[3].attempts]
            self._put_off = [held for held in self._put_off if held[3].attempts]
            heapq.heapify(self._put_off)
            for _, _, action, entry in untried:
                self._ready[action].append((now, entry))

    def take(self, now: float, *, calls: int, company: bool) -> tuple[list[Batch], float]:
        """The batches that leave now, so many at most, and when to ask again at the latest. `company`: more may be ready soon."""
        while self._put_off and self._put_off[0][0] <= now:
            _, _, action, entry = heapq.heappop(self._put_off)
            self._ready[action].append((now, entry))
        self._take_overtaken()
        next_look = self._put_off[0][0] if self._put_off else math.inf
        batches: list[Batch] = []
        for action, ready in self._ready.items():
            while ready and len(batches) < calls:
                reason, until = self._reason(now, ready, _size(action), company)
                if reason is None:
                    next_look = min(next_look, until)
                    break
                batches.append(self._leave(reason, action))
        return batches, next_look

    def take_all(self) -> Iterator[Batch]:
        """Everything, whatever it waits for, but for heartbeats on the wire."""
        for _, _, action, entry in self._put_off:
            self._ready[action].append((0, entry))
        self._put_off = []
        self._take_overtaken()
        for action, ready in self._ready.items():
            while ready:
                yield self._leave("flush", action)

    def _take_overtaken(self) -> None:
        if self._overtaken:
            free = [held for held in self._overtaken if not held[1].lease.extending]
            self._ready[Action.CHANGE_VISIBILITY].extend(free)
            self._overtaken = [held for held in self._overtaken if held[1].lease.extending]

    def answered(self, action: Action) -> None:
        """The queue has answered a call of this kind."""
        self._pause_until.pop(action, None)

    def again(self, action: Action, failed: Sequence[Entry], now: float, *, together: bool) -> set[Entry]:
        """These have failed, and are tried again while their lease lasts; returns those whose lease ends before. `together`: the
        queue did not answer at all. Then everything that waits for this action is tried in the same moment, in full batches: an
        outage must not cost a call per message."""
        attempt = 1 + max((entry.attempts for entry in failed), default=0)
        next_try = now + backoff(attempt, first=RETRY_FIRST, cap=RETRY_CAP, rng=self._rng)
        if together:
            if (pause := self._pause_until.get(action, now)) > now:
                next_try = pause
            self._pause_until[action] = next_try
        over = set()
        for entry in failed:
            entry.attempts = attempt
            if next_try >= entry.lease.until:
                over.add(entry)
            else:
                self._wait_until(next_try, action, entry)
        return over

    def _wait_until(self, at: float, action: Action, entry: Entry) -> None:
        self._number += 1
        heapq.heappush(self._put_off, (at, self._number, action, entry))

    def _leave(self, reason: Reason, action: Action) -> Batch:
        ready = self._ready[action]
        self.left[reason] += 1
        return Batch(action, [ready.popleft()[1] for _ in range(min(_size(action), len(ready)))])

    def _reason(
        self, now: float, ready: Sequence[tuple[float, Entry]], size: int, company: bool
    ) -> tuple[Reason | None, float]:
        """Why a batch leaves now, or None and when it will leave at the latest."""
        if len(ready) >= size:
            return "size", now
        if self.flushing or not company:
            return "flush", now
        until = min(until for until, _ in ready)
        return ("time" if until <= now else None), until


def _size(action: Action) -> int:
    return 1 if action is Action.DEAD_LETTER else MAX_BATCH
