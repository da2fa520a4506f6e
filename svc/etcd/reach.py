"""Which of a host's addresses speaks to us.

Each is tried a little after the one before it, unless that failed sooner; the first one whose other side begins to speak HTTP/2
is taken. That it takes connections is not enough: the kernel does that for a member that is frozen.
"""

from collections.abc import Sequence

import trio

from svc.etcd.errors import Trouble
from svc.etcd.http2 import Http2
from svc.etcd.tls import addresses_of, context_of, stream_to
from svc.settings import Endpoint, Settings

_NEXT_ADDRESS = 0.25
"""Seconds after which the next address of a host is tried beside one that has not spoken yet (RFC 8305)."""


async def reach(settings: Settings, endpoint: Endpoint, authority: str, theirs: trio.Nursery) -> Http2:
    """A connection to the endpoint, which moves its bytes in `theirs`. No bound of its own. Raises `Trouble`."""
    tls = endpoint.tls or settings.etcd_ca_cert is not None
    context = await context_of(settings) if tls else None
    tried: list[Http2] = []
    won: Http2 | None = None
    troubles: list[Trouble] = []

    async def attempt(address: str, settled: trio.Event) -> None:
        nonlocal won
        try:
            stream = await stream_to(address, endpoint, context)
            http2 = Http2(stream, authority=authority, scheme="https" if tls else "http")
            tried.append(http2)
            theirs.start_soon(http2.run)
            await http2.settled()
            won = won or http2
            nursery.cancel_scope.cancel(reason="an address has answered")
        except Trouble as trouble:
            troubles.append(trouble)
        settled.set()

    reached: Http2 | None = None
    addresses = await addresses_of(endpoint.host)
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                settled = trio.Event()
                nursery.start_soon(attempt, address, settled)
                with trio.move_on_after(_NEXT_ADDRESS):
                    await settled.wait()
        if won is None:
            raise troubles[0]
        reached = won
        return reached
    finally:
        for http2 in tried:
            if http2 is not reached:
                http2.close()


def listed(endpoints: Sequence[Endpoint]) -> str:
    """Endpoints as they are told."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, _ in endpoints)
