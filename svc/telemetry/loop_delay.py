"""How late the event loop is: a task that sleeps, and looks how much later than asked for it woke up.

Everything in this process shares one loop. Whatever holds it up without a checkpoint (a processor that computes, a blocking call
that belongs into a thread) holds up heartbeats, settlement and the API too, and shows here first.
"""

from collections.abc import Callable

import trio

from svc.wakeup import next_tick

EVERY = 1.0
"""Seconds between two looks: a hold-up that is longer than this is never missed."""


async def measure_lag(
    tell: Callable[[float], None], alive: Callable[[], None] = lambda: None, *, every: float = EVERY
) -> None:
    """Tell each lag in seconds, and with it that the loop is alive. Ends only by cancellation."""
    while True:
        due = next_tick(every)
        await trio.sleep_until(due)
        alive()
        tell(max(0.0, trio.current_time() - due))
