"""What a message in hand can be asked by its processor, from whatever thread: its lease, its last attempt, the drain's begin.

One object for all messages; it looks into the ledger when it is asked.
"""

import trio

from svc.consumer.ledger import Ledger
from svc.consumer.queue import RedrivePolicy, had_last_receive
from svc.processors import Message, Now, ShuttingDown


class WorkerHolder:
    """`processors.Holder` for everything that a worker has in hand."""

    def __init__(self, ledger: Ledger, policy: RedrivePolicy, now: Now) -> None:
        """`now` is the wall clock, which nothing is decided by."""
        self._ledger = ledger
        self._policy = policy
        self._clock: trio.abc.Clock | None = None
        self.now = now
        self.shutting_down = ShuttingDown()

    def start(self) -> None:
        """In the Trio run whose messages these are."""
        self._clock = trio.lowlevel.current_clock()

    def shut_down(self) -> None:
        """A drain has begun."""
        self.shutting_down.set()

    def go_on(self) -> None:
        """The maintenance is over."""
        if self.shutting_down.is_set():
            self.shutting_down = ShuttingDown()

    def lease_left(self, message: Message) -> float | None:
        entry = self._ledger.at_work_on(message.id)
        if entry is None or entry.message.receive_count != message.receive_count or self._clock is None:
            return None  # ended; what is here is a later delivery of it
        return max(0.0, entry.lease.until - self._clock.current_time())

    def is_ours(self, message: Message) -> bool:
        """Whether this delivery has neither a fate nor an end, and its lease holds, as far as that is confirmed."""
        entry = self._ledger.at_work_on(message.id)
        if entry is None or entry.message.receive_count != message.receive_count or self._clock is None:
            return False  # ended; what is here is a later delivery of it
        if not entry.is_undecided:
            return False
        return self._clock.current_time() < entry.lease.until

    def is_last_attempt(self, message: Message) -> bool | None:
        if self._policy.fifo is None:  # its attributes were never read
            return None
        return had_last_receive(self._policy, message)
