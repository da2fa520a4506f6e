"""The circuit breaker as the worker uses it: it passes on how runs of the processor end and what time it is, logs each change of
state, and answers how many messages the intake may ask for. What to do is decided in `breaker_state.py`.
"""

import math
import random

import structlog
import trio

from svc.consumer.breaker_state import BreakerConfig, BreakerMachine, BreakerSnapshot, Event, State
from svc.consumer.ledger import Entry, Ledger

log = structlog.get_logger(__name__)


class Breaker:
    """`config` None: it is switched off, and never holds back anything."""

    def __init__(self, config: BreakerConfig | None, ledger: Ledger, rng: random.Random) -> None:
        self._machine = None if config is None else BreakerMachine(config, rng)
        self._ledger = ledger
        self._held: tuple[str, float] | None = None

    def verdict(self, entry: Entry, *, failed: bool, now: float | None = None) -> bool:
        """The processor has come to an end with this message, now (Trio's time, if the caller has just asked for it). Returns
        whether that changes the state."""
        if self._machine is None:
            return False
        began = entry.received_at if entry.began_at is None else entry.began_at
        event = self._machine.note(failed=failed, began=began, now=trio.current_time() if now is None else now)
        if event is None:
            return False
        self._log(event)
        return True

    def grants(self) -> tuple[float, float | None]:
        """How many more messages may be on their way to us, and when to ask again, if that is a matter of time."""
        machine = self._machine
        if self._held is not None:
            return 0, None
        if machine is None or machine.state is State.CLOSED:
            return math.inf, None
        self._log(machine.look(trio.current_time()))
        since = machine.since
        assert since is not None
        return machine.grants(probing=sum(entry.received_at >= since for entry in self._ledger)), machine.until

    def hold(self, reason: str | None) -> None:
        """What the work needs is away, for this reason: receiving pauses at once, whatever the threshold; None: it is back. What
        has failed by its absence is no reason to pause any longer then."""
        if reason is None:
            if self._held is not None:
                self._held = None
                self.resume()
        elif self._held is None:
            self._held = reason, trio.current_time()
        else:
            self._held = reason, self._held[1]

    def resume(self) -> None:
        """Receiving begins, or begins again."""
        if self._machine is not None:
            self._log(self._machine.resume(trio.current_time()))

    def snapshot(self) -> BreakerSnapshot | None:
        if self._held is not None:
            reason, since = self._held
            opened = 0 if self._machine is None else self._machine.opened
            return BreakerSnapshot(State.OPEN, since, None, 0, 0, opened, reason)
        return None if self._machine is None else self._machine.snapshot(trio.current_time())

    def _log(self, event: Event | None) -> None:
        machine = self._machine
        if event is None or machine is None:
            return
        now = trio.current_time()
        pause = None if machine.until is None else round(machine.until - now, 1)
        match event:
            case Event.TRIPPED:
                log.warning(
                    "circuit breaker opened: nearly every message fails, so receiving pauses; see why they fail",
                    failures=machine.counted[1],
                    runs=machine.counted[0],
                    pause_seconds=pause,
                )
            case Event.PAUSE_OVER:
                log.info("circuit breaker probes: a few messages are tried")
            case Event.PROBES_FAILED:
                log.info("circuit breaker stays open: what was tried has failed", pause_seconds=pause)
            case Event.PROBE_SUCCEEDED:
                log.info("circuit breaker closed: receiving goes on", after_seconds=round(now - machine.opened_at, 1))
