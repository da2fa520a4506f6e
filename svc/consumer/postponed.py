"""Postponed messages: those that we have given up and that nobody can receive yet (failed, to be retried later, or lost).

A back-off may last for 12 hours and a queue may hold any number of messages that wait for theirs. So they are counted by the
second at which they become visible, which is at most 43,200 numbers, and the ids of the soonest are kept. Neither the memory nor
the time that a look takes grows with how many wait. Nothing here reads a clock.
"""

import bisect
import heapq
import math
from collections import Counter

SHOWN = 100
"""How many are named."""

KEPT = 10_000
"""How many ids are kept at most, the soonest, so that there are some to name when the first have become visible."""


class Postponed:
    def __init__(self) -> None:
        self._number = 0
        self._ends = Counter[int]()  # in which second how many become visible
        self._coming: list[int] = []  # a heap of those seconds
        self._ids: dict[int, dict[str, float]] = {}  # by second, at most SHOWN each
        self._seconds: list[int] = []  # of `_ids`, in their order
        self._kept = 0

    def add(self, message_id: str, until: float, now: float) -> None:
        """The message is invisible until then."""
        self.number(now)
        if until <= now:
            return
        second = math.ceil(until)
        if message_id in (held := self._ids.get(second, {})):  # of another copy: the last counts
            held[message_id] = max(held[message_id], until)
            return
        if second not in self._ends:
            heapq.heappush(self._coming, second)
        self._ends[second] += 1
        self._number += 1
        ids = self._ids.get(second)
        if ids is None:
            ids = self._ids[second] = {}
            bisect.insort(self._seconds, second)
        if len(ids) < SHOWN:
            ids[message_id] = until
            self._kept += 1
            if self._kept > KEPT:
                self._drop(self._seconds[-1])

    def move(self, message_id: str, before: float, until: float, now: float) -> None:
        """It was added with the time `before`, and is invisible until another one."""
        self.number(now)
        second = math.ceil(before)
        another = self._ids.get(second, {}).get(message_id, before) > before
        if before > now and self._ends[second] > 0 and not another:
            self._ends[second] -= 1
            self._number -= 1
            if self._ids.get(second, {}).pop(message_id, None) is not None:
                self._kept -= 1
        self.add(message_id, until, now)

    def number(self, now: float) -> int:
        """How many wait; those of which no id is kept are counted up to a second too long."""
        while self._coming and self._coming[0] <= now:
            second = heapq.heappop(self._coming)
            self._number -= self._ends.pop(second)
            self._drop(second)
        if self._coming and self._coming[0] < now + 1 and (ids := self._ids.get(self._coming[0])):
            over = [message_id for message_id, until in ids.items() if until <= now]
            for message_id in over:
                del ids[message_id]
            self._kept -= len(over)
            self._ends[self._coming[0]] -= len(over)
            self._number -= len(over)
        return self._number

    def first(self, now: float) -> dict[str, float]:
        """Message id → when it is visible again; the soonest `SHOWN`. Of several copies of a message the last counts."""
        self.number(now)
        found: dict[str, float] = {}
        for second in self._seconds:
            for message_id, until in sorted(self._ids[second].items(), key=lambda one: one[1]):
                if message_id not in found and len(found) == SHOWN:
                    return found
                found[message_id] = until
        return found

    def _drop(self, second: int) -> None:
        """Forget the ids of this second; they are counted further."""
        if (ids := self._ids.pop(second, None)) is not None:
            self._kept -= len(ids)
            del self._seconds[bisect.bisect_left(self._seconds, second)]
