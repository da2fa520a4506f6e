"""Which connections lead to a server that takes no writes: a standby, as after a failover, or one that its operator has made
read-only.

PostgreSQL 14 and later tell it without being asked (`in_hot_standby`, `default_transaction_read_only`), when a connection is made
and whenever it changes. So whoever has a connection in hand looks at it, with no round trip: when it is new and when it is given
back. A transaction that was begun READ ONLY changes neither: what that refuses is its owner's matter.
"""

import threading
import weakref
from typing import Any

import psycopg

from svc.database.farewell import Raw

TAKES_NO_WRITES = "it takes no writes (a standby, or default_transaction_read_only)"


def takes_no_writes(raw: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> bool:
    """What its server has said last. To be asked by who has the connection in hand: libpq takes one thread at a time."""
    try:
        told = {raw.info.parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only")}
    except psycopg.OperationalError:  # it is closed
        return False
    return "on" in told


class ReadOnly:
    """What has been seen of it. From any thread."""

    def __init__(self) -> None:
        self.seen = False
        """Somebody has met such a server, since the database was last known to have none."""
        self._connections: weakref.WeakSet[Raw] = weakref.WeakSet()
        self._lock = threading.Lock()

    def look_at(self, raw: Raw) -> None:
        """Who has it in hand calls this."""
        with self._lock:
            if takes_no_writes(raw):
                self.seen = True
                self._connections.add(raw)
            else:
                self._connections.discard(raw)

    def in_use(self) -> bool:
        """Whether there is such a connection now."""
        with self._lock:
            return any(not raw.closed for raw in self._connections)
