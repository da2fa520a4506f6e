"""Clients of the API that mean no good, or do not know better: the work goes on, and the next ordinary request is served."""

import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

import httpx
import trio

from svc.devstack.child import free_ports
from tests.faults.rows import scenario
from tests.faults.trial import Footprint, Trial
from tests.live import Instance, http_client


def port_of(t: Trial) -> int:
    return int(t.service.url.rpartition(":")[2])


async def ordinary(t: Trial) -> float:
    """An ordinary request is served; returns the seconds that it took."""
    began = trio.current_time()
    status, _ = await t.health()
    assert status == 200
    return trio.current_time() - began


async def crowd(t: Trial, clients: int, opening: bytes, drip: bytes, seconds: float) -> None:
    """So many clients that say `opening`, then `drip` every second, for so long; meanwhile the service works."""
    before = Footprint.of(t.service.pid)
    began, slowest = time.time(), 0.0
    port, end = port_of(t), trio.current_time() + seconds

    async def one() -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(opening)
                while trio.current_time() < end:
                    with trio.move_on_after(1):
                        if not await stream.receive_some():
                            return
                    await stream.send_all(drip)

    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(one)
            if number % 50 == 0:
                await trio.sleep(0.02)
        for _ in range(3):
            await t.processes()
            slowest = max(slowest, await ordinary(t))
    meanwhile = Footprint.of(t.service.pid)
    t.row.cpu = round((meanwhile.cpu - before.cpu) / (time.time() - began), 2)
    t.row.recovery = round(await ordinary(t), 1)
    t.row.memory, t.row.files = (before.memory, 0.0), (before.files, 0)
    t.row.sees += f" (slowest `/health` {slowest:.1f} s)"
    assert slowest < 10, "a request that means well waits"  # the machine is busy with the crowd, too


HEAD = b"POST /messages/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
SLOW_HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "

CROWDS = [
    (
        "http-slowloris",
        "300 clients send a byte of a request per second (slowloris)",
        "each is closed after 5 s; others are served",
        partial(crowd, clients=300, opening=SLOW_HEAD, drip=b"x", seconds=8),
    ),
    (
        "http-slow-bodies",
        "100 clients send a byte of a body per second",
        "each gets 408 after 10 s; others are served",
        partial(crowd, clients=100, opening=HEAD, drip=b"x", seconds=8),
    ),
    (
        "http-idle",
        "2000 idle connections",
        "each is closed after 5 s; others are served",
        partial(crowd, clients=2000, opening=b"", drip=b"", seconds=6),
    ),
]

for name, fault, sees, come in CROWDS:

    @scenario(name, fault, sees)
    async def _(t: Trial, come: Callable[[Trial], Awaitable[None]] = come) -> None:
        await t.start()
        await come(t)


ODD_REQUESTS = (
    b"GET /health HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"x" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /messages/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{",
    b"POST /messages/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
    + b"x" * 3_000_000,
    b"POST /messages/send HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /messages/send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50),
    b"GET /%ff%fe HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"POST /messages/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
    b'{"message": "\xff',
    b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    bytes(10_000),
)


@scenario(
    "http-odd",
    "huge heads and bodies, pipelining, TLS and HTTP/2 to a plain port, bad lengths, chunks and encodings",
    "400, 413, 431 or a closed connection; never a 500, never an ERROR in the log",
)
async def _(t: Trial) -> None:
    await t.start()
    before = Footprint.of(t.service.pid)
    port = port_of(t)
    answers: list[bytes] = []

    async def one(request: bytes) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError), trio.move_on_after(12):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(request)
                while data := await stream.receive_some():
                    answers.append(data)

    async with trio.open_nursery() as nursery:
        for request in ODD_REQUESTS * 5:
            nursery.start_soon(one, request)
        await t.processes()
    t.row.recovery = round(await ordinary(t), 1)
    t.row.memory, t.row.files = (before.memory, 0.0), (before.files, 0)
    assert not [answer for answer in answers if answer.startswith(b"HTTP/1.1 500")]
    assert not [line for line in t.service.logs if line["level"] in ("error", "critical")]


@scenario(
    "http-start-stop",
    "requests all the time, from before the start until after the stop",
    "refused, 200, or 503 with `Retry-After`; never a 500 or a hang",
)
async def _(t: Trial) -> None:
    (port,) = free_ports(1)
    seen: dict[str, int] = {}
    stop = trio.CancelScope()
    url = f"http://127.0.0.1:{port}"

    async def ask(path: str) -> None:
        async with http_client(url, timeout=8) as client:
            while True:
                try:
                    answer = str((await client.get(path)).status_code)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    answer = type(error).__name__
                seen[answer] = seen.get(answer, 0) + 1
                await trio.sleep(0.05)

    async def instance() -> Instance:
        service = Instance({**t.stand.environ, **t.environ, "HTTP_PORT": str(port)})
        t.stand.instances.append(service)
        await service.started()
        return service

    async with trio.open_nursery() as nursery:
        with stop:
            async with trio.open_nursery() as asking:
                for path in ("/health", "/messages/stats", "/queue/info", "/health/ready"):
                    asking.start_soon(ask, path)
                for _ in range(2):
                    service = await instance()
                    await t.processes()
                    service.signal(2)
                    assert await service.exit_code() == 0
                asking.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    assert set(seen) <= {"200", "503", "ConnectError", "RemoteProtocolError", "ReadError"}, seen
    t.row.sees += " (" + ", ".join(f"{number} × {answer}" for answer, number in sorted(seen.items())) + ")"
    await t.start()
