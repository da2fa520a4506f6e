"""A standard queue that hands out one message twice at once: within one answer by two receipts, or a delivery once more by the
receipt that it has. (A message in flight is handed to another receive by `SimulatedQueue(duplicates=…)`.)"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from svc.consumer.queue import Received
from svc.testing import Call, SimulatedQueue


def let_copies_come_together(queue: SimulatedQueue, chance: float, rng: random.Random) -> None:
    """Of the messages that are to be delivered once more, so many are at once."""
    server = queue._server
    take = server.take

    def twice(call: Call, limit: int, visibility: int, *, short: bool) -> list[Received]:
        taken = take(call, limit, visibility, short=short)
        most = server._limit_receives
        for delivery in tuple(taken):
            again = server._copies.get(delivery.message.id)
            if again is None or len(taken) >= limit or (most is not None and again.receives >= most):
                continue
            if rng.random() < chance:
                taken.insert(rng.randrange(len(taken) + 1), server._assign(call, again, visibility))
        return taken

    server.take = twice  # type: ignore[method-assign]


class RepeatingQueue:
    """The queue as one instance reaches it: an answer holds a delivery twice, or once more what that instance has in flight, each
    by the receipt that it has, and no more than was asked for."""

    def __init__(self, queue: Any, chance: float, rng: random.Random, *, in_flight: Callable[[str], bool]) -> None:
        """`in_flight`: whether the instance has the delivery of this receipt in flight."""
        self._queue = queue
        self._chance = chance
        self._rng = rng
        self._in_flight = in_flight
        self._given: dict[str, Received] = {}  # by receipt: what was not repeated yet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def receive(self, *, limit: int, **request: Any) -> Sequence[Received]:
        deliveries = list(await self._queue.receive(limit=limit, **request))
        # No checkpoint from here on, as in the real queue.
        before = [one for receipt, one in self._given.items() if self._in_flight(receipt)]
        self._given = {one.receipt: one for one in (*before, *deliveries)}
        for one in (*before, *deliveries):
            if len(deliveries) < limit and self._rng.random() < self._chance:
                deliveries.append(self._given.pop(one.receipt))
        return deliveries
