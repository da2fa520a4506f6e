"""What a Trio loop is doing, for whoever wants to know from another thread: it waits for something to happen, or has been at work
for so long without a look at what else there is.

To know that costs the loop nothing while it waits. To ask it would wake it up, and an idle process has little else that does.
"""

import time

import trio

_STATE: "trio.lowlevel.RunVar[LoopState]" = trio.lowlevel.RunVar("svc.telemetry.loop_state")


class LoopState(trio.abc.Instrument):
    """`loop_state` gives the one of a loop. Its attributes may be read in any thread."""

    def __init__(self) -> None:
        self.busy_since: float | None = time.monotonic()
        """`time.monotonic()` at which the loop began with what it is doing; None: it waits."""
        self.longest = 0.0
        """Seconds that it has been at work at a stretch, at most; whoever has read it sets it to 0."""
        self.passes = 0
        """How often it has begun to wait."""

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1
        if self.busy_since is not None:
            self.longest = max(self.longest, time.monotonic() - self.busy_since)
        self.busy_since = None

    def after_io_wait(self, timeout: float) -> None:
        self.busy_since = time.monotonic()


def loop_state() -> LoopState:
    """That of the loop that runs this."""
    try:
        return _STATE.get()
    except LookupError:
        state = LoopState()
        trio.lowlevel.add_instrument(state)
        _STATE.set(state)
        return state
