"""The process and what surrounds it: standard streams that fail, signals at awkward moments, being PID 1. Real processes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd_client
from svc.settings import load
from tests import preloaded
from tests.live import Instance, Stand, http_client, stand


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def everything(descriptor: int) -> bytes:
    """What stands in a pipe now."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(descriptor, 65_536):
            found += more
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def blocks_sigterm(pid: int) -> bool:
    """And means to: `unshare` blocks it too, around its fork, and lets go of it before it becomes the next program."""
    if Path(f"/proc/{pid}/exe").resolve().name == "unshare":
        return False
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))
    return bool(int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@contextlib.contextmanager
def running(place: Stand, *before: str, stderr: int, port: int) -> Iterator[preloaded.Process]:
    """`svc run` with this stderr, on this port; killed at the end if it has not ended. `before`: the command that starts it."""
    environ = {**os.environ, **place.environ, "HTTP_PORT": str(port), "LOG_LEVEL": "debug"}
    process: preloaded.Process
    if before:
        command = [*before, *preloaded.SVC, "run"]
        process = subprocess.Popen(command, env=environ, stdout=stderr, stderr=stderr)
    else:
        process = preloaded.popen(["run"], env=environ, stdout=stderr, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def healthy(port: int) -> None:
    async with http_client(timeout=5) as client:
        with trio.fail_after(40):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{port}/health")).json()["status"] == "healthy":
                        return
                await trio.sleep(0.05)


async def ended(process: preloaded.Process, within: float = 20) -> int:
    with trio.fail_after(within):
        return await preloaded.exited(process)


@pytest.fixture
def key(key_prefix: str) -> str:
    return f"{key_prefix}maintenance"


async def test_logs_that_cannot_be_written_hold_nothing_up(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    """A full disk, a reader that has gone, one that does not read, no stream at all: four instances share one queue."""
    gone = os.pipe()
    os.close(gone[0])
    unread = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    os.set_blocking(unread[1], False)
    with contextlib.suppress(BlockingIOError):  # so that the first line meets a full pipe already
        while True:
            os.write(unread[1], b"x" * 4096)
    os.set_blocking(unread[1], True)
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", WORK_SECONDS="0.2") as place:
        with contextlib.ExitStack() as held:
            started = []
            for stderr in (full, gone[1], unread[1]):
                port = free_port()
                started.append((port, held.enter_context(running(place, stderr=stderr, port=port))))
            port = free_port()
            closed = ("sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh")
            started.append((port, held.enter_context(running(place, *closed, stderr=subprocess.DEVNULL, port=port))))
            for port, _ in started:
                await healthy(port)
            await place.send([str(number) for number in range(40)])
            await place.until(lambda: len(place.succeeded()) == 40)
            assert sorted(map(int, place.succeeded())) == list(range(40))
            os.set_blocking(unread[0], False)
            assert everything(unread[0]).startswith(b"xxxx")
            for _, process in started:
                process.send_signal(signal.SIGTERM)
            assert [await ended(process) for _, process in started] == [0, 0, 0, 0]
            told = everything(unread[0]).decode()
            assert "log lines were lost: nobody reads them" in told
            assert "stopped" in told
        await place.empty()
    for descriptor in (gone[1], *unread, full):
        os.close(descriptor)


@pytest.mark.slow
async def test_sigterm_at_any_moment_of_the_start_is_a_clean_stop(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", WORK_SECONDS="0") as place:
        await place.send([str(number) for number in range(10)])
        with contextlib.ExitStack() as held:
            for delay in (0.3, 0.8, 1.3):
                process = held.enter_context(running(place, "env", stderr=subprocess.DEVNULL, port=0))
                await trio.sleep(delay)
                process.send_signal(signal.SIGTERM)
                # -SIGTERM: Python itself had not come up, nothing was taken.
                assert await ended(process) in (0, -signal.SIGTERM)
        visible, in_flight = await place.depth()
        assert in_flight == 0
        assert visible + len(place.succeeded()) == 10


async def test_a_sigterm_that_something_swallows_during_the_start_stops_it_all_the_same(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    """Each import runs callbacks of weak references, in which an exception is printed and forgotten: so a stop got lost once in
    some hundred starts, and the process ran on for good."""
    environ = {"MESSAGE_PROCESSOR": "tests.signalled_early:handle"}
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", **environ) as place:
        await place.send(["one"])
        with running(place, stderr=subprocess.DEVNULL, port=0) as process:
            assert await ended(process, within=40) == 0
        assert await place.depth() == (1, 0)


async def test_sigterm_during_the_drain_of_a_maintenance(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", WORK_SECONDS="2") as place:
        service = await place.start()
        await place.send([str(number) for number in range(5)])
        await place.until(lambda: len(place.events()) == 5)
        await etcd_client.write(load(place.environ), key, b"true")
        await service.reaches("draining")
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        assert len(place.succeeded()) == 5
        assert await place.depth() == (0, 0)


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="a PID namespace needs root and unshare(1)"
)
async def test_sigterm_as_pid_1(moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path) -> None:
    """The kernel drops a signal to PID 1 that it has no handler for. While it serves, and before Python itself is
    up, when it is started as the image starts it (docker/Dockerfile)."""
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", WORK_SECONDS="0.2") as place:
        for when in ("serving", "before Python is up"):
            port = free_port()
            unshare = ("unshare", "--fork", "--pid", "--kill-child", "env", "--block-signal=TERM,INT")
            with running(place, *unshare, stderr=subprocess.DEVNULL, port=port) as process:
                await place.until(lambda pid=process.pid: children(pid))
                [child] = children(process.pid)
                if when == "serving":
                    await healthy(port)
                    await place.send(["one"])
                    await place.until(lambda: place.succeeded() == ["one"])
                else:
                    await place.until(lambda child=child: blocks_sigterm(child))
                os.kill(child, signal.SIGTERM)
                assert await ended(process, within=10) == 0


async def test_a_signal_while_things_are_closed_changes_nothing(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    """The drain ran out of time, which the exit code tells; then the impatient operator presses again."""
    environ = {"MESSAGE_PROCESSOR": "tests.recording:slow_to_close", "WORK_SECONDS": "3600", "DRAIN_TIMEOUT": "1s"}
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", **environ) as place:
        service = await place.start()
        await place.send(["endless"])
        await place.until(place.events)
        service.signal(signal.SIGTERM)
        await service.logged("closing")
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 3
        await service.logged("stopped")


OF_ITS_OWN_TERMINAL = """
import fcntl, os, pty, sys, termios
master, slave = pty.openpty()
os.set_inheritable(master, True)
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


async def test_sighup_without_a_terminal_changes_the_log_level(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", LOG_LEVEL="warning") as place:
        daemon = Instance({**place.environ, "HTTP_PORT": str(port := free_port())}, prefix=["setsid"])
        place.instances.append(daemon)
        await healthy(port)
        assert not daemon.logs
        daemon.signal(signal.SIGHUP)
        told = await daemon.logged("log level changed")
        assert (told["log_level"], told["previous_log_level"], told["by"]) == ("debug", "warning", "SIGHUP")
        daemon.signal(signal.SIGHUP)
        await daemon.logged("log level changed", log_level="warning")
        daemon.signal(signal.SIGTERM)
        assert await daemon.exit_code() == 0
        assert "stopped" not in {line["event"] for line in daemon.logs}  # it is a warning again that is the least
        assert not [line for line in daemon.output if "Signature=" in line]


@pytest.mark.slow
async def test_sighup_with_a_terminal_drains_and_stops(
    moto: Moto, etcd: Etcd, queue_name: str, key: str, tmp_path: Path
) -> None:
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", WORK_SECONDS="1") as place:
        service = await place.start(prefix=[sys.executable, "-c", OF_ITS_OWN_TERMINAL])
        await place.send(["one"])
        await place.until(place.events)
        service.signal(signal.SIGHUP)
        assert await service.exit_code() == 0
        assert place.succeeded() == ["one"]
        await service.logged("stopped")


@pytest.mark.parametrize(
    ("before", "meaning"),
    [(("nohup",), "NOTHING"), (("setsid",), "LOG_LEVEL"), ((sys.executable, "-c", OF_ITS_OWN_TERMINAL), "STOP")],
)
def test_what_sighup_means_is_told_by_the_start(before: tuple[str, ...], meaning: str) -> None:
    told = [*before, sys.executable, "-c", "from svc import signals; print(signals.hangup().name)"]
    found = subprocess.run(told, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert found.stdout.split()[-1] == meaning
