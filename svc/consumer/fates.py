"""What a processor did with a message becomes its fate: delete it, give it back, try it again later, move it to the dead letters.

Whoever has run the processor (`tasks.py`) calls `conclude()` at once, without a checkpoint: what is finished cannot be released
by a cancellation then. Nothing here waits or runs anything.
"""

import math
import random
from typing import Protocol

import structlog
import trio

from svc.backoff import redelivery
from svc.consumer.ledger import PROCESSED, RELEASED, Action, Entry, Fate, Ledger, Outcome
from svc.consumer.queue import RedrivePolicy, had_last_receive, is_fifo
from svc.consumer.settlement import Settlement
from svc.processors import Reject, Retry

log = structlog.get_logger(__name__)

BESIDE_ITSELF = (5.0, 60.0)
"""Seconds for which a message whose own thread or call goes on is given back: after its first receive, and at most."""


class Verdicts(Protocol):
    """Who wants to know how many fail: the circuit breaker, before the receives."""

    def verdict(self, entry: Entry, *, failed: bool, now: float | None = None) -> None:
        """A run of the processor has ended, now."""


class Fates:
    def __init__(
        self,
        ledger: Ledger,
        settlement: Settlement,
        verdicts: Verdicts,
        policy: RedrivePolicy,
        *,
        fifo: bool,
        retry_backoff: tuple[float, float] | None,
        rng: random.Random,
    ) -> None:
        self._ledger = ledger
        self._settlement = settlement
        self._verdicts = verdicts
        self._policy = policy
        self._fifo_by_name = fifo
        self._retry_backoff = retry_backoff
        self._rng = rng

    def conclude(self, entry: Entry, error: BaseException | None, *, cancelled: bool, now: float | None = None) -> None:
        """Its processor has returned (`error` is None), raised, or was cancelled by us. `now`: Trio's time, if the caller has
        just asked for it."""
        if not entry.is_undecided:  # lost, or taken from a processor that ignored its cancellation
            if error is None and not cancelled:
                self._ledger.remember(entry.message.id)
        elif cancelled:
            self._settlement.settle(entry, RELEASED)
        elif error is None:
            self._settlement.settle(entry, PROCESSED, now=now)
            self._verdicts.verdict(entry, failed=False, now=now)
        else:
            self._settle_raised(entry, error)

    def _settle_raised(self, entry: Entry, error: BaseException) -> None:
        try:
            match _single(error):
                case Retry() as retry if self._moves_to_dead_letters(entry):
                    self._dead_letter(entry, f"its processor asked for a retry after the last receive: {retry}")
                    self._verdicts.verdict(entry, failed=False)
                    return
                case Retry() as retry:
                    after, reason = math.ceil(retry.after), str(retry)
                    log.info("message will be retried", visible_again_in_seconds=after, reason=reason)
                    self._settlement.settle(entry, _visible_again(Outcome.RELEASED, after))
                    self._verdicts.verdict(entry, failed=False)
                    return
                case Reject() as reject:
                    reason = str(reject.reason)
                    log.warning("message rejected", reason=reason)
                    self._ledger.note_error(entry.message.id, f"rejected: {reason}")
                    self._settlement.settle(entry, Fate(Action.DEAD_LETTER, Outcome.REJECTED, reason=reason))
                    self._verdicts.verdict(entry, failed=False)
                    return
        except Exception as broken:
            # The user's own class of it, which lacks something, or cannot be shown.
            if not entry.is_undecided:
                raise
            error = broken
        self.fail(entry, error)

    def fail(self, entry: Entry, error: BaseException) -> None:
        """The message has failed by this error; it comes back after its back-off."""
        text, receives = _described(error), entry.message.receive_count
        self._ledger.note_error(entry.message.id, text)
        self._verdicts.verdict(entry, failed=True)
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
        self._settlement.settle(entry, _visible_again(Outcome.FAILED, after))

    def put_off(self, entry: Entry) -> bool:
        """A thread, or a call, that was left behind with this message goes on: the message is not begun beside it. It goes back,
        for another instance or for later; but not after its last receive (False), for the next one would dead-letter it."""
        if had_last_receive(self._policy, entry.message):
            return False
        first, cap = BESIDE_ITSELF
        after = redelivery(entry.message.receive_count, first=first, cap=cap, rng=self._rng)
        self._settlement.settle(entry, _visible_again(Outcome.RELEASED, after))
        return True

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
        self._settlement.settle(entry, _visible_again(Outcome.FAILED, after))

    def _moves_to_dead_letters(self, entry: Entry) -> bool:
        """Whether it is for us to move it, if it is not finished now. SQS would, at the next attempt to receive it. Until then
        its FIFO group waits, and what waits is received again and again in vain, until it is moved too."""
        return is_fifo(self._policy, self._fifo_by_name) and had_last_receive(self._policy, entry.message)

    def _dead_letter(self, entry: Entry, reason: str, error: BaseException | None = None) -> None:
        log.error(
            "message failed for the last time and goes to the dead-letter queue",
            receive_count=entry.message.receive_count,
            reason=reason,
            exc_info=error,
        )
        self._settlement.settle(entry, Fate(Action.DEAD_LETTER, Outcome.FAILED, reason=reason))


def _visible_again(outcome: Outcome, after: int) -> Fate:
    return Fate(Action.CHANGE_VISIBILITY, outcome, after=after, due=trio.current_time() + after)


def _single(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one (every Trio nursery wraps what its tasks raise), else the group."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        if len(inner.exceptions) != 1:
            return error
        inner = inner.exceptions[0]
    return inner


def _described(error: BaseException) -> str:
    single = _single(error)
    try:
        return f"{type(single).__name__}: {single}"
    except Exception:
        return f"{type(single).__name__} (whose text cannot be read)"
