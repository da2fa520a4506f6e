"""What the consumer needs of the settings."""

import math
from dataclasses import dataclass

from svc.consumer.breaker_state import BreakerConfig


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What the worker needs of the settings; times in seconds. Ranges: see `settings.py`."""

    concurrency: int = 100
    batch: int = 10
    wait: int = 20
    visibility: int = 30
    poll_interval: float = 1.0
    drain_timeout: float = 30.0
    receivers: int = 10
    """Receives on the wire at once, under load."""
    linger: float = 0.1
    """How long a settlement may wait for company."""
    fifo: bool = False
    most_bytes: int = 268_435_456
    """Memory that the bodies in flight may take."""
    breaker: BreakerConfig | None = None
    """None: no circuit breaker."""
    retry_backoff: tuple[float, float] | None = None
    """How long a failed message stays invisible: after its first receive, and at most. None: until its lease ends."""
    delete_rejected: bool = False
    """A rejected message is deleted where there is no dead-letter queue; else it fails."""

    @property
    def reserve(self) -> float:
        """The last part of a drain, kept for releasing what the work did not finish."""
        return min(2.0, self.drain_timeout / 10)

    @property
    def effective_wait(self) -> int:
        """The long-poll wait in whole seconds: short enough for a receive to land within a drain, with a second for the way,
        and for two thirds of the lease, which counts from the sending of the receive, not to pass before it lands."""
        return max(0, min(self.wait, math.floor(self.drain_timeout - self.reserve - 1), 2 * self.visibility // 3))
