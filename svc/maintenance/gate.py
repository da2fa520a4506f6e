"""The gate before the API: a maintenance handler that turns new requests away and waits for those under way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from svc.wakeup import WakeUp


class GateClosed(Exception):
    """The request was not let in."""


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """A snapshot."""

    open: bool
    under_way: int
    """Requests let in that have no answer yet."""
    turned_away: int
    """Requests not let in, since the start."""


class Gate:
    """A `maintenance.Handler` named `http`."""

    name = "http"
    after: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._open = False
        self._under_way = 0
        self._turned_away = 0
        self._at_begin = 0
        self._unfinished = 0
        self._changed = WakeUp()

    def knock(self) -> None:
        """For a request that is still arriving: raises `GateClosed` at once if it would not be let in now."""
        if not self._open:
            self._turned_away += 1
            raise GateClosed

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """One request, from its arrival to its answer. Raises `GateClosed`."""
        self.knock()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._changed.notify()

    def enter(self) -> None:
        self._open = False
        self._at_begin, self._unfinished = self._under_way, 0

    async def wait_drained(self, deadline: float) -> str | None:
        with trio.CancelScope(deadline=deadline):
            await self._changed.wait_until(lambda: not self._under_way)
        self._unfinished = self._under_way
        return f"{self._unfinished} request(s) still without an answer" if self._unfinished else None

    def leave(self) -> None:
        self._open = True

    async def health(self) -> bool:
        return True  # whoever asks has been answered

    def statistics(self) -> GateStatistics:
        return GateStatistics(self._open, self._under_way, self._turned_away)

    def drain(self) -> Mapping[str, object]:
        return {"under_way": self._at_begin, "unfinished": self._unfinished}
