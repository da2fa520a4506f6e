"""Settlement: carries decided fates to the queue, in batches, and ends a delivery only when the queue has confirmed it.

What leaves when, and together with which, is decided in `settlement_batches.py`; this file sends it and judges the answer. What a
batch call refuses, or what never got an answer, is tried again with back-off until its lease is over; then it is lost, and the
ledger remembers what was finished.

Settlement has its own tasks and never runs within the cancel scope of the work it settles. It decides nothing about messages.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
import trio

from svc.consumer.ledger import Action, Entry, Fate, Ledger, Outcome
from svc.consumer.queue import MAX_VISIBILITY, NoAnswer, Queue, QueueError, Refusal
from svc.consumer.settlement_batches import Batch, Batches
from svc.defects import Defects
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

CALLS_AT_ONCE = 40
"""Settlement calls on the wire at once: the rest waits here, where it can still join a batch, and not for a connection, where its
time-out runs. Enough for 400 messages per round trip."""

CALL_LIMIT = 10.0
"""Seconds after which a settlement call on the wire is given up and tried again."""

STUBBORN = 3
"""Tries after which a message that the queue keeps refusing, while it answers, is logged."""


NO_DEAD_LETTER_QUEUE = Refusal("NoDeadLetterQueue", "the queue has no dead-letter queue any more", gone=False)


class Arrivals(Protocol):
    """Where the messages come from that may have to be settled soon."""

    def brings_more(self, seconds: float) -> bool:
        """Whether more may come, for something has come within so many seconds."""


class Settlement:
    def __init__(
        self,
        queue: Queue,
        ledger: Ledger,
        arrivals: Arrivals,
        *,
        linger: float,
        defects: Defects,
        rng: random.Random,
    ) -> None:
        """`linger` is the longest that a settlement waits for company, while some may come."""
        self._queue = queue
        self._ledger = ledger
        self._linger = linger
        self._arrivals = arrivals
        self._defects = defects
        self._wake_up = WakeUp()
        self._batches = Batches(linger=linger, rng=rng)
        self._on_wire = 0
        self._calls: trio.Nursery | None = None
        self._without_loop: trio.Nursery | None = None
        self._is_over = False
        self._failing = False
        self.keep_rejected: Callable[[Entry], object] | None = None
        """What becomes of a rejected message where there is no dead-letter queue; None: it is deleted."""
        self._to_keep: set[str] = set()  # receipts
        self._yielded: set[str] = set()  # receipts whose lease may have been ended by a release without an answer

    @property
    def left(self) -> Mapping[str, int]:
        """How many batches have left, by the reason why: `size`, `time` or `flush`."""
        return self._batches.left

    def settle(self, entry: Entry, fate: Fate, now: float | None = None) -> None:
        """The fate of a delivery is known; from here on it is this file's task. `now`: Trio's time, if the caller has just asked
        for it. Does not wait."""
        self._ledger.decide(entry, fate)
        self._batches.put(entry, fate.action, trio.current_time() if now is None else now)
        self._wake_up.notify()
        if self._without_loop is not None:
            self.run_out(self._without_loop)

    def flush(self, flushing: bool) -> None:
        """A drain begins: from now on nothing waits for company; or it is over."""
        self._batches.flush(flushing, trio.current_time())
        self._wake_up.notify()

    def look_again(self) -> None:
        """Something that settlement waits for has changed."""
        self._wake_up.notify()
        if self._without_loop is not None:
            self.run_out(self._without_loop)

    async def run(self, wire: trio.Nursery) -> None:
        """Send batches in `wire`, which outlives this. Ends only by cancellation."""
        self._calls = wire
        while True:
            await self._wake_up.wait(self._look)

    def run_out(self, wire: trio.Nursery) -> None:
        """In place of `run`, when that has failed: send everything that is decided in `wire`, whatever it waits for, and at once
        what is decided later; each once. Does not wait."""
        if self._is_over:
            return
        self._without_loop = wire
        for batch in self._batches.take_all():
            self._start(batch, wire)

    def close(self) -> None:
        """The worker has ended, or its time is up: nothing is sent any more, whatever happens."""
        self._is_over, self._without_loop = True, None

    def _look(self) -> float | None:
        """Send every batch that has a reason to leave; returns when the next one will have, if that is a matter of time."""
        assert self._calls is not None
        company = self._ledger.undecided > 0 or self._arrivals.brings_more(self._linger)
        room = CALLS_AT_ONCE - self._on_wire
        batches, next_look = self._batches.take(trio.current_time(), calls=room, company=company)
        for batch in batches:
            self._start(batch, self._calls)
        return next_look

    def _start(self, batch: Batch, wire: trio.Nursery) -> None:
        self._on_wire += 1
        wire.start_soon(self._send, batch.action, batch.entries)

    async def _send(self, action: Action, batch: Sequence[Entry]) -> None:
        """One call, and what follows from its answer. Raises nothing: it runs among the calls of all others."""
        refused: Mapping[str, Refusal] | None = None
        error, may_have_acted = f"no answer in {CALL_LIMIT:g} s", True
        sent = self._ledger.moment()
        try:
            if action is not Action.DELETE:
                batch = [entry for entry in batch if self._may_be_sent(entry, action)]
            if not batch:
                return
            with trio.CancelScope(relative_deadline=CALL_LIMIT):
                refused = await self._call(action, batch)
        except QueueError as failure:
            error, may_have_acted = str(failure), isinstance(failure, NoAnswer)
        except Exception as defect:
            self._defects.note("settlement", defect)
            error = f"internal error ({type(defect).__name__})"
        finally:
            self._on_wire -= 1
            self._wake_up.notify()
        self._log(refused is not None, action, len(batch), error)
        if refused is not None:
            self._batches.answered(action)
        again: list[tuple[Entry, str]] = []
        now = trio.current_time()
        for entry in batch:
            if entry.ended is not None:
                continue  # lost while the call was on the wire
            try:
                if refused is None and may_have_acted:
                    self._may_be_visible(entry, sent)
                failed = self._conclude(entry, action, refused, error, sent, now)
            except Exception as defect:
                self._defects.note("settlement", defect)
                failed = f"internal error ({type(defect).__name__})" if entry.ended is None else None
            if failed is not None:
                again.append((entry, failed))
        self._try_again(action, again, together=refused is None)

    def _may_be_sent(self, entry: Entry, action: Action) -> bool:
        """Whether its call may be made. When its lease is over, another consumer may have the message: a change of visibility
        could take it from that one (some queues let old receipts act), and a second copy could reach the dead-letter queue.
        (Nobody asks for a delete: the message is finished, whoever has it.)"""
        if entry.lease.until > trio.current_time():
            return True
        self._lost(entry, f"its lease was over before {action.value} could be sent")
        return False

    def _may_be_visible(self, entry: Entry, sent: float) -> None:
        """A change of visibility got no answer. If it has acted, the message is visible from then on, and so our lease is over:
        until then it may be tried again, and not after."""
        if entry.fate is not None and entry.fate.action is Action.CHANGE_VISIBILITY:
            until = self._ledger.time_of(sent) + visible_in(entry)
            if until < entry.lease.until:
                entry.lease.until = until
                self._yielded.add(entry.delivery.receipt)

    def _conclude(
        self, entry: Entry, action: Action, refused: Mapping[str, Refusal] | None, error: str, sent: float, now: float
    ) -> str | None:
        """What the answer (None: there was none, for this reason) means for one of the batch; returns why it is to be tried
        again, if it is."""
        if refused is None:  # it may have acted
            self._ledger.hide(entry, max(entry.hidden_until, now + visible_in(entry)))
            return error
        refusal = refused.get(entry.delivery.receipt)
        if refusal is None:
            self._confirmed(entry, now)
        elif refusal.gone:
            self._ledger.hide(entry, now)  # not by us any more
            self._lost(entry, f"the queue refused to {action.value}: {refusal.why}")
        else:
            if refusal.unconfirmed:  # it may have acted
                self._may_be_visible(entry, sent)
                self._ledger.hide(entry, max(entry.hidden_until, now + visible_in(entry)))
            return refusal.why
        return None

    async def _call(self, action: Action, batch: Sequence[Entry]) -> Mapping[str, Refusal]:
        if action is Action.DELETE:
            return await self._queue.delete([entry.delivery.receipt for entry in batch])
        if action is Action.CHANGE_VISIBILITY:
            return await self._queue.change_visibility({entry.delivery.receipt: visible_in(entry) for entry in batch})
        for entry in batch:
            assert entry.fate is not None
            reason = entry.fate.reason
            if await self._queue.dead_letter(entry.delivery, reason):
                continue
            if entry.fate.outcome is Outcome.FAILED:
                # The redrive policy was removed after we had read it. Nobody meant this message to be deleted.
                return {entry.delivery.receipt: NO_DEAD_LETTER_QUEUE}
            if self.keep_rejected is not None:
                self._to_keep.add(entry.delivery.receipt)
                continue
            log.error(
                "rejected message is deleted: the queue has no dead-letter queue",
                message_id=entry.message.id,
                reason=reason,
            )
        return {}

    def _confirmed(self, entry: Entry, now: float) -> None:
        assert entry.fate is not None
        if entry.delivery.receipt in self._to_keep:
            self._to_keep.remove(entry.delivery.receipt)
            assert self.keep_rejected is not None
            self.keep_rejected(entry)
            return
        action = entry.fate.action
        if action is Action.DELETE:
            if now >= entry.lease.until:
                self._deleted_late(entry)
        elif action is Action.DEAD_LETTER:
            self.settle(entry, Fate(Action.DELETE, entry.fate.outcome))
            return
        else:
            self._ledger.hide(entry, now + visible_in(entry))
        self._yielded.discard(entry.delivery.receipt)
        self._ledger.end(entry, entry.fate.outcome)

    def _deleted_late(self, entry: Entry) -> None:
        log.warning(
            "message deleted when its lease was over: another consumer may have had it meanwhile",
            message_id=entry.message.id,
        )
        # SQS may confirm the delete by an old receipt, and keep the message.
        self._ledger.remember(entry.message.id)

    def _try_again(self, action: Action, failed: Sequence[tuple[Entry, str]], *, together: bool) -> None:
        """What failed is tried again as long as its lease lasts. `together`: the queue did not answer at all."""
        if not failed:
            return
        before = [entry.attempts for entry, _ in failed]
        entries = [entry for entry, _ in failed]
        over = self._batches.again(action, entries, trio.current_time(), together=together)
        for (entry, error), attempts in zip(failed, before, strict=True):
            if attempts < STUBBORN <= entry.attempts and not together:
                log.warning(
                    "a message could not be settled, trying again until its lease ends",
                    message_id=entry.message.id, action=action.value, attempts=entry.attempts, error=error,
                )  # fmt: skip
            if entry in over:
                self._lost(entry, f"its lease ran out before the queue confirmed {action.value}: {error}")

    def _lost(self, entry: Entry, why: str) -> None:
        fate = entry.fate
        yielded = entry.delivery.receipt in self._yielded
        self._yielded.discard(entry.delivery.receipt)
        if yielded and fate is not None and fate.outcome is Outcome.RELEASED:
            log.warning(
                "a release got no answer: the message is visible now, or when its lease ends",
                message_id=entry.message.id,
                error=why,
            )
            self._ledger.end(entry, Outcome.RELEASED)
            return
        if fate is not None and fate.outcome is Outcome.FAILED and fate.action is not Action.DELETE:
            # Nothing is lost: it was to come back, and does when its lease ends, sooner or later than was meant.
            log.warning("failed message keeps its visibility timeout", message_id=entry.message.id, error=why)
            self._ledger.end(entry, Outcome.FAILED)
            return
        self._ledger.lose(entry, why)

    def _log(self, answered: bool, action: Action, messages: int, error: str) -> None:
        """One line when settlement begins to fail, one when it works again."""
        if not answered and not self._failing:
            log.warning(
                "messages could not be settled, trying again", action=action.value, messages=messages, error=error
            )
        elif answered and self._failing:
            log.info("messages are settled again", action=action.value)
        self._failing = not answered


def visible_in(entry: Entry) -> int:
    """The new visibility timeout, cut to what SQS takes: no later than 12 hours after the receive."""
    assert entry.fate is not None
    return max(0, min(entry.fate.after, math.floor(entry.received_at + MAX_VISIBILITY - trio.current_time())))
