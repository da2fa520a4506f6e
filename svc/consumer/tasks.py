"""The message tasks: run the processor on each message, in a cancel scope of its own, and turn what it does into a fate.

On a standard queue every message has a task; on a FIFO queue every message group has one, which takes its messages in order and
goes on to the next only when the one before is settled. However a task ends, its message has a fate afterwards.
"""

import math
import random
from collections import deque
from typing import Protocol

import structlog
import trio

from svc.backoff import redelivery
from svc.consumer.ledger import PROCESSED, RELEASED, Action, Entry, Fate, Ledger, Listener, Outcome
from svc.consumer.observer import Observer
from svc.consumer.queue import RedrivePolicy, had_last_receive, is_fifo
from svc.consumer.settlement import Settlement
from svc.defects import Defects
from svc.processors import Process, Reject, Retry

log = structlog.get_logger(__name__)


class Receives(Protocol):
    """Where further messages come from, as many as the work can take."""

    def verdict(self, entry: Entry, *, failed: bool) -> None:
        """A run of the processor has ended."""

    async def wait_for_receives(self, group: str) -> None:
        """Return when what is given back of this FIFO group is not received in vain at once."""


class MessageTasks(Listener):
    """Listens to the ledger for leases that are lost while their message is worked on."""

    def __init__(
        self,
        process: Process,
        ledger: Ledger,
        settlement: Settlement,
        receives: Receives,
        policy: RedrivePolicy,
        *,
        observer: Observer,
        fifo: bool,
        retry_backoff: tuple[float, float] | None,
        defects: Defects,
        rng: random.Random,
    ) -> None:
        self._process = process
        self._ledger = ledger
        self._settlement = settlement
        self._observer = observer
        self._fifo_by_name = fifo
        self._retry_backoff = retry_backoff
        self._receives = receives
        self._policy = policy
        self._defects = defects
        self._rng = rng
        self._groups: dict[str, deque[Entry]] = {}
        self._nursery: trio.Nursery | None = None
        self.running: dict[Entry, None] = {}
        """Calls of the processor that have not ended, whatever became of their message meanwhile."""

    @property
    def _fifo(self) -> bool:
        return is_fifo(self._policy, self._fifo_by_name)

    def run_in(self, nursery: trio.Nursery) -> None:
        """The tasks are started in this nursery, from now on."""
        self._nursery = nursery

    def ended(self, entry: Entry) -> None:
        if entry.ended is Outcome.LOST and entry.scope is not None:
            entry.scope.cancel(reason="lease lost")

    def start(self, entry: Entry) -> None:
        """Work on the message now, or when its group's turn comes. Does not wait."""
        nursery, group = self._nursery, entry.message.group_id
        assert nursery is not None
        if not self._fifo or group is None:
            nursery.start_soon(self._work_on, entry)
        elif group in self._groups:
            self._groups[group].append(entry)
        else:
            self._groups[group] = deque([entry])
            nursery.start_soon(self._work_on_group, group)

    async def _work_on_group(self, group: str) -> None:
        """Message after message. One that is not finished lets none of its successors pass: they go back too."""
        line = self._groups[group]
        try:
            while line:
                entry = line[0]
                await self._end_of_earlier(entry)
                await self._work_on(entry)
                await self._end_of(entry)
                line.popleft()
                if line and not entry.lets_pass(line[0]):
                    await self._receives.wait_for_receives(group)
                    break
        finally:
            del self._groups[group]
            for entry in line:
                if entry.is_undecided():
                    self._settlement.settle(entry, RELEASED)

    async def _end_of_earlier(self, entry: Entry) -> None:
        """Wait until no earlier delivery of this message is in our hands, or this one is lost. (Lost, it is not the next in turn
        any more, and a later one, which waits behind it in the line, may be.)"""
        while entry.ended is None and (first := self._ledger.at_work_on(entry.message.id)) not in (None, entry):
            await self._end_of(first)

    async def _end_of(self, entry: Entry) -> None:
        if entry.ended is None:
            entry.done = entry.done or trio.Event()
            await entry.done.wait()

    async def _work_on(self, entry: Entry) -> None:
        if not entry.is_undecided():
            return  # its fate was sealed before its turn came
        if self._ledger.is_finished(entry.message.id):
            # While it waited, an earlier delivery was finished, by a processor that ignored that its lease was lost.
            self._settlement.settle(entry, PROCESSED)
            return
        structlog.contextvars.bind_contextvars(message_id=entry.message.id)
        error: BaseException | None = None
        entry.scope = scope = trio.CancelScope()
        try:
            try:
                with scope:
                    await self._run_processor(entry)
            except (
                BaseException
            ) as raised:  # SystemExit and the like too: a processor ends its message, never the service
                error = _its_own(raised)
            # From here to the settlement there is no checkpoint: what is finished cannot be released by a cancellation.
            if not entry.is_undecided():  # lost, or taken from a processor that ignored its cancellation
                if error is None and not scope.cancelled_caught:
                    self._ledger.remember(entry.message.id)
            elif scope.cancelled_caught:
                self._settlement.settle(entry, RELEASED)
            elif error is None:
                self._settlement.settle(entry, PROCESSED)
                self._receives.verdict(entry, failed=False)
            else:
                self._settle_raised(entry, error)
        except Exception as defect:  # ours: what the processor raised has its fate by now
            self._defects.note("message", defect)
            if entry.is_undecided():
                self.fail(entry, defect)
        finally:
            if entry.is_undecided():  # the whole worker is cancelled
                self._settlement.settle(entry, RELEASED)

    async def _run_processor(self, entry: Entry) -> None:
        entry.began_at = trio.current_time()
        self.running[entry] = None
        try:
            self._observer.begins(entry)
            await self._process(entry.message)
            _close_what_was_left_open()
        except BaseException as error:
            self._observer.worked(entry, error)
            _close_what_was_left_open(error)
            raise
        finally:
            del self.running[entry]
            if not entry.is_undecided():  # nothing that follows tells who waits for its end
                self._ledger.changed.notify()
        self._observer.worked(entry, None)

    def _settle_raised(self, entry: Entry, error: BaseException) -> None:
        try:
            match _single(error):
                case Retry() as retry if self._moves_to_dead_letters(entry):
                    self._dead_letter(entry, f"its processor asked for a retry after the last receive: {retry}")
                    self._receives.verdict(entry, failed=False)
                    return
                case Retry() as retry:
                    after, reason = math.ceil(retry.after), str(retry)
                    log.info("message will be retried", visible_again_in_seconds=after, reason=reason)
                    self._settlement.settle(entry, Fate(Action.CHANGE_VISIBILITY, Outcome.RELEASED, after=after))
                    self._receives.verdict(entry, failed=False)
                    return
                case Reject() as reject:
                    reason = str(reject.reason)
                    log.warning("message rejected", reason=reason)
                    self._ledger.note_error(entry.message.id, f"rejected: {reason}")
                    self._settlement.settle(entry, Fate(Action.DEAD_LETTER, Outcome.REJECTED, reason=reason))
                    self._receives.verdict(entry, failed=False)
                    return
        except Exception as broken:
            # The user's own class of it, which lacks something, or cannot be shown.
            if not entry.is_undecided():
                raise
            error = broken
        self.fail(entry, error)

    def fail(self, entry: Entry, error: BaseException) -> None:
        """The message has failed by this error; it comes back after its back-off."""
        text, receives = _described(error), entry.message.receive_count
        self._ledger.note_error(entry.message.id, text)
        self._receives.verdict(entry, failed=True)
        if self._moves_to_dead_letters(entry):
            self._dead_letter(entry, f"failed after its last receive: {text}", error)
            return
        if self._retry_backoff is None:
            log.error("message failed", receive_count=receives, exc_info=error)
            self._ledger.end(entry, Outcome.FAILED)
            return
        first, cap = self._retry_backoff
        # After the last receive that the redrive policy grants, the next attempt to receive it moves it to the dead-letter queue:
        # there is nothing to wait for, and behind it a FIFO group waits too.
        attempt = 1 if had_last_receive(self._policy, entry.message) else receives
        after = redelivery(attempt, first=first, cap=cap, rng=self._rng)
        log.error("message failed", receive_count=receives, visible_again_in_seconds=after, exc_info=error)
        self._settlement.settle(entry, Fate(Action.CHANGE_VISIBILITY, Outcome.FAILED, after=after))

    def keep_rejected(self, entry: Entry) -> None:
        """It was rejected, and there is no dead-letter queue to keep it: it fails, and comes back."""
        assert entry.fate is not None
        log.error(
            "rejected message comes back: the queue has no dead-letter queue (see REJECT_WITHOUT_DLQ)",
            message_id=entry.message.id,
            reason=entry.fate.reason,
        )
        if self._retry_backoff is None:
            self._ledger.end(entry, Outcome.FAILED)
            return
        first, cap = self._retry_backoff
        after = redelivery(entry.message.receive_count, first=first, cap=cap, rng=self._rng)
        self._settlement.settle(entry, Fate(Action.CHANGE_VISIBILITY, Outcome.FAILED, after=after))

    def _moves_to_dead_letters(self, entry: Entry) -> bool:
        """Whether it is for us to move it, if it is not finished now. SQS would, at the next attempt to receive it. Until then
        its FIFO group waits, and what waits is received again and again in vain, until it is moved too."""
        return self._fifo and had_last_receive(self._policy, entry.message)

    def _dead_letter(self, entry: Entry, reason: str, error: BaseException | None = None) -> None:
        log.error(
            "message failed for the last time and goes to the dead-letter queue",
            receive_count=entry.message.receive_count,
            reason=reason,
            exc_info=error,
        )
        self._settlement.settle(entry, Fate(Action.DEAD_LETTER, Outcome.FAILED, reason=reason))


def _single(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one (every Trio nursery wraps what its tasks raise), else the group."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        if len(inner.exceptions) != 1:
            return error
        inner = inner.exceptions[0]
    return inner


def _its_own(raised: BaseException) -> BaseException:
    """What the processor raised. When the whole worker is cancelled, a cancellation that is part of it is raised on instead; any
    other one is the processor's own mistake (a stored one, one that left its scope) and fails its message like any error."""
    if trio.current_effective_deadline() == -math.inf:
        if isinstance(raised, trio.Cancelled):
            raise raised
        if isinstance(raised, BaseExceptionGroup) and (cancelled := raised.split(trio.Cancelled)[0]) is not None:
            raise cancelled
    return raised


def _close_what_was_left_open(error: BaseException | None = None) -> None:
    """A nursery that the processor has opened and not closed (an exit stack that nobody closes) would end this task, and with it
    the service, with a RuntimeError. Its tasks are cancelled instead, and the message has failed."""
    task = trio.lowlevel.current_task()
    left_open = task.child_nurseries
    if not left_open:
        return
    for nursery in left_open:
        nursery.cancel_scope.cancel(reason="its processor has ended and left it open")
    # Trio has no public way to let go of a nursery; by this list it decides whether a task may end (`task_exited`, Trio 0.35).
    task._child_nurseries.clear()
    if error is None:
        raise RuntimeError("the processor returned and left a nursery open; what runs in it is cancelled")


def _described(error: BaseException) -> str:
    single = _single(error)
    try:
        return f"{type(single).__name__}: {single}"
    except Exception:
        return f"{type(single).__name__} (whose text cannot be read)"
