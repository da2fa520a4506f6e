"""The worker threads of a plain `def`: how many there are, and what becomes of one whose message was given back.

A thread cannot be stopped. When the task of its message is cancelled (the time of a drain is over, the lease is lost), the task
ends at once and the thread is *left behind*: it stands here until it ends, every drain waits for it and names it, and its message
is not begun again beside it. A thread that has not begun by then never begins.

Who is left behind takes no place: what comes later has to be able to run. That holds for as many as there are places, so that
there are never more than twice as many threads; any more keep theirs until they end.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

import structlog
import trio

from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)


class Threads:
    """Those of one processor. For Trio's thread only."""

    def __init__(self, places: int) -> None:
        """`places`: so many run at once, those left behind aside."""
        self.places = places
        self.changed = WakeUp()
        """Notified when one has ended. Whoever waits for more than that may put a wake-up of its own in this place."""
        self.on_finished: Callable[[str], None] = lambda message_id: None
        """Called with the id of each message that one which was left behind is done with, at its end."""
        self._limiter = trio.CapacityLimiter(places)
        self._runs: dict[ThreadRun, None] = {}
        self._by_message: dict[str, dict[ThreadRun, None]] = {}
        self._left: dict[ThreadRun, None] = {}
        self._without_place = 0

    @property
    def left(self) -> int:
        """How many were left behind."""
        return len(self._left)

    @property
    def left_behind(self) -> Mapping[str, str]:
        """Message id → thread, of those that go on although their message was given back."""
        return {message_id: run.name for run in self._left for message_id in run.message_ids}

    def at_work_on(self, message_id: str) -> "ThreadRun | None":
        """The thread that has this message, left behind or not; or has ended, and its task has yet to hear of it."""
        return next(iter(self._by_message.get(message_id, ())), None)

    async def acquire(self, run: "ThreadRun") -> None:
        """Wait for a place."""
        await self._limiter.acquire_on_behalf_of(run)
        run.has_place = True
        self._runs[run] = None
        for message_id in run.message_ids:
            self._by_message.setdefault(message_id, {})[run] = None

    def leave_behind(self, run: "ThreadRun") -> None:
        """Its message was given back, and it goes on. Or it has ended in this very moment, and its task does not know it."""
        if run not in self._runs:
            self._tell_finished(run)
            self.forget(run)
            return
        self._left[run] = None
        log.warning(
            "a thread goes on although its message was given back: threads cannot be stopped",
            message_id=run.told_ids,
            thread=run.name,
        )
        if self._without_place < self.places:
            self._without_place += 1
            self._give_up_place(run)
            return
        log.error(
            "more threads were left behind than MAX_CONCURRENCY: this one keeps its place until it ends, and fewer messages are "
            "worked on",
            message_id=run.told_ids,
            thread=run.name,
            threads=len(self._left),
        )

    def end(self, run: "ThreadRun") -> None:
        """The thread has ended, or will never begin."""
        if run not in self._runs:
            return
        del self._runs[run]
        if run in self._left:
            del self._left[run]
            self._without_place -= not run.has_place
            log.info("the thread that went on has ended", message_id=run.told_ids, thread=run.name)
            self._tell_finished(run)
            self.forget(run)
        self._give_up_place(run)
        self.changed.notify()

    def forget(self, run: "ThreadRun") -> None:
        """Its thread has ended, and whoever has to know what came of it does. (Not before: a copy of the message may be waiting,
        and would be begun although the message is finished.)"""
        if run in self._left:
            return
        for message_id in run.message_ids:
            if runs := self._by_message.get(message_id):
                runs.pop(run, None)
                if not runs:
                    del self._by_message[message_id]
        self.changed.notify()

    def _tell_finished(self, run: "ThreadRun") -> None:
        for message_id in run.finished:
            self.on_finished(message_id)

    def _give_up_place(self, run: "ThreadRun") -> None:
        if run.has_place:
            run.has_place = False
            self._limiter.release_on_behalf_of(run)


class ThreadRun:
    """One call in a thread. It takes the part of the limiter in `trio.to_thread.run_sync`, which calls that when the thread has
    really ended, whatever became of the task."""

    def __init__(self, threads: Threads, *message_ids: str) -> None:
        self.message_ids = tuple(dict.fromkeys(message_ids))
        self.name = "a thread"
        self.has_place = False
        self.finished: Sequence[str] = ()
        """Set by the thread at its end: the ids of the messages that are done with."""
        self.told = False
        """The log says that its message has come back and was given back again."""
        self._threads = threads
        self._lock = threading.Lock()
        self._begun = False
        self._given_back = False

    @property
    def told_ids(self) -> str:
        """The messages, for the log."""
        return ", ".join(self.message_ids)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._threads.acquire(self)

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.end(self)

    def begin(self, name: str) -> bool:
        """The first thing that the thread does. False: its message was given back meanwhile, and it must do nothing else."""
        with self._lock:
            self.name = name
            self._begun = not self._given_back
            return self._begun

    def give_back(self) -> None:
        """Its task is cancelled. In Trio's thread."""
        with self._lock:
            self._given_back = True
        if self._begun:
            self._threads.leave_behind(self)
        else:
            self._threads.end(self)
            self._threads.forget(self)

    def task_ends(self) -> None:
        """Its task has heard of the end, or has given it back."""
        self._threads.forget(self)
