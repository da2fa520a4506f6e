"""The AWS credentials of this process: fetched when they are first needed, renewed before they expire, looked for again for ever.

`current()` is what every request asks before it is signed. In the ordinary case it looks at the clock and returns. Otherwise a
thread walks the chain of sources (`credential_sources.py`), one at a time however many ask. As long as the old ones hold, nobody
waits for the new ones; a walk that fails is repeated with a growing pause, and told.

They are fetched anew: some time before they expire; when a file that they come from has changed; when AWS has refused them
(`refused()`). A caller that gives up leaves the walk alone: what it finds is there for the next one.

Must never hold up a caller for longer than `WAIT_SECONDS`, and never show a secret.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import outcome
import trio

from svc.backoff import backoff
from svc.consumer.queue import QueueError, QueueUnavailable
from svc.sqs.credential_sources import Found, Keys

log = logging.getLogger(__name__)

WAIT_SECONDS = 4.0
"""How long a call waits for credentials, at most: less than a call may take, so that the true cause is told."""

RENEW_SECONDS = 900.0
"""So long before they expire credentials are renewed, or at half of what is left of them, if that is less."""

FILES_SECONDS = 2.0
"""At most this often the files are looked at."""

STUCK_SECONDS = 90.0
"""A walk that takes longer is given up: longer than every source's own limit."""

RETRY_FIRST, RETRY_CAP = 1.0, 30.0
"""Seconds between two walks that fail."""

InThread = Callable[[Callable[[], Found], Callable[[outcome.Outcome[Found]], object]], None]
"""Runs the first in a thread, and there the second with what came of it."""


def _in_thread(look: Callable[[], Found], deliver: Callable[[outcome.Outcome[Found]], object]) -> None:
    trio.lowlevel.start_thread_soon(look, deliver, name="aws-credentials")


class Credentials:
    """Made for one `look`; `in_thread`, `now` (wall clock, as in Expiration) and `rng` are others in tests."""

    def __init__(
        self,
        look: Callable[[], Found],
        *,
        in_thread: InThread = _in_thread,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        on_first: Callable[[Found], None] | None = None,
    ) -> None:
        """`on_first` is told of the first that are found."""
        self._look = look
        self._on_first = on_first
        self._in_thread = in_thread
        self._now = now
        self._rng = rng or random.Random()
        self._found: Found | None = None
        self._refused = False
        self._refusals = 0
        self._renew_at = 0.0
        self._files: tuple[object, ...] = ()
        self._files_looked_at = -FILES_SECONDS
        self._walk: object | None = None  # the one whose result is waited for
        self._began = 0.0
        self._landed = trio.Event()
        self._next = -1.0
        self._failure: QueueError | None = None
        self._failures = 0
        self._notes: set[str] = set()

    async def current(self) -> Keys:
        """What to sign with now. Raises `QueueError`: there are none, and why."""
        found = self._found
        if found is not None and self._now() < self._renew_at and not self._refused and not self._changed():
            return found.keys
        self._start_walk()
        if found is not None and self._holds(found) and not self._refused:
            return found.keys
        if self._walk is not None:
            with trio.move_on_after(WAIT_SECONDS):
                await self._landed.wait()
        if self._found is not None and self._holds(self._found):
            return self._found.keys
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))
        took = trio.current_time() - self._began
        raise QueueUnavailable(
            f"AWS credentials: they are still being looked for, after {took:.0f} s; a source does not answer"
        )

    def refused(self, keys: Keys) -> None:
        """AWS has not accepted `keys`: there may be others by now."""
        if self._found is not None and self._found.keys == keys:
            self._refused = True

    @property
    def last(self) -> Keys:
        """What `current()` returned last, for a signer that cannot wait."""
        assert self._found is not None
        return self._found.keys

    @property
    def source(self) -> str | None:
        """Where the present ones come from, in words."""
        return self._found.source if self._found is not None else None

    def _holds(self, found: Found) -> bool:
        return found.expires is None or self._now() < found.expires

    def _changed(self) -> bool:
        """Whether a file that the credentials come from is another than when they were read."""
        if trio.current_time() - self._files_looked_at < FILES_SECONDS:
            return False
        self._files_looked_at = trio.current_time()
        assert self._found is not None
        if _state_of(self._found.files) == self._files:
            return False
        self._renew_at = 0.0
        return True

    # -- the walk --

    def _start_walk(self) -> None:
        now = trio.current_time()
        if self._walk is not None:
            if now - self._began < STUCK_SECONDS:
                return
            self._fail(
                QueueUnavailable(f"AWS credentials: a source has not answered for {STUCK_SECONDS:g} s; it is given up")
            )
        if now < self._next:
            return
        walk = self._walk = object()
        self._began, self._landed = now, trio.Event()
        token = trio.lowlevel.current_trio_token()
        files = _state_of(self._found.files) if self._found is not None else ()

        def deliver(result: outcome.Outcome[Found]) -> None:
            with suppress(trio.RunFinishedError):  # nobody needs them any more
                token.run_sync_soon(self._land, walk, result, files)

        self._in_thread(self._look, deliver)

    def _land(self, walk: object, result: outcome.Outcome[Found], files: tuple[object, ...]) -> None:
        """Runs in Trio's thread, between tasks, and must not raise there."""
        if walk is not self._walk:
            return
        match result:
            case outcome.Value(value):
                self._take(value, files)
            case outcome.Error(error):
                # By its type only: what is no QueueError may hold anything.
                known = error if isinstance(error, QueueError) else None
                self._fail(
                    known or QueueUnavailable(f"AWS credentials: looking for them failed ({type(error).__name__})")
                )

    def _take(self, found: Found, files: tuple[object, ...]) -> None:
        if not self._holds(found):
            self._fail(
                QueueUnavailable(
                    f"AWS credentials: those that {found.source} gives have expired ({_date(found.expires)}); see to it, or set "
                    "this machine's clock"
                )
            )
            return
        previous, self._found = self._found, found
        was_failing, self._failure, self._failures = self._failure is not None, None, 0
        # What changed while they were read counts as changed since: the state is that of before, where it is known.
        self._files = files if previous is not None and previous.files == found.files else _state_of(found.files)
        self._renew_at = float("inf")
        if found.expires is not None:
            left = found.expires - self._now()
            self._renew_at = found.expires - min(RENEW_SECONDS, left / 2)
        same = previous is not None and previous.keys == found.keys
        self._refusals = self._refusals + 1 if same and self._refused else 0
        pause = self._pause(self._refusals) if self._refusals else RETRY_FIRST
        self._next = trio.current_time() + pause
        self._refused = False
        if (on_first := self._on_first) is not None:
            self._on_first = None
            on_first(found)
        if not same or was_failing:
            until = "" if found.expires is None else f", until {_date(found.expires)}"
            level = logging.DEBUG if previous is None and not was_failing else logging.INFO
            log.log(level, "AWS credentials come from %s%s", found.source, until)
        for note in found.notes:
            if note not in self._notes:
                self._notes.add(note)
                log.warning("AWS credentials: %s", note)
        self._end_walk()

    def _fail(self, error: QueueError) -> None:
        self._failure = error
        self._failures += 1
        self._next = trio.current_time() + self._pause(self._failures)
        if self._found is not None and self._holds(self._found):
            until = "" if self._found.expires is None else f"; the present ones hold until {_date(self._found.expires)}"
            log.warning("AWS credentials could not be renewed, trying again%s: %s", until, error)
        self._end_walk()

    def _end_walk(self) -> None:
        self._walk = None
        self._landed.set()

    def _pause(self, attempt: int) -> float:
        return backoff(attempt, first=RETRY_FIRST, cap=RETRY_CAP, rng=self._rng)


def _state_of(files: tuple[str, ...]) -> tuple[object, ...]:
    state: list[Any] = []
    for path in files:
        try:
            stat = os.stat(path)
            state.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except (OSError, ValueError):
            state.append(None)
    return tuple(state)


def _date(moment: float | None) -> str:
    try:
        return datetime.fromtimestamp(moment or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "at a date that does not exist"
