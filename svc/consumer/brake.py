"""The circuit breaker at work: hands it the verdicts of the processor and the time, tells its moves in the log, and answers the
intake's question how many messages may be asked for. What to do is decided in `breaker.py`.
"""

import math
import random

import structlog
import trio

from svc.consumer.breaker import Breaker, BreakerConfig, BreakerSnapshot, Event, State
from svc.consumer.ledger import Entry, Ledger

log = structlog.get_logger(__name__)


class Brake:
    """`config` None: it is switched off, and never holds back anything."""

    def __init__(self, config: BreakerConfig | None, ledger: Ledger, rng: random.Random) -> None:
        self._breaker = None if config is None else Breaker(config, rng)
        self._ledger = ledger

    def verdict(self, entry: Entry, *, failed: bool) -> None:
        """The processor has come to an end with this message."""
        if self._breaker is not None:
            began = entry.received_at if entry.began_at is None else entry.began_at
            self._tell(self._breaker.note(failed=failed, began=began, now=trio.current_time()))

    def grants(self) -> tuple[float, float | None]:
        """How many more messages may be on their way to us, and when to ask again, if that is a matter of time."""
        breaker = self._breaker
        if breaker is None or breaker.state is State.CLOSED:
            return math.inf, None
        self._tell(breaker.look(trio.current_time()))
        since = breaker.since
        assert since is not None
        return breaker.grants(probing=sum(entry.received_at >= since for entry in self._ledger)), breaker.until

    def resume(self) -> None:
        """Receiving begins, or begins again."""
        if self._breaker is not None:
            self._tell(self._breaker.resume(trio.current_time()))

    def snapshot(self) -> BreakerSnapshot | None:
        return None if self._breaker is None else self._breaker.snapshot(trio.current_time())

    def _tell(self, event: Event | None) -> None:
        breaker = self._breaker
        if event is None or breaker is None:
            return
        now = trio.current_time()
        pause = None if breaker.until is None else round(breaker.until - now, 1)
        match event:
            case Event.TRIPPED:
                log.warning(
                    "circuit breaker opened: nearly every message fails, so receiving pauses; see why they fail",
                    failures=breaker.counted[1],
                    runs=breaker.counted[0],
                    pause_seconds=pause,
                )
            case Event.PAUSE_OVER:
                log.info("circuit breaker probes: a few messages are tried")
            case Event.PROBES_FAILED:
                log.info("circuit breaker stays open: what was tried has failed", pause_seconds=pause)
            case Event.PROBE_SUCCEEDED:
                log.info("circuit breaker closed: receiving goes on", after_seconds=round(now - breaker.opened_at, 1))
