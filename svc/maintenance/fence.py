"""The fence before the receives: closed until the switch has been looked at by an instance that the fleet can see.

Whoever waits for the fleet to drain counts the registrations in etcd. So an instance that is not registered must not begin to
receive before it has looked at the switch once more: whoever switched maintenance on before that look is obeyed, and whoever does
after it finds the registration. That is so at the start; and when a process has stood still (SIGSTOP, a paused container, a
suspended machine) its lease may be over, it may have been given up, and the first thing that it does when it wakes must not be a
receive.

    closed ──registration stands──▶ ──a look that began after that──▶ open ──the process stood still──▶ closed

Work goes on without etcd (the last known state stands), so a fence that was open before opens too when etcd is out of reach for
the registration and for the look. It does not open the first time: no work has begun that could go on. A registration that etcd
answers and refuses is no reason to wait; one that etcd does not answer, while it answers looks, is one for `PATIENCE`.

Nothing here does I/O. What is in flight, or asked for, is not touched.
"""

import math
from collections.abc import Callable

import structlog
import trio

from svc.wakeup import REST, next_tick

log = structlog.get_logger(__name__)

STALL = 2.5
"""Seconds without a tick, or a beat, after which the process counts as having stood still. Above what a busy event loop takes,
and below the time in which the shortest lease (`INSTANCE_TTL`, 5 s) can run out: it is renewed every third of it, so 3.3 s are
always left."""

TICK = 1.0
"""Seconds between two ticks, where nothing else beats."""

PATIENCE = 30.0
"""Seconds that an etcd which answers looks may take to answer a registration; then it is done without."""


class Fence:
    """`stall`: seconds after which the process counts as having stood still; infinite where time is simulated. `clock` measures
    that, and should go on while the machine sleeps. `check` is called when it closes, and has to bring about `registered`; that
    calls `look`, which has to bring about `looked`."""

    def __init__(
        self,
        *,
        stall: float = math.inf,
        clock: Callable[[], float] = trio.current_time,
        check: Callable[[], None] = lambda: None,
        look: Callable[[], None] = lambda: None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._stall = stall
        self._clock = clock
        self._check = check
        self._look = look
        self._on_open = on_open
        self._ticked_at = clock()
        self._beaten_at = -math.inf
        self._closed_at: float | None = trio.current_time()
        # Since it closed: when a registration was answered; whether one was tried; when etcd was seen to answer looks.
        self._registered_at: float | None = None
        self._tried = False
        self._answers_since: float | None = None
        self._was_open = False

    @property
    def is_open(self) -> bool:
        """Whether a receive may begin now."""
        self.tick()  # who asks first after the process stood still may be the one who wants to receive
        return self._closed_at is None

    def tick(self) -> None:
        """Time goes on; or it has gone on without us."""
        now = self._clock()
        stood_still, self._ticked_at = now - self._ticked_at, now
        if stood_still > self._stall:
            log.warning(
                "this process has stood still: looking at the switch before the next receive",
                seconds=round(stood_still, 1),
            )
            self._closed_at = trio.current_time()
            self._registered_at, self._tried, self._answers_since = None, False, None
            self._check()

    def beat(self) -> Callable[[], None] | None:
        """For another thread, once a second: this process runs. Saves the loop most ticks. When it has not run meanwhile, the one
        that it needs is returned."""
        self._beaten_at = now = self._clock()
        if now - self._ticked_at > self._stall:
            return self.tick
        self._ticked_at = now
        return None

    def registered(self, began: float, answered: bool) -> None:
        """An attempt to register, or to confirm the registration, that began then (Trio time) has ended: the registration stands,
        or is refused; or there was no answer."""
        if self._closed_at is None or self._registered_at is not None or began < self._closed_at:
            return
        self._tried = True
        if answered:
            self._registered_at = trio.current_time()
        if answered or self._was_open:
            self._look()

    def looked(self, began: float, answered: bool) -> None:
        """An attempt to read the switch that began then has ended: what it says has been handed over, or it is out of reach."""
        if self._closed_at is None or began < self._closed_at:
            return
        now = trio.current_time()
        if not answered:
            self._answers_since = None
            enough = self._was_open and self._tried
        elif self._registered_at is not None:
            enough = began >= self._registered_at
        else:
            self._answers_since = now if self._answers_since is None else self._answers_since
            enough = self._tried and now >= self._answers_since + PATIENCE
        if enough:
            if self._was_open:
                log.info("receives may begin again after the standstill", after_seconds=round(now - self._closed_at, 1))
            self._closed_at, self._was_open = None, True
            self._on_open()

    async def run(self) -> None:
        """Tick for ever."""
        while self._stall < math.inf:
            is_beaten = self._clock() - self._beaten_at < self._stall
            await trio.sleep_until(next_tick(REST if is_beaten else TICK))
            self.tick()
