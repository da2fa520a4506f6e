"""FIFO queues: receives that can be asked for again by their id (ReceiveRequestAttemptId).

What such a receive was handed comes again with the answer. So one of which something may lie at the queue - it was cut short, or
failed - is kept, and the next receive asks for it: else its messages, and their groups behind them, would wait out their lease.
"""

from dataclasses import dataclass
from uuid import uuid4

LONGEST = 270.0
"""Seconds for which a receive is asked for again by its id. SQS does it for five minutes."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A receive that can be asked for again."""

    id: str
    limit: int
    """How many messages it asked for: so many places it needs."""
    until: float
    """The moment (`ledger.moment`) until when it is worth asking."""


class Attempts:
    def __init__(self) -> None:
        self._kept: list[Attempt] = []

    def next(self, asked: int, now: float) -> Attempt:
        """One that was kept, if so many places are enough for it, or a new one."""
        self._kept = [held for held in self._kept if now < held.until]
        for held in self._kept:
            if held.limit <= asked:
                self._kept.remove(held)
                return held
        return Attempt(uuid4().hex, asked, now + LONGEST)

    def keep(self, attempt: Attempt, asked: int, until: float) -> None:
        """Something may lie at the queue until then (a moment)."""
        self._kept.append(Attempt(attempt.id, asked, min(attempt.until, until)))
