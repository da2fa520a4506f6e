"""How long to wait before the next attempt. Pure arithmetic: nothing here sleeps or catches anything."""

import math
import random


def backoff(attempt: int, *, first: float, cap: float, rng: random.Random) -> float:
    """Seconds to wait after failure number `attempt` (from 1): `first` doubled each time up to `cap`, and of that a random
    half to whole, so that clients that failed together do not come back together ("equal jitter", AWS Architecture Blog,
    "Exponential Backoff And Jitter", 2015)."""
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, not {attempt}")
    whole: float = min(cap, first * 2 ** min(attempt - 1, 30))
    return whole * rng.uniform(0.5, 1.0)


def redelivery(receive_count: int, *, first: float, cap: float, rng: random.Random) -> int:
    """Whole seconds (SQS takes no others) until a message that has failed in its receive number `receive_count` becomes visible
    again: never 0, which would hand it out again at once."""
    return math.ceil(backoff(max(receive_count, 1), first=first, cap=cap, rng=rng))
