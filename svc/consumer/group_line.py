"""The line of a FIFO group: those of its deliveries that are in our hands, in their order, and whom the next one may follow.

What has ended without being finished keeps back all that comes after it in the group, and not only the next: one that has ended
too (given back, lost, or deleted because it had been finished before) is passed over, and lets nobody through on behalf of those
before it.

Nothing here waits or calls.
"""

from collections import deque
from collections.abc import Iterator

from svc.consumer.ledger import Entry


class Line:
    def __init__(self, first: Entry) -> None:
        self._waiting = deque([first])
        self._unfinished: dict[str, Entry] = {}
        """By message id: those that have left the line and are not finished, whom nobody has passed yet."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._waiting)

    @property
    def first(self) -> Entry:
        return self._waiting[0]

    def append(self, entry: Entry) -> None:
        self._waiting.append(entry)

    def next_may_follow(self) -> bool:
        """The first has ended, and leaves the line: whether its successor may take its turn, if there is one."""
        entry = self._waiting.popleft()
        if entry.is_finished:
            self._unfinished.pop(entry.message.id, None)
        else:
            self._unfinished[entry.message.id] = entry
        if not self._waiting or self.first.ended is not None:
            return True
        if all(unfinished.lets_pass(self.first) for unfinished in self._unfinished.values()):
            self._unfinished.clear()
            return True
        return False
