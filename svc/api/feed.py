"""What the page shows, live: one look per second at the whole service, shared by everybody who watches.

    feed.run      takes the samples of the charts always; looks, and asks the queue for its depth, only while somebody watches
    Watcher.next  the next piece of one server-sent stream; who is slow skips what came between: nothing is kept for him

A stream ends when the API stops (its last event says so) or after `LIFE`, when a browser connects again by itself. Watching never
keeps the process alive: the streams end before the server counts its grace.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from svc.api import page_content
from svc.api.history import History
from svc.consumer.queue import QueueError
from svc.core import Core
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks."""

DEPTH_EVERY = 10.0
"""Seconds from one question for the queue's depth to the next, however many watch: each is a request that SQS charges for."""

DEAD_LETTERS_EVERY = 60.0
"""The same for the dead-letter queue's, which takes up to three requests; none where there is no redrive policy."""

DEPTH_PATIENCE = 5.0
"""Seconds that an answer is waited for."""

MOST_WATCHERS = 100
"""Streams at the same time: each holds a connection."""

LIFE = 900.0
"""Seconds after which a stream ends, so that a reader who is gone without a word does not hold it for ever."""

RETRY_MS = 2000
"""Milliseconds after which a browser connects again."""


class TooManyWatchers(Exception):
    """There are as many streams as may be."""

    def __init__(self) -> None:
        super().__init__("as many pages as may watch the service already do; look again later")


@dataclass(frozen=True, slots=True)
class _Charts:
    taken: int
    text: str


class Feed:
    def __init__(self, core: Core, *, look_every: float = LOOK_EVERY, most: int = MOST_WATCHERS) -> None:
        self._core = core
        self._look_every = look_every
        self._most = most
        self.history = History(lambda: core.worker.ledger.counts())
        self._watchers: set[Watcher] = set()
        self._wake_up = WakeUp()
        self._text = ""
        self._charts = _Charts(-1, "")
        self._looks = 0
        self._looked_at = float("-inf")
        self._depth: page_content.Depth | None = None
        self._dead_letters: page_content.Depth | None = None
        self._ended = False

    async def run(self, stop: trio.Event) -> None:
        """Ends when `stop` is set; the streams end with it."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.history.run)
                nursery.start_soon(self._look_while_watched)
                nursery.start_soon(self._ask_while_watched)
                await stop.wait()
                nursery.cancel_scope.cancel(reason="the API stops")
        finally:
            self._ended = True
            self._look_safely()

    @property
    def is_full(self) -> bool:
        return len(self._watchers) >= self._most

    @property
    def watched_by(self) -> int:
        return len(self._watchers)

    def watch(self) -> "Watcher | None":
        """A new stream: `close()` it. None when there are as many as may be."""
        if self.is_full:
            return None
        watcher = Watcher(self)
        self._watchers.add(watcher)
        if trio.current_time() - self._looked_at >= self._look_every:
            self._look_safely()
        self._wake_up.notify()
        return watcher

    def _look_safely(self) -> None:
        """A look that fails shows what the last one saw."""
        try:
            self._look()
        except Exception as defect:
            self._core.defects.note("page", defect)
            self._wake_up.notify()

    def _look(self) -> None:
        self._looked_at = trio.current_time()
        self._looks += 1
        self._text = _event("state", page_content.state(self._core, self._depth, self._dead_letters))
        if self._charts.taken != self.history.taken:
            charts = page_content.charts(self.history.samples(), every=self.history.every, kept=self.history.kept)
            self._charts = _Charts(self.history.taken, _event("charts", charts))
        self._wake_up.notify()

    async def _look_while_watched(self) -> None:
        while True:
            await self._wake_up.wait_until(lambda: bool(self._watchers))
            await trio.sleep_until(self._looked_at + self._look_every)
            self._look_safely()

    async def _ask_while_watched(self) -> None:
        while True:
            await self._wake_up.wait_until(lambda: bool(self._watchers))
            self._depth = await self._asked(self._core.queue.attributes)
            if self._depth.attributes is not None:
                await self._ask_for_dead_letters(has_policy="RedrivePolicy" in self._depth.attributes)
            await trio.sleep(DEPTH_EVERY)

    async def _ask_for_dead_letters(self, *, has_policy: bool) -> None:
        if not has_policy:
            self._dead_letters = None
        elif self._dead_letters is None or trio.current_time() >= self._dead_letters.asked_at + DEAD_LETTERS_EVERY:
            self._dead_letters = await self._asked(self._dead_letter_attributes)

    async def _dead_letter_attributes(self) -> Mapping[str, str]:
        found = await self._core.queue.dead_letter_queue()
        return {} if found is None else found.attributes

    async def _asked(self, ask: Callable[[], Awaitable[Mapping[str, str]]]) -> page_content.Depth:
        error = f"no answer in {DEPTH_PATIENCE:g} s"
        try:
            with trio.move_on_after(DEPTH_PATIENCE):
                return page_content.Depth(trio.current_time(), await ask())
        except QueueError as failure:
            error = str(failure)
        except Exception as defect:
            self._core.defects.note("page", defect)
            error = f"internal error ({type(defect).__name__}); the log has its traceback"
        return page_content.Depth(trio.current_time(), None, error)


class Watcher:
    """One stream."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._looks = -1
        self._charts = -1
        self._until = trio.current_time() + LIFE
        self._at_end = False

    async def next(self) -> str | None:
        """The next piece as soon as there is one, None at the end of the stream."""
        feed = self._feed
        if self._at_end:
            return None
        with trio.CancelScope(deadline=self._until) as life:
            await feed._wake_up.wait_until(lambda: feed._looks != self._looks)
        if life.cancelled_caught:
            return None
        pieces = [] if self._looks >= 0 else [f"retry: {RETRY_MS}\n\n"]
        self._looks = feed._looks
        if self._charts != feed._charts.taken:
            self._charts = feed._charts.taken
            pieces.append(feed._charts.text)
        pieces.append(feed._text)
        if feed._ended:
            self._at_end = True
            pieces.append(_event("end", {}))
        return "".join(pieces)

    def close(self) -> None:
        self._feed._watchers.discard(self)


def _event(kind: str, data: object) -> str:
    # JSON has no line breaks of its own here: whatever a message or an error holds, it cannot end the event.
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=True, separators=(',', ':'))}\n\n"
