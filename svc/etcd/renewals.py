"""The renewals of leases on one connection: on one call, which stays open, as long as it answers promptly.

etcd does. Its gRPC proxy answers the first request of a call at once, and later ones when it is time for its own renewal, which
may be too late for ours: there each renewal gets a call of its own.
"""

from collections.abc import Awaitable, Callable

import trio

from svc.etcd import messages
from svc.etcd.errors import Trouble
from svc.etcd.grpc_calls import Call

PROMPT = 0.5
"""Seconds that an answer may take on a call that has answered before; then a new call is made."""

_PATIENCE = 2
"""Times running that this may happen before each renewal gets a call of its own."""


class Renewals:
    """`begin` begins a call, and says whether it may stay open. Not for two renewals at a time."""

    def __init__(self, begin: Callable[[], Awaitable[tuple[Call, bool]]]) -> None:
        self._begin = begin
        self._held: Call | None = None
        self._late = 0

    async def renew(self, lease: int) -> float:
        """Give a lease its full time again; returns that time in seconds, 0 when there is no such lease any more. Raises
        `Trouble`."""
        if self._held is not None:
            with trio.move_on_after(PROMPT):
                try:
                    seconds = await self._ask(self._held, lease)
                    self._late = 0
                    return seconds
                except Trouble:
                    pass  # a new call says what is wrong, if anything is
            self._late += 1
        self._held, may_stay = await self._begin()
        seconds = await self._ask(self._held, lease)
        if self._late >= _PATIENCE or not may_stay:
            self._leave()
        return seconds

    async def _ask(self, call: Call, lease: int) -> float:
        try:
            # It stays open until the answer is there: the proxy does not answer a call that is half closed.
            await call.send(messages.LeaseKeepAliveRequest(ID=lease).SerializeToString())
            if (answer := await call.receive()) is None:
                raise Trouble("etcd ended the call", "")
            return max(float(messages.read("LeaseKeepAliveResponse", answer).TTL), 0.0)  # the proxy says -1 for 0
        except BaseException:
            self._leave()  # what it answers later must not be taken for an answer to another request
            raise

    def _leave(self) -> None:
        if self._held is not None:
            call, self._held = self._held, None
            call.leave()
