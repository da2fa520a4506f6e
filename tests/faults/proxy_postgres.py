"""The line to PostgreSQL: a `Proxy` that knows a commit when it goes by, can end the connection there, and can lead elsewhere."""

from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import repeat

import trio

from tests.faults.proxy import CHUNK, Link, Proxy


class Moment(Enum):
    """Where a connection ends."""

    BEFORE = "the commit does not arrive"
    AFTER = "the commit arrives, and its answer does not"
    HALFWAY = "the first half of the commit's message arrives"


class PostgresProxy(Proxy):
    """What the service says is not encrypted here, so that its COMMIT can be seen."""

    cut_short = 0
    """Commits that have been cut."""

    def heal_line(self) -> None:
        super().heal_line()
        self._moments: Iterator[Moment | None] = repeat(None)

    def cut_commits(self, moments: Iterable[Moment | None]) -> None:
        """Each commit from now on takes the next of these; None: it goes on as usual. Made endless by who asks."""
        self._moments = iter(moments)

    def lead_to(self, endpoint: str) -> None:
        """Failover: new connections go to another server; those that there are stay as they are."""
        host, _, port = endpoint.rpartition(":")
        self._target = (host, int(port))

    async def _carry(self, link: Link) -> None:
        await self._passes(link, 0)
        link.server = server = trio.SocketStream(await self._connect())
        unanswered = False

        async def to_server(scope: trio.CancelScope) -> None:
            nonlocal unanswered
            while data := await link.client.receive_some(CHUNK):
                await self._passes(link, len(data))
                moment = next(self._moments) if b"COMMIT" in data else None
                self.cut_short += moment is not None
                if moment is Moment.BEFORE:
                    break
                if moment is Moment.HALFWAY:
                    await server.send_all(data[: data.index(b"COMMIT") + 3])
                    break
                unanswered = moment is Moment.AFTER
                await server.send_all(data)
            scope.cancel()

        async def to_client(scope: trio.CancelScope) -> None:
            while data := await server.receive_some(CHUNK):
                await self._passes(link, len(data))
                if unanswered:
                    break
                await link.client.send_all(data)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_server, nursery.cancel_scope)
            nursery.start_soon(to_client, nursery.cancel_scope)
