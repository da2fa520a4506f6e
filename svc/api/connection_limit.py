"""The API's open connections: how many there may be, and what gives when there is no room, or no file descriptor, for one more.

Who waits longest for its client gives way: an idle connection, a head or a body that does not come on, an unread answer. A
connection whose request is being answered never does. When nobody can give way, a few more are let in that may ask for /health
and nothing else, so that an orchestrator does not take a crowded service for a dead one; beyond these, connections wait to be
accepted. The last descriptors of the process are not for the API's clients, because SQS and etcd may have to be connected to
anew. When only these are left, the place comes from the same connections; when there is none at all, from a spare descriptor.

Trouble is told twice in the log: when it begins and when it is over.
"""

import errno
import math
import os
import resource
from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

FOR_HEALTH = 32
"""Connections beyond the limit, for /health only."""

LARGE_BODIES = 32
"""Requests with a large body at once: together with `request_bodies.BODY_LIMIT` this bounds the memory of bodies (200 MiB)."""

SHORT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accept(2) fails with although the listener is well."""

RESERVED = 16
"""Descriptors of the process that the API leaves to what works: some more than the connections to SQS and etcd."""

RETRY = 0.1
"""Seconds between two attempts to accept when there is no descriptor."""

LOOK = 1.0
"""Seconds without a connection after which it looks whether a trouble is over."""

QUIET = 10.0
"""Seconds without a connection too many after which there is room again. Clients come in waves; the log need not."""

NEW = 0.2
"""Seconds in which a client may begin to speak before its connection may be made to give way: a flood of connections shall not
sweep away the one that asks for /health."""


class Connection(Protocol):
    """What the connections needs to know of a connection."""

    large: bool
    """Its request has a large body."""

    @property
    def waiting_since(self) -> float | None:
        """Trio time since which it waits for its client; None while it is our turn."""

    def give_up(self, why: str) -> None:
        """Close the socket now."""


class ConnectionLimit:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._full = _Trouble()
        self._short = _Trouble()
        self._gave_way = 0
        self._full_at = -math.inf
        self._changed = WakeUp()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """A connection has been accepted."""
        if len(self._open) >= self._limit:
            self._full_at = trio.current_time()
            if self._full.begins():
                log.warning(
                    "too many connections to the API: those that wait longest for their client are closed",
                    limit=self._limit,
                    setting="HTTP_MAX_CONNECTIONS",
                )
            self._make_room("too many connections")
        self._open.add(connection)

    def has_room(self, connection: Connection) -> bool:
        """Whether this connection may ask for more than /health, now."""
        return len(self._open) <= self._limit or self._make_room("too many connections", but=connection)

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._changed.notify()

    def close_all(self) -> None:
        for connection in list(self._open):
            connection.give_up("the server has stopped")

    def takes_large(self) -> bool:
        """Whether one more request with a large body can be taken."""
        return sum(connection.large for connection in self._open) < LARGE_BODIES

    async def wait_empty(self) -> None:
        await self._changed.wait_until(lambda: not self._open)

    async def accept(self, listener: trio.SocketListener, start: Callable[[trio.SocketStream], None]) -> None:
        """Call `start` for each connection, until cancelled. `start` has to `add` it."""
        spare = _Spare()
        try:
            while True:
                await self._wait_for_a_place()
                try:
                    few_left = False
                    with trio.move_on_after(LOOK if self._short.lasts or self._full.lasts else math.inf) as patience:
                        stream = await listener.accept()
                        few_left = _is_among_the_last(stream.socket.fileno())
                        start(stream)
                    if few_left:
                        self._tell_short()
                        if not self._make_room("out of file descriptors"):
                            await trio.sleep(RETRY)
                    if patience.cancelled_caught and spare.is_enough() and self._short.ends():
                        log.info("there are file descriptors again")
                    if trio.current_time() - self._full_at >= QUIET and self._full.ends():
                        log.info("connections to the API: there is room again", closed_to_make_room=self._gave_way)
                        self._gave_way = 0
                except OSError as error:
                    if error.errno not in SHORT_OF_DESCRIPTORS:
                        raise
                    self._tell_short()
                    # What becomes free is for the next accept: nothing runs in between.
                    if not self._make_room("out of file descriptors") and not spare.give_up():
                        await trio.sleep(RETRY)
        finally:
            spare.give_up()

    def _tell_short(self) -> None:
        if self._short.begins():
            log.error(
                "the API cannot accept connections: the process is out of file descriptors (the last are kept for SQS and etcd); "
                "raise its limit (ulimit -n), or find what keeps them open",
                limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )

    async def _wait_for_a_place(self) -> None:
        while len(self._open) >= self._limit + FOR_HEALTH and not self._make_room("too many connections"):
            with trio.move_on_after(NEW):
                await self._changed.wait_until(lambda: len(self._open) < self._limit + FOR_HEALTH)

    def _make_room(self, why: str, but: Connection | None = None) -> bool:
        """Close the connection that has waited longest for its client, if any waits for its client."""
        latest = trio.current_time() - NEW
        waiting = [
            (since, held)
            for held in self._open
            if held is not but and (since := held.waiting_since) is not None and since <= latest
        ]
        if not waiting:
            return False
        _, oldest = min(waiting, key=lambda one: one[0])
        self._open.discard(oldest)
        self._gave_way += 1
        oldest.give_up(why)
        return True


class _Spare:
    """A file descriptor kept for the moment when there is no other. It is gone after one use, and had again when one is free."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.have()

    def have(self) -> bool:
        """Whether there is one, or one can be had now."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def is_enough(self) -> bool:
        """Whether one can be had that is not among the last."""
        self.give_up()
        return self.have() and self._descriptor is not None and not _is_among_the_last(self._descriptor)

    def give_up(self) -> bool:
        """Make it free for something else; False when it is gone already."""
        if self._descriptor is None:
            return False
        os.close(self._descriptor)
        self._descriptor = None
        return True


def _is_among_the_last(descriptor: int) -> bool:
    """Whether hardly any are left: a new descriptor is always the lowest that was free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and descriptor >= limit - RESERVED


class _Trouble:
    """Whether something lasts, so that its begin and its end are each told once."""

    lasts = False

    def begins(self) -> bool:
        """True at the first of many calls."""
        first, self.lasts = not self.lasts, True
        return first

    def ends(self) -> bool:
        """True at the first of many calls after `begins`."""
        last, self.lasts = self.lasts, False
        return last
