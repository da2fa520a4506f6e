"""What the queue is asked of itself: whether it works, and its redrive policy.

However often others ask, there is one call at a time and one a second, and none is waited for over 5 s.
"""

import random

import structlog
import trio

from svc.backoff import backoff
from svc.consumer.queue import Queue, QueueError
from svc.defects import Defects

EVERY = 1.0
"""Seconds from the begin of one call to the begin of the next (SPEC, `GET /health`)."""

PATIENCE = 5.0
"""Seconds that an answer is waited for (SPEC, `GET /health`)."""


LEARN_EVERY = 300.0
"""Seconds between two looks at the queue's redrive policy."""

log = structlog.get_logger(__name__)


class Probe:
    def __init__(self, queue: Queue, defects: Defects, rng: random.Random, *, delete_rejected: bool) -> None:
        self._delete_rejected = delete_rejected
        self._queue = queue
        self._rng = rng
        self._defects = defects
        self._one_at_a_time = trio.Lock()
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self._worked = False
        self.error: str | None = None
        """What the last call that failed said; None after one that worked."""
        self.error_since: float | None = None
        """Trio time since which no call has worked."""

    async def works(self) -> bool:
        """Whether the last call worked, making one if the last is older than a second. Raises no error."""
        if self._fresh():
            return self._worked  # at once: behind a lock the answer waits for a turn of everything that is at work
        came = trio.current_time()
        with trio.move_on_after(PATIENCE) as patience:
            async with self._one_at_a_time:
                # Whoever waited for the call of another has its answer.
                if self._answered_at < came and not self._fresh():
                    # Too early only when the last call was cancelled: whoever asked for it has gone.
                    await trio.sleep_until(self._asked_at + EVERY)
                    await self._ask()
        if patience.cancelled_caught:
            self._failed(f"no answer in {PATIENCE:g} s")
        return self._worked

    def _fresh(self) -> bool:
        return self._answered_at >= self._asked_at > trio.current_time() - EVERY

    async def _ask(self) -> None:
        self._asked_at = trio.current_time()
        try:
            await self._queue.attributes()
        except QueueError as error:
            self._failed(str(error))
        except Exception as defect:
            self._defects.note("probe", defect)
            self._failed(f"internal error ({type(defect).__name__}); the log has its traceback")
        else:
            self._worked, self.error, self.error_since = True, None, None
        self._answered_at = trio.current_time()

    def _failed(self, error: str) -> None:
        self._worked, self.error = False, error
        if self.error_since is None:
            self.error_since = trio.current_time()

    async def keep_policy_known(self) -> None:
        """Read the redrive policy again and again: it decides what may be released without ending in the dead-letter queue. Ends
        only by cancellation."""
        failures, told = 0, False
        while True:
            try:
                await self._queue.attributes()
            except QueueError as error:
                failures += 1
                if failures == 1:
                    log.warning("the queue's redrive policy could not be read", error=str(error))
            except Exception as defect:
                failures += 1
                self._defects.note("queue_attributes", defect)
            else:
                failures = 0
                told = told or self._tell_policy()
            pause = backoff(failures, first=1, cap=60, rng=self._rng) if failures else LEARN_EVERY
            await trio.sleep(pause)

    def _tell_policy(self) -> bool:
        if self._queue.max_receive_count is None and self._delete_rejected:
            log.warning("the queue has no dead-letter queue: rejected messages are deleted (REJECT_WITHOUT_DLQ)")
        elif self._queue.max_receive_count is None:
            log.warning("the queue has no dead-letter queue: rejected messages fail and come back (REJECT_WITHOUT_DLQ)")
        return True
