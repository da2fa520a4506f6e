"""How late the event loop is: a task that sleeps, and looks how much later than asked for it woke up.

Everything in this process shares one loop. Whatever holds it up without a checkpoint (a processor that computes, a blocking call
that belongs into a thread) holds up heartbeats, settlement and the API too, and shows here first.
"""

from collections.abc import Callable

import trio

from svc.telemetry.loop_state import loop_state
from svc.wakeup import REST, next_tick

EVERY = 1.0
"""Seconds between two looks: a hold-up that is longer than this is never missed."""

_IDLE = 10
"""Passes of the loop in a second up to which it counts as idle. Then it is looked at once in `REST` seconds: to wake up more
often is most of what an idle process does."""


async def measure_lag(tell: Callable[[float], None], *, every: float = EVERY) -> None:
    """Tell each lag in seconds, one for each `every` seconds. Ends only by cancellation."""
    state = loop_state()
    looks = 1
    while True:
        passes, state.longest = state.passes, 0.0
        due = next_tick(every * looks)
        looks = max(1, round((due - trio.current_time()) / every))
        await trio.sleep_until(due)
        lag = max(0.0, trio.current_time() - due)
        idle = state.passes - passes <= _IDLE * every * looks and lag < every
        if (
            looks > 1 and state.longest > every
        ):  # between two looks that are far apart; and it may be what made this one late
            lag = max(lag, state.longest)
        for _ in range(looks - 1):
            tell(0.0)
        tell(lag)
        looks = max(1, round(REST / every)) if idle else 1
