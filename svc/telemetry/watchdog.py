"""The watchdog: a thread that notices when something blocks the event loop, and says what.

While the loop is blocked (a processor that calls `time.sleep`, a loop without an `await`) no heartbeat goes out, no delete is
sent and `/health` is mute; nothing that runs in the loop can say so. So a thread asks the loop for a sign of life once a
second. If none has come within a second it logs one warning with the stack of the thread that should have answered, and when
the sign comes, one line that says for how long it was blocked. Our own loop is not asked while it waits for something to happen
(`loop_state.py`): it lives, and a question would wake an idle process up.

The thread also beats: it tells every second, while the loop is not blocked, that the process runs.

It only tells. It is for real time, wired in `service.py`, and never runs where time is virtual.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Protocol

import structlog
import trio

from svc.defects import Defects
from svc.telemetry.loop_state import LoopState, loop_state

log = structlog.get_logger(__name__)

LIMIT = 1.0
"""Seconds without a sign of life that are told."""

EVERY = 1.0
"""Seconds between two questions."""

BLOCKED = (
    "the event loop is blocked: no message, no lease and no request goes on meanwhile. A processor must not block; "
    "write it as a plain def, which gets a thread"
)

ASYNCIO_BLOCKED = (
    "the asyncio loop of the processors is blocked: no processor on it goes on meanwhile (leases, health and drains do). What "
    "blocks belongs into asyncio.to_thread"
)

FRAMES = 12
"""Innermost frames of the stack that are shown: above them stand Trio's own."""


class Loop(Protocol):
    """Another event loop: that of processors on asyncio."""

    @property
    def thread_id(self) -> int | None: ...

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call it soon; raises RuntimeError when it has ended."""


@contextlib.asynccontextmanager
async def watched(
    defects: Defects,
    loop: Loop | None = None,
    *,
    limit: float = LIMIT,
    every: float = EVERY,
    beat: Callable[[], Callable[[], object] | None] = lambda: None,
    on_blocked: Callable[[], object] = lambda: None,
) -> AsyncIterator[None]:
    """Within, the loop that runs this is watched, or the other one that is given. `beat` is called in the thread, every `every`
    seconds while the loop is not blocked; what it returns, the loop calls soon. `on_blocked` is called there while it is."""
    if loop is None:
        post, blocks = trio.lowlevel.current_trio_token().run_sync_soon, threading.get_ident()
        watcher = _Watcher(defects, post, blocks, limit, every, BLOCKED, "the event loop runs again")
        watcher.state, watcher.beat, watcher.on_blocked = loop_state(), beat, on_blocked
    else:
        watcher = _Watcher(
            defects, loop.post, loop.thread_id or 0, limit, every, ASYNCIO_BLOCKED, "the asyncio loop runs again"
        )
    thread = threading.Thread(target=watcher.run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.over.set()
        # Not joined: it may be waiting for a sign of life that only we can give. It ends within `every` seconds.


class _Watcher:
    def __init__(
        self,
        defects: Defects,
        post: Callable[[Callable[[], object]], None],
        thread: int,
        limit: float,
        every: float,
        blocked: str,
        again: str,
    ) -> None:
        self._defects = defects
        self._post = post
        self._blocked = blocked
        self._again = again
        self._thread = thread
        self._limit = limit
        self._every = every
        self.state: LoopState | None = None
        self.beat: Callable[[], Callable[[], object] | None] = lambda: None
        self.on_blocked: Callable[[], object] = lambda: None
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self._every):
            try:
                self._look()
                if (soon := self.beat()) is not None:
                    self._post(soon)
            except RuntimeError:  # trio.RunFinishedError is one: there is no such loop any more
                return
            except Exception as defect:
                self._defects.note("watchdog", defect)

    def _look(self) -> None:
        """Returns when the loop lives."""
        if self.state is not None and self.state.busy_since is None:
            return
        alive = threading.Event()
        asked = time.monotonic()
        self._post(alive.set)
        # The second wait is for a machine that stood still as a whole: then the answer is there at once.
        if alive.wait(self._limit) or alive.wait(0.05):
            return
        self.on_blocked()
        self._tell(asked)
        while not alive.wait(self._every):
            if self.over.is_set():
                return
            self.on_blocked()
        log.warning(self._again, blocked_seconds=round(time.monotonic() - asked, 1))

    def _tell(self, asked: float) -> None:
        frame = sys._current_frames().get(self._thread)
        log.warning(
            self._blocked,
            blocked_seconds=round(time.monotonic() - asked, 1),
            stack=stack_of(frame),
        )


def stack_of(frame: FrameType | None) -> str:
    """The innermost frames, the one at work last."""
    if frame is None:
        return "(the thread has no stack)"
    return "".join(traceback.format_list(traceback.extract_stack(frame)[-FRAMES:])).rstrip()
