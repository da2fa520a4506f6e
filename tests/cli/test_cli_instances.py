"""`svc maintenance … --url`: instances without etcd, switched and waited for over their API; and what is not an instance.

The instances are the real core and API on real ports, between a simulated queue and their own switch."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from svc import Message
from svc.api import app as api
from svc.cli.instances import place
from svc.core import Core
from svc.maintenance.registration import Registration
from svc.maintenance.standalone import StandaloneSwitch
from svc.settings import load
from svc.testing import SimulatedQueue, SimulatedSwitch
from tests.cli.test_cli import side_by_side, surroundings, svc
from tests.sqs.test_tls import certificate, serving

__all__ = ["surroundings"]  # a fixture

TOKEN = "a-long-secret"


async def nothing(message: Message) -> None: ...


async def endless(message: Message) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def alone(
    id: str, process: Callable[[Message], Awaitable[None]] = nothing, *, fleet: bool = False
) -> AsyncIterator[str]:
    """An instance; its URL. `fleet`: it says that it belongs to one."""
    settings = load(
        {"API_TOKEN": TOKEN, "HTTP_PORT": "0", "SQS_WAIT_TIME_SECONDS": "1", "DRAIN_TIMEOUT": "1s"}
        | ({} if fleet else {"ETCD_ENDPOINTS": "off"})
    )
    queue, own, switch = (
        SimulatedQueue(),
        StandaloneSwitch(wall=trio.current_time, date=str, revision=70),
        SimulatedSwitch(),
    )
    identity = Registration(id, "host", 1, "1.0", "2026-01-01T00:00:00Z", settings.sqs_queue_url, "t")
    made = switch.registrar if fleet else None
    core = Core(
        settings, queue, process, switch.watcher if fleet else own.watcher, identity=identity, make_registrar=made
    )
    app = api.make(core, switchboard=switch if fleet else own.board(core.registration))
    queue.put("at work")
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(api.serve, app, settings, stop)
        await nursery.start(core.run)
        yield url
        nursery.cancel_scope.cancel()


@pytest.fixture
def environ(surroundings: dict[str, str]) -> dict[str, str]:
    return {**surroundings, "API_TOKEN": TOKEN, "ETCD_ENDPOINTS": "off"}


async def test_two_instances_on_and_off(environ: dict[str, str]) -> None:
    async with alone("orders-1") as one, alone("orders-2") as two:
        both = "--url", one, "--url", f"{two}/", "--url", one
        ended = await svc("maintenance", "on", *both, "--wait", "--by", "ops", "--reason", "disk", environ=environ)
        assert (ended.code, ended.err) == (0, ""), ended.out
        assert f"maintenance is on ({one}, revision 71)" in ended.out
        assert f"maintenance is on ({two}, revision 71)" in ended.out
        assert "orders-1: " in ended.out
        assert ended.out.splitlines()[-1].startswith("2 instances are drained after ")

        ended = await svc("maintenance", "status", *both, environ=environ)
        assert (ended.code, ended.out.count("maintenance: on"), ended.out.count("by: ops")) == (0, 2, 2)
        assert "orders-2  drained" in ended.out
        ended = await svc("maintenance", "off", "--url", one, "--by", "ann", environ=environ)
        assert ended.code == 1
        assert "on by ops (disk)" in ended.err
        assert "Give their name with --by, or insist with --force. (HTTP 409)" in ended.err
        ended = await svc("maintenance", "off", *both, "--by", "ops", "--wait", "--json", environ=environ)
        events = [json.loads(line) for line in ended.out.splitlines()]
        assert (ended.code, [event["event"] for event in events[:2]], events[0]["url"]) == (0, ["switched"] * 2, one)
        assert (events[-1]["result"], len(events[-1]["instances"])) == ("done", 2)
        ended = await svc("maintenance", "status", "--json", "--url", one, environ=environ)
        told = json.loads(ended.out)
        assert (told["url"], told["maintenance"], told["instances"][0]["phase"]) == (one, False, "running")


NOWHERE = "http://127.0.0.1:1"


async def ends(environ: dict[str, str], code: int, said: str, words: str, **more: str) -> None:
    ended = await svc("maintenance", *words.split(), environ={**environ, **more})
    assert (ended.code, said in ended.out + ended.err) == (code, True), ended.out + ended.err
    assert TOKEN not in ended.out + ended.err


@pytest.mark.expects_errors  # a drain that runs out of time is one
async def test_exit_codes(environ: dict[str, str]) -> None:
    async with alone("orders-1") as one, alone("orders-2", endless) as stuck:
        gone = f"vanished, drained or not: {NOWHERE}. Look after them\n"
        await side_by_side(
            partial(
                ends, environ, 3, "out of time before everything was finished: orders-2", f"on --wait --url {stuck}"
            ),
            partial(ends, environ, 5, gone, f"on --wait --url {one} --url {NOWHERE}"),
        )
        # Without --url: the one that has these settings.
        port = one.rpartition(":")[2]
        await ends(environ, 0, "maintenance: on", "status", HTTP_PORT=port, HTTP_HOST="0.0.0.0")


@pytest.mark.slow
async def test_more_exit_codes(environ: dict[str, str]) -> None:
    async with alone("orders-1") as one, alone("orders-2") as two:
        await side_by_side(
            partial(ends, environ, 0, "--allow-vanished", f"on --wait --allow-vanished --url {one} --url {NOWHERE}"),
            partial(ends, environ, 1, "Connection refused", f"on --url {NOWHERE}"),
            partial(ends, environ, 1, "Connection refused", f"status --url {NOWHERE}"),
            partial(
                ends,
                environ,
                1,
                "API_TOKEN is not the one that it was given",
                f"on --url {two}",
                API_TOKEN="another-secret",
            ),
            partial(
                ends, environ, 1, "set API_TOKEN to the one that it was given", f"off --wait --url {two}", API_TOKEN=""
            ),
            partial(ends, environ, 1, ": --by must be a text of 1 to", f"on --url {two} --by {'x' * 2000}"),
            partial(ends, environ, 1, "; `svc maintenance status` names them", f"on --url {two} --instance a/b"),
            partial(ends, environ, 2, "is not the URL of an instance", "on --url orders-1:8082"),
            partial(ends, environ, 2, "has no user", f"on --url http://user:{TOKEN}@h:1"),
            partial(ends, environ, 2, "nobody who could be forgotten", "forget orders-1"),
            partial(ends, environ, 2, "HTTP_PORT is 0", "status", HTTP_PORT="0"),
        )


@pytest.mark.slow
async def test_one_speaks_for_its_fleet_and_two_do_not(environ: dict[str, str]) -> None:
    async with alone("orders-1", fleet=True) as one:
        ended = await svc("maintenance", "on", "--wait", "--url", one, environ=environ)
        assert (ended.code, ended.out.splitlines()[-1].startswith("1 instance is drained")) == (0, True), ended.out
        ended = await svc("maintenance", "off", "--url", one, "--url", "http://127.0.0.1:1", environ=environ)
        assert ended.code == 1
        assert f"{one} belongs to a fleet" in ended.err


ANSWERS = {
    "page": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "another JSON": b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"ok": 1}\n',
    "not HTTP": b"220 mail.example ESMTP\r\n",
    "redirect": b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "deep": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "escapes": b'HTTP/1.1 403 X\r\nContent-Length: 29\r\n\r\n{"message": "no \\u001b[31m!"} ',
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_what_answers_is_not_an_instance(what: str) -> None:
    from svc.cli.instances import Refused, Unreachable, look, obey
    from svc.maintenance.orders import Order

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := await stream.receive_some()):
            head += more
        asked.append(head)
        await stream.send_all(ANSWERS[what])
        await stream.aclose()

    asked: list[bytes] = []
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        where = place(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/behind/")
        for ask in (partial(look), partial(obey, Order(True), TOKEN)):
            with pytest.raises(Unreachable if what != "escapes" else Refused) as told:
                await ask(where)
            assert str(told.value).startswith(where.url)
            assert str(told.value).isprintable()
        nursery.cancel_scope.cancel()
    assert [head.split(b" ")[:2] for head in asked] == [[b"GET", b"/behind/fleet"], [b"PUT", b"/behind/maintenance"]]
    assert TOKEN.encode() not in asked[0]
    assert f"Authorization: Bearer {TOKEN}".encode() in asked[1]


async def test_tls_is_checked(tmp_path: Path) -> None:
    from svc.cli.instances import Unreachable, look

    fleet: dict[str, Any] = {"fleet": False, "instances": [], "vanished": [], "maintenance": True}
    body = json.dumps(fleet).encode()
    public, context = certificate(tmp_path, "127.0.0.1")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with trio.open_nursery() as nursery:
        url = f"https://127.0.0.1:{await serving(nursery, context, answer)}"
        assert (await look(place(url, str(public)))).on is True
        with pytest.raises(Unreachable, match="certificate"):
            await look(place(url))
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="--ca /nowhere"):
        place(url, "/nowhere")
