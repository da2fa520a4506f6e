"""The page's feed on real connections and in real time: it keeps nothing alive; who reads badly costs no more than his share."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from svc import Message
from svc.api import app as api
from svc.api import server
from svc.api.feed import Feed
from svc.core import Core
from svc.settings import load
from svc.testing import SimulatedQueue, SimulatedSwitch

GET = b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"


async def nothing(message: Message) -> None:
    """Processes at once."""


@dataclass
class Served:
    core: Core
    feed: Feed
    port: int
    stop: trio.Event
    ended: trio.Event

    async def connect(self, *, receive_buffer: int | None = None) -> trio.SocketStream:
        held = trio.socket.socket()
        if receive_buffer is not None:
            held.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await held.connect(("127.0.0.1", self.port))
        return trio.SocketStream(held)

    async def watched_by(self, count: int) -> None:
        with trio.fail_after(20):
            while self.feed.watched_by != count:
                await trio.sleep(0.01)

    async def stopped_after(self) -> float:
        """Stop; seconds until the server has ended."""
        began = trio.current_time()
        self.stop.set()
        with trio.fail_after(20):
            await self.ended.wait()
        return trio.current_time() - began


@asynccontextmanager
async def served(
    *, queue: str = "q", send_timeout: float = server.SEND_TIMEOUT, most: int = 60
) -> AsyncIterator[Served]:
    settings = load({"SQS_QUEUE_URL": f"http://queue.example/0/{queue}", "SQS_WAIT_TIME_SECONDS": "0"})
    core = Core(settings, SimulatedQueue(), nothing, SimulatedSwitch().watcher)
    live, stop, ended = Feed(core, look_every=0.1, most=most), trio.Event(), trio.Event()
    app = api.make(core, feed=live)
    run = partial(server.serve, app, "127.0.0.1", 0, stop, send_timeout=send_timeout)

    async def serve(task_status: trio.TaskStatus[str]) -> None:
        async with trio.open_nursery() as serving:
            serving.start_soon(live.run, stop)
            task_status.started(await serving.start(run))
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        url = await nursery.start(serve)
        yield Served(core, live, int(url.rpartition(":")[2]), stop, ended)
        stop.set()
        await ended.wait()
        nursery.cancel_scope.cancel()


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    held = b""
    with trio.fail_after(20):
        while end not in held:
            more = await stream.receive_some(65_536)
            assert more, held[-500:]
            held += more
    return held


async def read_to_end(stream: trio.SocketStream) -> bytes:
    held = b""
    with trio.fail_after(20):
        while more := await stream.receive_some(65_536):
            held += more
    return held


async def test_a_stream_is_an_event_stream_and_goes_on() -> None:
    async with served() as held:
        stream = await held.connect()
        await stream.send_all(GET)
        begin = await read_until(stream, b"event: state")
        head, _, _ = begin.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/event-stream; charset=utf-8" in head.lower()
        assert b"cache-control: no-store" in head.lower()
        await read_until(stream, b"event: state")  # a second look
        assert held.feed.watched_by == 1
        await stream.aclose()
        await held.watched_by(0)


async def test_shutting_down_with_fifty_streams_is_as_fast_as_without() -> None:
    async with served() as alone:
        without = await alone.stopped_after()
    async with served() as held:
        streams = [await held.connect() for _ in range(50)]
        for stream in streams:
            await stream.send_all(GET)
        await held.watched_by(50)
        for stream in streams:
            await read_until(stream, b"event: state")
        ends: list[bytes] = []

        async def rest(stream: trio.SocketStream) -> None:
            ends.append(await read_to_end(stream))

        async with trio.open_nursery() as reading:
            for stream in streams:
                reading.start_soon(rest, stream)
            took = await held.stopped_after()
        for stream in streams:
            await trio.aclose_forcefully(stream)
    # The server's grace is 3 s; whoever had to wait for it would be far above.
    assert took < without + 1.5
    assert len(ends) == 50
    for end in ends:
        assert b"event: end\ndata: {}\n\n" in end  # the last word …
        assert end.endswith(b"0\r\n\r\n")  # … and the proper end of the answer


async def test_clients_that_ignore_the_end_hold_up_nothing() -> None:
    """They keep their side open and read nothing more."""
    async with served() as held:
        streams = [await held.connect() for _ in range(20)]
        for stream in streams:
            await stream.send_all(GET)
        await held.watched_by(20)
        assert await held.stopped_after() < server.GRACE
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_a_stalled_reader_is_given_up_and_holds_little_meanwhile() -> None:
    """What he does not read stays in the kernel's buffer, which is bounded; then his connection ends."""
    async with served(queue="x" * 50_000, send_timeout=0.5) as held:  # 50 kB per look
        stalled, reading = await held.connect(receive_buffer=4096), await held.connect()
        for stream in (stalled, reading):
            await stream.send_all(GET)
        await held.watched_by(2)
        read = 0
        with trio.fail_after(20):
            while held.feed.watched_by == 2:
                read += len(await reading.receive_some(65_536))
        # Linux doubles a buffer's size for its own use. Left alone it would have grown to megabytes.
        assert read < 3 * 2 * server.SEND_BUFFER
        await read_until(reading, b"event: state")
        for stream in (stalled, reading):
            await trio.aclose_forcefully(stream)


async def test_there_is_room_for_so_many_streams_and_the_next_is_told() -> None:
    async with served(most=3) as held:
        streams = [await held.connect() for _ in range(4)]
        for stream in streams[:3]:
            await stream.send_all(GET)
        await held.watched_by(3)
        await streams[3].send_all(GET)
        answer = await read_until(streams[3], b"}")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 10" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 503
        await streams[0].aclose()
        await held.watched_by(2)
        for stream in streams[1:]:
            await stream.aclose()
        await held.watched_by(0)


async def test_a_request_behind_a_stream_neither_ends_it_nor_holds_up_the_shutdown() -> None:
    """Pipelined: the second request waits for the first answer's end."""
    async with served() as held:
        stream = await held.connect()
        await stream.send_all(GET + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await read_until(stream, b"event: state")
        await read_until(stream, b"event: state")
        assert await held.stopped_after() < server.GRACE
        await trio.aclose_forcefully(stream)


async def test_a_client_that_resets_its_stream_leaves_nothing_behind() -> None:
    async with served() as held:
        for _ in range(10):
            stream = await held.connect()
            await stream.send_all(GET)
            await read_until(stream, b"event: state")
            # An answer under way, and the connection gone without a word.
            stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await trio.aclose_forcefully(stream)
        await held.watched_by(0)
