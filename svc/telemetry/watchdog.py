"""The watchdog: a thread that notices when something blocks the event loop, and says what.

While the loop is blocked (a processor that calls `time.sleep`, a loop without an `await`) no heartbeat goes out, no delete is
sent and `/health` is mute; nothing that runs in the loop can say so. So a thread asks the loop for a sign of life twice a
second. If none has come within a second it logs one warning with the stack of the thread that should have answered, and when
the sign comes, one line that says for how long it was blocked.

It only tells. It is for real time, wired in `service.py`, and never runs where time is virtual.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from types import FrameType

import structlog
import trio

from svc.defects import Defects

log = structlog.get_logger(__name__)

LIMIT = 1.0
"""Seconds without a sign of life that are told."""

EVERY = 0.5
"""Seconds between a sign of life and the next question."""

FRAMES = 12
"""Innermost frames of the stack that are shown: above them stand Trio's own."""


@contextlib.asynccontextmanager
async def watched(defects: Defects, *, limit: float = LIMIT, every: float = EVERY) -> AsyncIterator[None]:
    """Within, the loop that runs this is watched."""
    token = trio.lowlevel.current_trio_token()
    watcher = _Watcher(defects, token, threading.get_ident(), limit, every)
    thread = threading.Thread(target=watcher.run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watcher.over.set()
        # Not joined: it may be waiting for a sign of life that only we can give. It ends within `every` seconds.


class _Watcher:
    def __init__(
        self, defects: Defects, token: trio.lowlevel.TrioToken, thread: int, limit: float, every: float
    ) -> None:
        self._defects = defects
        self._token = token
        self._thread = thread
        self._limit = limit
        self._every = every
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self._every):
            try:
                self._look()
            except trio.RunFinishedError:
                return
            except Exception as defect:
                self._defects.note("watchdog", defect)

    def _look(self) -> None:
        alive = threading.Event()
        asked = time.monotonic()
        self._token.run_sync_soon(alive.set)
        # The second wait is for a machine that stood still as a whole: then the answer is there at once.
        if alive.wait(self._limit) or alive.wait(0.05):
            return
        self._tell(asked)
        while not alive.wait(self._every):
            if self.over.is_set():
                return
        log.warning("the event loop runs again", blocked_seconds=round(time.monotonic() - asked, 1))

    def _tell(self, asked: float) -> None:
        frame = sys._current_frames().get(self._thread)
        log.warning(
            "the event loop is blocked: no message, no lease and no request goes on meanwhile. A processor must not block; "
            "write it as a plain def, which gets a thread",
            blocked_seconds=round(time.monotonic() - asked, 1),
            stack=stack_of(frame),
        )


def stack_of(frame: FrameType | None) -> str:
    """The innermost frames, the one at work last."""
    if frame is None:
        return "(the thread has no stack)"
    return "".join(traceback.format_list(traceback.extract_stack(frame)[-FRAMES:])).rstrip()
