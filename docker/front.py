"""The one door to any number of instances, for compose.yml: after `docker compose up -d --scale sqs-service=3` only one of them
could publish the port, and a range of ports is handed out anew at every restart.

Each connection goes to the first instance that takes it, in the order of their addresses, so that what one `curl` after the other
sees is one instance's; `GET /fleet` shows them all. It looks at no byte, and knows nothing of HTTP.
"""

import contextlib
import os
import socket
import sys
from functools import partial

import trio

CHUNK = 65_536
CONNECT_SECONDS = 2.0
"""Seconds that one instance may take to accept a connection."""


PATIENCE = 20.0
"""Seconds that a connection waits for an instance to come up: `docker compose up -d` returns before they serve."""

PAUSE = 0.2
"""Seconds between two looks for one."""


async def open_first(name: str, port: int) -> trio.SocketStream:
    """A connection to the first address of `name` that takes one, within `PATIENCE`; raises OSError when none does."""
    give_up = trio.current_time() + PATIENCE
    while True:
        try:
            found = await trio.socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)
            for host in sorted({str(address[4][0]) for address in found}, key=socket.inet_aton):
                with contextlib.suppress(OSError, trio.TooSlowError), trio.fail_after(CONNECT_SECONDS):
                    return await trio.open_tcp_stream(host, port)
            raise ConnectionRefusedError(f"no instance of {name} takes a connection")
        except OSError:
            if trio.current_time() >= give_up:
                raise
        await trio.sleep(PAUSE)


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Everything from one to the other, and its end."""
    async for data in source:
        await sink.send_all(data)
    await sink.send_eof()


async def forward(name: str, port: int, client: trio.SocketStream) -> None:
    """One connection, both ways, until both ends are done."""
    try:
        async with await open_first(name, port) as instance, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, instance)
            nursery.start_soon(pump, instance, client)
    except* (OSError, trio.BrokenResourceError) as broken:
        print(f"front: {broken.exceptions[0]}", file=sys.stderr, flush=True)


async def main(
    name: str,
    port: int,
    host: str,
    listen: int,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled."""
    await trio.serve_tcp(partial(forward, name, port), listen, host=host, task_status=task_status)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, os.environ["FRONT_FOR"], 8082, "0.0.0.0", 8082)  # noqa: S104 - compose.yml publishes it on the loopback interface
