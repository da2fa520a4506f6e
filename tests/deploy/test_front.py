"""docker/front.py: one port before several instances. Real sockets."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import trio

_spec = importlib.util.spec_from_file_location("front", Path(__file__).parent.parent.parent / "docker/front.py")
assert _spec is not None
assert _spec.loader is not None
front = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(front)


async def instance(stream: trio.SocketStream) -> None:
    """Answers what it was sent, twice, once the sender is done."""
    asked = b"".join([data async for data in stream])
    await stream.send_all(asked * 2)
    await stream.aclose()


async def served(nursery: trio.Nursery) -> int:
    """The port of a front before an instance on 127.0.0.1."""
    listeners = await nursery.start(partial(trio.serve_tcp, instance, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    listeners = await nursery.start(front.main, "127.0.0.1", port, "127.0.0.1", 0)
    return int(listeners[0].socket.getsockname()[1])


async def test_everything_goes_through_both_ways_and_ends(nursery: trio.Nursery) -> None:
    port = await served(nursery)
    sent = bytes(range(256)) * 4000
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as both:

            async def send() -> None:
                await stream.send_all(sent)
                await stream.send_eof()

            both.start_soon(send)
            assert b"".join([data async for data in stream]) == sent * 2


async def test_an_instance_that_is_gone_ends_the_connection_and_nothing_else(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "PATIENCE", 0.3)
    with trio.socket.socket() as taken:  # bound, not listening: connections are refused
        await taken.bind(("127.0.0.1", 0))
        listeners = await nursery.start(front.main, "127.0.0.1", taken.getsockname()[1], "127.0.0.1", 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(10):
            for _ in range(2):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    assert await stream.receive_some() == b""
    assert "front: no instance of 127.0.0.1 takes a connection" in capsys.readouterr().err


async def test_the_first_address_that_answers_is_taken(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners = await nursery.start(partial(trio.serve_tcp, instance, 0, host="127.0.0.3"))
    port = listeners[0].socket.getsockname()[1]

    async def resolve(*_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (host, port)) for host in ("127.0.0.3", "127.0.0.2")]  # nobody listens on the lower one

    monkeypatch.setattr(front.trio.socket, "getaddrinfo", resolve)
    with trio.fail_after(10):
        async with await front.open_first("sqs-service", port) as stream:
            assert stream.socket.getpeername()[0] == "127.0.0.3"


async def test_a_connection_waits_for_an_instance_that_comes_up(nursery: trio.Nursery) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()  # nobody listens there now
    front_listeners = await nursery.start(front.main, "127.0.0.1", port, "127.0.0.1", 0)
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", front_listeners[0].socket.getsockname()[1]) as stream:
            await nursery.start(partial(trio.serve_tcp, instance, port, host="127.0.0.1"))
            await stream.send_all(b"up")
            await stream.send_eof()
            assert await stream.receive_some() == b"upup"
