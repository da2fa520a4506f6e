"""Too many connections to the API, too many large bodies, no file descriptors: who gives way, who does not, and what is told."""

import logging
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from svc.api import connection_limit, server
from svc.devstack.stack import Etcd, Moto
from tests.live import stand


@dataclass
class Held:
    """A server with an application that answers everything with 200: /slow when `go` is set, anything else at once."""

    port: int = 0
    go: trio.Event = field(default_factory=trio.Event)
    slow: int = 0
    streams: list[trio.SocketStream] = field(default_factory=list)
    stop: trio.Event = field(default_factory=trio.Event)

    async def app(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        if scope["path"].endswith("/slow"):
            self.slow += 1
            await self.go.wait()
        elif scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def connect(self) -> trio.SocketStream:
        self.streams.append(await trio.open_tcp_stream("127.0.0.1", self.port))
        return self.streams[-1]

    async def ask(self, target: str, stream: trio.SocketStream | None = None) -> str:
        """The status line's code for a GET."""
        stream = stream or await self.connect()
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await stream.receive_some(65_536))[9:12].decode()


@asynccontextmanager
async def served(limit: int) -> AsyncIterator[Held]:
    held = Held()
    async with trio.open_nursery() as nursery:
        start = partial(server.serve, held.app, "127.0.0.1", 0, held.stop, max_connections=limit)  # type: ignore[arg-type]
        url = await nursery.start(start)
        held.port = int(url.rsplit(":", 1)[1])
        try:
            with trio.fail_after(60):
                yield held
        finally:
            held.go.set()
            held.stop.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                for stream in held.streams:
                    await stream.aclose()


async def closed(stream: trio.SocketStream) -> None:
    """Returns when the other side has closed."""
    try:
        while await stream.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        pass


async def test_who_waits_longest_for_its_client_gives_way(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limit, "QUIET", 0.5)
    caplog.set_level(logging.INFO)
    async with served(limit=10) as held:
        idle = [await held.connect() for _ in range(3)]
        heads = [await held.connect() for _ in range(3)]
        for stream in heads:
            await stream.send_all(b"GET /x HTTP/1.1\r\nHo")
        bodies = [await held.connect() for _ in range(4)]
        for stream in bodies:
            await stream.send_all(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nha")
        await trio.sleep(2 * connection_limit.NEW)
        new = [await held.connect() for _ in range(10)]
        assert [await held.ask("/x", stream) for stream in new] == ["200"] * 10
        for stream in (*idle, *heads, *bodies):
            await closed(stream)
        for stream in new[:5]:
            await stream.aclose()
        while "there is room again" not in caplog.text:
            await trio.sleep(0.01)
    assert caplog.text.count("too many connections") == 1


async def test_requests_under_way_never_give_way_and_health_is_answered_all_the_same() -> None:
    async with served(limit=3) as held, trio.open_nursery() as nursery:
        answers: list[str] = []

        async def slow() -> None:
            answers.append(await held.ask("/slow"))

        for _ in range(3):
            nursery.start_soon(slow)
        while held.slow < 3:
            await trio.sleep(0.01)
        assert await held.ask("/x") == "503"
        assert await held.ask("/health/live") == "200"
        held.go.set()
        while len(answers) < 3:
            await trio.sleep(0.01)
        assert answers == ["200"] * 3


async def test_beyond_the_places_for_health_connections_wait_to_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limit, "FOR_HEALTH", 1)
    async with served(limit=2) as held, trio.open_nursery() as nursery:
        answers: list[str] = []

        async def ask(target: str) -> None:
            answers.append(await held.ask(target))

        for number, target in enumerate(("/slow", "/slow", "/health/slow"), 1):
            nursery.start_soon(ask, target)
            while held.slow < number:
                await trio.sleep(0.01)
        nursery.start_soon(ask, "/health/live")
        await trio.sleep(2 * connection_limit.NEW)
        assert answers == []
        held.go.set()
        while len(answers) < 4:
            await trio.sleep(0.01)
        assert answers == ["200"] * 4


async def test_only_so_many_large_bodies_at_once() -> None:
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    async with served(limit=100) as held:
        large = [await held.connect() for _ in range(connection_limit.LARGE_BODIES)]
        for stream in large:
            await stream.send_all(head + b"begun")
        one_more = await held.connect()
        while True:  # until the server has read all of them
            await one_more.send_all(head)
            if (await one_more.receive_some(65_536)).startswith(b"HTTP/1.1 503"):
                break
            one_more = await held.connect()
        assert await held.ask("/x") == "200"
        await large[0].send_all(b"x" * (100_000 - 5))
        assert (await large[0].receive_some(65_536)).startswith(b"HTTP/1.1 200")
        again = await held.connect()
        await again.send_all(head + b"x" * 100_000)
        assert (await again.receive_some(65_536)).startswith(b"HTTP/1.1 200")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
async def test_out_of_file_descriptors(
    moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    """The real service, whose limit is taken down: clients of the API do not get the last descriptors, so messages go on; when
    there is none at all /health is answered all the same; nothing spins; and all is well when the limit is up again."""
    async with stand(
        moto, etcd.endpoint, queue_name, f"{key_prefix}maintenance", tmp_path / "record", WORK_SECONDS="0.1"
    ) as place:
        service = await place.start()
        port = int(service.url.rsplit(":", 1)[1])
        await service.reaches("healthy")
        limit = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        enough = descriptors(service.pid) + connection_limit.RESERVED + 5
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (enough, limit[1]))
        cpu, began = seconds_of_cpu(service.pid), trio.current_time()
        async with idle_connections(port, 30):
            await service.logged_like("out of file descriptors")
            assert descriptors(service.pid) < enough - connection_limit.RESERVED // 2
            await place.send([str(number) for number in range(20)])
            await place.until(lambda: len(place.succeeded()) == 20)
            assert (await service.get("/health/live")).status_code == 200

            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (descriptors(service.pid), limit[1]))
            async with idle_connections(port, 30):
                for _ in range(5):
                    assert (await service.get("/health/live")).status_code == 200
                # It tries to accept ten times a second, no more: far from a core.
                assert seconds_of_cpu(service.pid) - cpu < 0.5 * (trio.current_time() - began) + 1
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, limit)
            await service.logged("there are file descriptors again")
        assert (await service.get("/health")).status_code == 200
        await place.empty()
        assert sorted(place.succeeded(), key=int) == [str(number) for number in range(20)]


@asynccontextmanager
async def idle_connections(port: int, number: int) -> AsyncIterator[None]:
    """So many, which never say anything."""
    async with AsyncExitStack() as open_ones:
        for _ in range(number):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            open_ones.push_async_callback(trio.aclose_forcefully, stream)
        yield
