"""What there is to say of the database: snapshots of its pools, and how they were closed. Imports nothing of psycopg's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot: of both pools together, where there are two. Counts are since the start."""

    open: bool
    """There is a pool, whether or not it has a connection at this moment."""
    size: int
    """Connections that there are, or that are being made."""
    in_use: int
    idle: int
    most: int
    """How many there may be at once."""
    waiting: int
    """Who waits for a connection."""
    requests: int
    """How often a connection was asked for."""
    waits: int
    """How often it had to be waited for."""
    wait_seconds: float
    """How long altogether."""
    errors: int
    """How often there was none in time, one could not be made, or one was lost."""


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """A snapshot."""

    place: str
    """Which database, and where."""
    pool: PoolStatistics
    error: str | None
    """Why it is not there, while it is wanted."""
    error_since: float | None
    """Trio time."""


@dataclass(frozen=True, slots=True)
class Closed:
    """How the pools were closed."""

    connections: int
    """That there were."""
    ended_in_use: int
    """Among them those that were lent out, and were ended in the middle of what they did."""
    unconfirmed: int
    """Those of which the server has not said that they have ended."""
