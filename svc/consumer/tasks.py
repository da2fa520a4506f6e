"""The message tasks: run the processor on each message, in a cancel scope of its own, until its fate is known (`fates.py`).

On a standard queue every message has a task; on a FIFO queue every message group has one, which takes its messages in order and
goes on to the next only when the one before is settled. However a task ends, its message has a fate afterwards.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

import structlog
import trio
from structlog.contextvars import STRUCTLOG_KEY_PREFIX

from svc.consumer.batches import Batches
from svc.consumer.fates import Fates
from svc.consumer.group_line import Line
from svc.consumer.ledger import PROCESSED, RELEASED, Entry, Ledger, Listener, Outcome
from svc.consumer.observer import Observer
from svc.consumer.queue import RedrivePolicy, is_fifo
from svc.consumer.running import close_what_was_left_open
from svc.consumer.settlement import Settlement
from svc.defects import Defects, its_own
from svc.processors import AnyProcess, Batching, Threads
from svc.wakeup import WakeUp

LOGGED_ID = ContextVar[str](f"{STRUCTLOG_KEY_PREFIX}message_id")
"""Every log line from within a message's task names it. Set by itself: `bind_contextvars` costs a message ten times as much."""

log = structlog.get_logger(__name__)

PATIENCE = 60.0
"""Seconds that a message which has come back waits for the end of a call of its own that ignores its cancellation. Then it goes
back, for another instance or for later."""

_LOST = Outcome.LOST  # of every message: Python 3.11 looks an Enum's member up in Python, each time


class Receives(Protocol):
    """Where further messages come from, as many as the work can take."""

    async def wait_for_receives(self, group: str) -> None:
        """Return when what is given back of this FIFO group is not received in vain at once."""


class MessageTasks(Listener):
    """Listens to the ledger for leases that are lost while their message is worked on."""

    def __init__(
        self,
        process: AnyProcess,
        ledger: Ledger,
        settlement: Settlement,
        receives: Receives,
        policy: RedrivePolicy,
        fates: Fates,
        threads: Threads,
        *,
        observer: Observer,
        fifo: bool,
        places: int,
        defects: Defects,
    ) -> None:
        """`places`: how many messages may be in flight."""
        self._ledger = ledger
        self._settlement = settlement
        self._observer = observer
        self._fifo_by_name = fifo
        self._receives = receives
        self._policy = policy
        self._fates = fates
        self._threads = threads
        self._defects = defects
        self._groups: dict[str, Line] = {}
        self._nursery: trio.Nursery | None = None
        self.running: dict[Entry, None] = {}
        """Calls of the processor that have not ended, whatever became of their message meanwhile."""
        # By message id, those of them whose message is out of our hands. Nearly always empty.
        self._outlived: dict[str, Entry] = {}
        self._batches: Batches | None = None
        if isinstance(process, Batching):
            self._batches = Batches(
                process,
                ledger,
                settlement,
                fates,
                self.running,
                places=places,
                observer=observer,
                defects=defects,
                threads=threads,
                restart=self._start_in_batch,
            )
        else:
            self._process = process

    @property
    def _fifo(self) -> bool:
        return is_fifo(self._policy, self._fifo_by_name)

    def run_in(self, nursery: trio.Nursery) -> None:
        """The tasks are started in this nursery, from now on."""
        self._nursery = nursery
        if self._batches is not None:
            nursery.start_soon(self._defects.guard, "batches", self._batches.run, nursery)

    def flush(self, flushing: bool) -> None:
        """A drain begins: no message waits for others any more; or it is over."""
        if self._batches is not None:
            self._batches.flush(flushing)

    def decided(self, entry: Entry) -> None:
        if self._batches is not None:
            self._batches.look_again(entry)

    def ended(self, entry: Entry) -> None:
        if self._batches is not None:
            self._batches.look_again(entry)
            if entry.ended is Outcome.LOST:
                self._batches.lost(entry)
        elif entry.ended is _LOST and entry.scope is not None:
            entry.scope.cancel(reason="lease lost")
            self.note_outlived(entry)

    def note_outlived(self, entry: Entry) -> None:
        """Its fate is sealed, and its processor may not have heard of that, or ignores it."""
        if self._batches is None and entry in self.running:
            self._outlived[entry.message.id] = entry

    def start(self, entry: Entry) -> None:
        """Work on the message now, or when its group's turn comes. Does not wait."""
        nursery, group = self._nursery, entry.message.group_id
        assert nursery is not None
        if group is None or not self._fifo:
            if self._batches is not None:
                self._start_in_batch(entry)
            else:
                nursery.start_soon(self._work_on, entry, name="message")
        elif group in self._groups:
            self._groups[group].append(entry)
        else:
            self._groups[group] = Line(entry)
            nursery.start_soon(self._work_on_group, group)

    def _start_in_batch(self, entry: Entry) -> None:
        assert self._batches is not None
        assert self._nursery is not None
        if self._threads.at_work_on(entry.message.id) is None:
            self._batches.start(entry)
        else:
            self._nursery.start_soon(self._start_after_its_thread, entry)

    async def _start_after_its_thread(self, entry: Entry) -> None:
        assert self._batches is not None
        await self._apart_from_its_thread(entry)
        self._batches.start(entry)

    async def _work_on_group(self, group: str) -> None:
        """In its order. One that is not finished lets none of its successors pass: they go back too."""
        line = self._groups[group]
        try:
            if self._batches is not None:
                await self._batches.work_on_group(group, line, self)
            else:
                await self._work_one_by_one(group, line)
        finally:
            del self._groups[group]
            for entry in line:
                if self._batches is not None:
                    self._batches.give_back(entry)
                elif entry.is_undecided:
                    self._settlement.settle(entry, RELEASED)

    async def _work_one_by_one(self, group: str, line: Line) -> None:
        while line:
            entry = line.first
            await self.end_of_earlier(entry)
            await self._work_on(entry)
            await self.end_of(entry)
            if not line.next_may_follow():
                await self.wait_for_receives(group)
                return

    async def wait_for_receives(self, group: str) -> None:
        """As the intake's."""
        await self._receives.wait_for_receives(group)

    async def end_of_earlier(self, entry: Entry) -> None:
        """Wait until no earlier delivery of this message is in our hands, or this one is lost. (Lost, it is not the next in turn
        any more, and a later one, which waits behind it in the line, may be.)"""
        while entry.ended is None and (first := self._ledger.at_work_on(entry.message.id)) not in (None, entry):
            await self.end_of(first)
        await self._apart_from_its_thread(entry)

    async def end_of(self, entry: Entry) -> None:
        if entry.ended is None:
            entry.done = entry.done or trio.Event()
            await entry.done.wait()

    async def _apart_from_its_thread(self, entry: Entry) -> None:
        """A thread that was left behind may have its message still, which is not begun beside it: return when the thread has
        ended, or this delivery was put off."""
        message_id = entry.message.id
        if (thread := self._threads.at_work_on(message_id)) is None or not entry.is_undecided:
            return
        LOGGED_ID.set(message_id)
        if not thread.told:
            thread.told = True
            log.warning(
                "a message has come back while its thread goes on, and is not begun beside it", thread=thread.name
            )
        if not self._fates.put_off(entry):
            await self._wait_apart(entry, self._threads.changed, lambda: self._threads.at_work_on(message_id) is None)

    async def _apart_from_its_call(self, entry: Entry) -> None:
        """The same for a call that goes on. It is waited for at first: it may be over in this very moment, or soon, and has
        finished its message then."""
        message_id = entry.message.id

        def is_over() -> bool:
            return message_id not in self._outlived

        if is_over() or not entry.is_undecided:
            return
        LOGGED_ID.set(message_id)
        await self._wait_apart(entry, self._ledger.changed, is_over, patience=PATIENCE)
        if is_over() or not entry.is_undecided:
            return
        log.warning("a message has come back while its call goes on, cancelled, and is not begun beside it")
        if not self._fates.put_off(entry):
            await self._wait_apart(entry, self._ledger.changed, is_over)

    async def _wait_apart(
        self, entry: Entry, changed: WakeUp, is_over: Callable[[], bool], *, patience: float = math.inf
    ) -> None:
        try:
            with trio.CancelScope(relative_deadline=patience):
                await changed.wait_until(lambda: not entry.is_undecided or is_over())
        except trio.Cancelled:
            if entry.is_undecided:
                self._settlement.settle(entry, RELEASED)
            raise

    async def _work_on(self, entry: Entry) -> None:
        if self._threads.at_work_on(entry.message.id) is not None:
            await self._apart_from_its_thread(entry)
        if self._outlived:
            await self._apart_from_its_call(entry)
        if not entry.is_undecided:
            return  # its fate was sealed before its turn came
        now = trio.current_time()
        if entry.lease.until <= now:  # the process stood still, and the heartbeat's turn comes after this
            self._ledger.lose(entry, "its lease ran out before its turn came")
            return
        if self._ledger.is_finished(entry.message.id):
            # While it waited, an earlier delivery was finished, by a processor that ignored that its lease was lost.
            self._settlement.settle(entry, PROCESSED)
            return
        LOGGED_ID.set(entry.message.id)
        error: BaseException | None = None
        entry.began_at = now
        entry.scope = scope = trio.CancelScope()
        try:
            try:
                with scope:
                    # No coroutine of its own: each message in flight would hold it.
                    self.running[entry] = None
                    try:
                        self._observer.begins(entry)
                        await self._process(entry.message)
                        close_what_was_left_open()
                    except BaseException as failure:
                        self._has_run(entry, failure)
                        raise
                    self._has_run(entry, None)
            except (
                BaseException
            ) as raised:  # SystemExit and the like too: a processor ends its message, never the service
                error = its_own(raised)
            # From here to the settlement there is no checkpoint: what is finished cannot be released by a cancellation.
            self._fates.conclude(entry, error, cancelled=scope.cancelled_caught, now=entry.worked_until)
        except Exception as defect:  # ours: what the processor raised has its fate by now
            self._defects.note("message", defect)
            if entry.is_undecided:
                self._fates.fail(entry, defect)
        finally:
            if entry.is_undecided:  # the whole worker is cancelled
                self._settlement.settle(entry, RELEASED)

    def _has_run(self, entry: Entry, error: BaseException | None) -> None:
        entry.worked_until = trio.current_time()
        del self.running[entry]
        if not entry.is_undecided:  # nothing that follows tells who waits for its end
            if self._outlived.get(entry.message.id) is entry:
                del self._outlived[entry.message.id]
            self._ledger.changed.notify()
        self._observer.worked(entry, error)
        if error is not None:
            close_what_was_left_open(error)
