"""The pool: which connection is used, when one is dropped, what is sent twice. In memory and virtual time; TLS and addresses
on real sockets of the loopback."""

import os
import struct
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import trio
import trio.testing

from svc.sqs import pool
from svc.sqs.connection import Connection, ConnectionBroke, NotAnAnswer
from svc.sqs.pool import IDLE_SECONDS, LOOK_UP_SECONDS, CannotConnect, Endpoint, Network, Pool

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
AT = Endpoint("sqs.example.org", 80, tls=False)


class Memory:
    """A world in memory: every connection is answered by `respond(number of the connection, number of the request on it)`; None
    is no answer, `b""` a close."""

    def __init__(self, nursery: trio.Nursery, respond: Callable[[int, int], bytes | None] = lambda *_: OK) -> None:
        self._nursery = nursery
        self._respond = respond
        self.made: list[Connection] = []
        self.servers: list[trio.StapledStream] = []
        self.closed: set[int] = set()
        self.unread: set[int] = set()
        self.requests: list[tuple[int, int]] = []
        self.lookups: list[float] = []
        self.here: Sequence[str] | OSError = ["10.0.0.1"]

    async def connect(self, endpoint: Endpoint) -> Connection:
        await trio.sleep(0.1)
        if isinstance(self.here, OSError):
            raise CannotConnect("gaierror")
        number = len(self.made)
        ours, server = trio.testing.memory_stream_pair()

        def close() -> None:
            self.closed.add(number)
            ours.send_stream.close()  # type: ignore[attr-defined]
            ours.receive_stream.close()  # type: ignore[attr-defined]

        made = Connection(ours, close, peer=self.here[0], is_readable=lambda: number in self.unread)
        self.made.append(made)
        self.servers.append(server)
        self._nursery.start_soon(self._serve, number, server)
        return made

    async def _serve(self, number: int, server: trio.StapledStream) -> None:
        count = 0
        received = b""
        try:
            while True:
                while b"\r\n\r\n" not in received:
                    more = await server.receive_some()
                    if not more:
                        return
                    received += more
                received = received.partition(b"\r\n\r\n")[2]
                count += 1
                self.requests.append((number, count))
                answer = self._respond(number, count)
                if answer == b"":
                    return
                if answer is not None:
                    await server.send_all(answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(server)

    async def addresses(self, endpoint: Endpoint) -> Sequence[str]:
        self.lookups.append(trio.current_time())
        await trio.sleep(0.05)
        if isinstance(self.here, OSError):
            raise self.here
        return self.here


async def ask(connections: Pool, count: int = 1, *, repeatable: bool = True) -> None:
    """So many requests at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(lambda: connections.exchange(REQUEST, repeatable=repeatable))


async def test_the_connection_that_was_used_last_is_used_first(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections, 3)
        assert connections.idle == 3
        last = world.made.index(connections._idle[-1])
        world.requests.clear()
        for _ in range(5):
            await ask(connections)
        assert {number for number, _ in world.requests} == {last}
        assert len(world.made) == 3
    assert world.closed == {0, 1, 2}


async def test_those_that_are_not_needed_go_and_nothing_ticks_afterwards(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections, 3)
        for _ in range(20):
            await trio.sleep(1)
            await ask(connections)
        assert len(world.closed) == 2
        began = trio.current_time()
        await trio.sleep(IDLE_SECONDS + 0.001)
        assert connections.idle == 0
        assert world.closed == {0, 1, 2}
        assert len(world.made) == 3
        assert trio.current_time() - began == pytest.approx(IDLE_SECONDS, abs=0.01)
        assert connections._nursery.child_tasks == frozenset()
        await ask(connections)
        assert len(world.made) == 4


async def test_a_server_that_keeps_them_for_less_is_heeded(nursery: trio.Nursery, autojump_clock: object) -> None:
    told = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=3\r\nContent-Length: 2\r\n\r\n{}"
    world = Memory(nursery, lambda *_: told)
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        await trio.sleep(1.9)
        await ask(connections)
        assert len(world.made) == 1
        await trio.sleep(2.1)
        assert world.closed == {0}


async def test_one_with_something_unread_is_not_used(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections, 2)
        last = world.made.index(connections._idle[-1])
        world.unread = {last}
        await ask(connections)
        assert world.requests[-1][0] == 1 - last
        assert world.closed == {last}


async def test_a_host_that_moves_is_followed_within_a_minute(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        world.here = ["10.0.0.2", "10.0.0.3"]
        began = trio.current_time()
        while len(world.made) == 1:
            await trio.sleep(0.5)
            await ask(connections)
        assert trio.current_time() - began < LOOK_UP_SECONDS + 1
        assert world.closed == {0}
        assert connections.idle == 1
        count = len(world.lookups)
        await trio.sleep(3600)  # nothing is asked, nothing is looked up
        assert len(world.lookups) == count


async def test_a_name_that_cannot_be_looked_up_is_where_it_was(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        world.here = OSError("no name server")
        for _ in range(100):
            await trio.sleep(1)
            await ask(connections)
        assert len(world.made) == 1
        assert len(world.lookups) == 2


async def test_an_address_is_not_looked_up(nursery: trio.Nursery, autojump_clock: object) -> None:
    for host in ("10.0.0.1", "::1", "fe80::1%lo"):
        assert not Endpoint(host, 80, tls=False).is_a_name
    world = Memory(nursery)
    async with pool.opened(Endpoint("10.0.0.9", 80, tls=False), world) as connections:
        await ask(connections)
        await trio.sleep(LOOK_UP_SECONDS)
        await ask(connections)
    assert world.lookups == []


# What is sent twice


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_stale_connection(repeatable: bool, nursery: trio.Nursery, autojump_clock: object) -> None:
    """The server closes it just when it is used again."""
    world = Memory(nursery, lambda number, count: OK if (number, count) != (0, 2) else b"")
    async with pool.opened(AT, world) as connections:
        await connections.exchange(REQUEST, repeatable=repeatable)
        if repeatable:
            assert (await connections.exchange(REQUEST, repeatable=True)).status == 200
            assert world.requests == [(0, 1), (0, 2), (1, 1)]
        else:
            with pytest.raises(ConnectionBroke):
                await connections.exchange(REQUEST, repeatable=False)
            assert world.requests == [(0, 1), (0, 2)]
        assert world.closed == {0}


async def test_what_did_not_go_out_is_sent_again_whatever_it_is(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        await trio.aclose_forcefully(world.servers[0])
        assert (await connections.exchange(REQUEST, repeatable=False)).status == 200
        assert world.requests == [(0, 1), (1, 1)]


async def test_what_a_new_connection_does_not_answer_is_not_sent_again(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    world = Memory(nursery, lambda number, count: b"" if number else (OK if count == 1 else b""))
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        with pytest.raises(ConnectionBroke):
            await connections.exchange(REQUEST, repeatable=True)
        assert world.requests == [(0, 1), (0, 2), (1, 1)]


async def test_half_an_answer_is_not_asked_for_again(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery, lambda number, count: OK if count == 1 else OK[:-1])
    async with pool.opened(AT, world) as connections:
        await ask(connections)
        with trio.move_on_after(5):
            await connections.exchange(REQUEST, repeatable=True)
        assert world.requests == [(0, 1), (0, 2)]
        assert world.closed == {0}


# Errors and cancellations


async def test_an_error_and_a_cancellation_close_their_connection_and_no_other(
    nursery: trio.Nursery, autojump_clock: object
) -> None:
    def respond(number: int, count: int) -> bytes | None:
        return OK if count == 1 else (None if world.closed else b"220 smtp\r\n")

    world = Memory(nursery, respond)
    async with pool.opened(AT, world) as connections:
        await ask(connections, 3)
        with pytest.raises(NotAnAnswer):
            await connections.exchange(REQUEST, repeatable=True)
        assert len(world.closed) == 1
        with trio.move_on_after(1):
            await connections.exchange(REQUEST, repeatable=True)
        assert len(world.closed) == 2
        assert connections.idle == 1


async def test_it_may_be_cancelled_while_it_connects(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        with trio.move_on_after(0.05) as scope:
            await ask(connections)
        assert scope.cancelled_caught
        assert world.made == []


async def test_what_lands_after_the_end_is_not_kept(nursery: trio.Nursery, autojump_clock: object) -> None:
    world = Memory(nursery)
    async with pool.opened(AT, world) as connections:
        pass
    await ask(connections)
    assert world.closed == {0}


# Real sockets


async def answering(stream: trio.abc.Stream, seen: list[str], answer: bytes = OK) -> None:
    received = b""
    with trio.move_on_after(10):
        try:
            async for some in stream:
                received += bytes(some)
                while b"\r\n\r\n" in received:
                    received = received.partition(b"\r\n\r\n")[2]
                    seen.append("request")
                    await stream.send_all(answer)
        except trio.BrokenResourceError:
            seen.append("broken")


async def listening(nursery: trio.Nursery, seen: list[str], *, host: str = "127.0.0.1") -> int:
    async def serve(stream: trio.SocketStream) -> None:
        await answering(stream, seen)
        await trio.aclose_forcefully(stream)

    [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host=host))
    return int(listener.socket.getsockname()[1])


async def test_a_socket(nursery: trio.Nursery) -> None:
    seen: list[str] = []
    port = await listening(nursery, seen)
    async with pool.opened(Endpoint("localhost", port, tls=False), Network()) as connections:
        for _ in range(3):
            assert (await connections.exchange(REQUEST, repeatable=False)).body == b"{}"
        await ask(connections, 5)
        assert connections.idle >= 1
    assert seen.count("request") == 8


async def test_a_socket_that_the_server_has_closed_meanwhile_is_not_used(nursery: trio.Nursery) -> None:
    streams: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        streams.append(stream)
        await answering(stream, [])

    [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]
    async with pool.opened(Endpoint("127.0.0.1", port, tls=False), Network()) as connections:
        await connections.exchange(REQUEST, repeatable=False)
        await trio.testing.wait_all_tasks_blocked()
        await streams[0].send_eof()
        while not connections._idle[0]._is_readable():
            await trio.sleep(0.01)
        # Not repeatable, and served all the same: what is closed is seen before anything is sent.
        assert (await connections.exchange(REQUEST, repeatable=False)).status == 200
        assert len(streams) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "a..b", "x" * 300])
async def test_where_nobody_is(host: str, nursery: trio.Nursery) -> None:
    async with pool.opened(Endpoint(host, 1, tls=False), Network()) as connections:
        with trio.fail_after(5), pytest.raises(CannotConnect):
            await connections.exchange(REQUEST, repeatable=True)


async def test_a_reset_after_every_byte(nursery: trio.Nursery) -> None:
    """On real sockets: the server resets the connection after so many bytes of its answer."""
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    cuts = iter([*range(len(sent)), len(sent)])

    async def serve(stream: trio.SocketStream) -> None:
        cut = next(cuts)
        await stream.receive_some()
        if cut:
            await stream.send_all(sent[:cut])
        if cut < len(sent):
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)

    [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    at = Endpoint("127.0.0.1", listener.socket.getsockname()[1], tls=False)
    async with pool.opened(at, Network()) as connections:
        with trio.fail_after(20):
            for _ in range(len(sent)):
                with pytest.raises(ConnectionBroke):
                    await connections.exchange(REQUEST, repeatable=True)
                assert connections.idle == 0
            assert (await connections.exchange(REQUEST, repeatable=True)).body == b"{}"


async def test_cancelled_at_any_moment_nothing_is_left_open(nursery: trio.Nursery) -> None:
    seen: list[str] = []
    port = await listening(nursery, seen)
    before = len(os.listdir("/proc/self/fd"))
    async with pool.opened(Endpoint("127.0.0.1", port, tls=False), Network()) as connections:
        for number in range(60):
            with trio.move_on_after(number / 20_000):
                await ask(connections, 3)
        await ask(connections, 3)
        assert connections.idle <= 6
    with trio.fail_after(5):  # the server's ends go when it notices
        while len(os.listdir("/proc/self/fd")) > before:
            await trio.sleep(0.01)
