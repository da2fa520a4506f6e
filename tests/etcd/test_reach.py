"""Which address of a host is taken; and what has no address, no thread or no end."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from svc.etcd import messages, reach
from svc.etcd.connection import connected
from svc.etcd.watcher import read
from svc.settings import load
from tests.etcd.http2_member import Member


async def answer(member: Member, id: int, path: str) -> None:
    await member.good(id, [messages.RangeResponse(header={"revision": 7}).SerializeToString()])


@pytest.mark.parametrize("first", ["mute", "rude", "dead"])
async def test_an_address_that_takes_connections_and_does_not_speak_is_passed_over(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(host: str) -> list[str]:
        assert host == "etcd.test"
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(reach, "addresses_of", addresses)
    ended = trio.Event()

    async def other(stream: trio.SocketStream) -> None:
        if first == "mute":
            while await stream.receive_some():
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: Member(stream, answer).run(), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        if first != "dead":
            await nursery.start(partial(trio.serve_tcp, other, port, host="127.0.0.2"))
        its = load({"ETCD_ENDPOINTS": f"etcd.test:{port}", "MAINTENANCE_KEY": "/m"})
        with trio.fail_after(2):
            async with connected(its, "/m", its.etcd_endpoints) as (_, found):
                assert found.revision == 7
                if first != "dead":
                    await ended.wait()  # let go of while the other one is used
        nursery.cancel_scope.cancel()


async def test_a_file_that_hangs_costs_no_more_than_the_attempt(tmp_path: Path) -> None:
    (path := tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    its = load({"ETCD_ENDPOINTS": "127.0.0.1:1", "MAINTENANCE_KEY": "/m", "ETCD_CA_CERT": str(path)})
    path.unlink()
    os.mkfifo(path)  # as a file system does that is away
    try:
        with trio.move_on_after(0.3) as scope:
            await read(its, "/m")
        assert scope.cancelled_caught
    finally:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.close(descriptor)


EXHAUSTED = """
import os, resource, threading, trio
from svc.etcd.watcher import EtcdError, read
from svc.settings import load

async def ask(host):
    try:
        await read(load({"ETCD_ENDPOINTS": f"{host}:1", "MAINTENANCE_KEY": "/m"}), "/m")
    except EtcdError as error:
        print(error)

async def main():
    threading.stack_size(1 << 46)
    await ask("etcd.test")
    last = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    await ask("127.0.0.1")

trio.run(main)
"""


def test_what_the_system_refuses_is_trouble_with_its_remedy_and_no_crash() -> None:
    done = subprocess.run([sys.executable, "-c", EXHAUSTED], capture_output=True, text=True, check=True)
    threads, files = done.stdout.splitlines()
    assert "can't start new thread" in threads
    assert "limit of processes" in threads
    assert "Too many open files" in files
    assert "limit of open files" in files
