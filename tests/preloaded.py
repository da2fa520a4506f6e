"""`python -m svc …` without the second of imports: a process that has done them, and forks for each one that is asked for.

    process = preloaded.popen(["run"], env=environ, stdout=subprocess.DEVNULL, stderr=file)

What runs then is `svc.__main__.main()` in a process of its own: its own arguments, environment, working directory, standard
streams, signals and exit code. Only the start is not that of a real one, so the tests of the start (signals in its first second,
being PID 1, closed streams, another program in front) do without, and so does `popen()` itself where the environment says how
Python starts.

The process that forks is started at the first use, or by xdist's controller for all of its workers (`Shared`). It has one thread
and has opened nothing, so that its children inherit nothing. It ends, and they with it, when the tests' process has.
"""

import atexit
import contextlib
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import trio

ROOT = Path(__file__).parent.parent
SVC = [sys.executable, "-m", "svc"]

_AT_THE_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "GRPC_", "OPENSSL_", "SSL_")
"""Variables that begin so are read while Python, or a library, starts."""
_SAME = {"PYTHONPATH"}

Output = int | IO[Any]


class Forked:
    """As much of `subprocess.Popen` as the tests use."""

    def __init__(self, pid: int, report: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._report = report

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(SVC, timeout or 0.0)
        return code

    async def wait_ended(self) -> None:
        if self.poll() is None:
            await trio.lowlevel.wait_readable(self._report)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._report.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                told = self._report.recv(64)
                self.returncode = int(told) if told else -signal.SIGKILL
                self._report.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[bytes]


def popen(
    arguments: Sequence[str], *, env: Mapping[str, str], stdout: Output, stderr: Output, cwd: str | Path | None = None
) -> Process:
    """`svc` with these arguments. `stdout` and `stderr`: a file, a descriptor or DEVNULL, not a pipe."""
    if _fixed(env) != _fixed(os.environ):
        return subprocess.Popen([*SVC, *arguments], env=dict(env), stdout=stdout, stderr=stderr, cwd=cwd)
    asked = {"arguments": list(arguments), "environ": dict(env), "folder": str(cwd or os.getcwd())}
    with open(os.devnull, "wb") as nowhere, _lock:
        told = [nowhere if one == subprocess.DEVNULL else one for one in (stdout, stderr)]
        ours, theirs = socket.socketpair()
        with theirs:
            files = [*(one if isinstance(one, int) else one.fileno() for one in told), theirs.fileno()]
            request = json.dumps(asked).encode()
            control = _control()
            socket.send_fds(control, [len(request).to_bytes(4, "big")], files)
            control.sendall(request)
    return Forked(int.from_bytes(_exactly(ours, 4), "big"), ours)


async def exited(process: Process) -> int:
    """Its exit code, once it has ended."""
    if isinstance(process, Forked):
        await process.wait_ended()
    while (code := process.poll()) is None:
        await trio.sleep(0.02)
    return code


async def run(
    *arguments: str, env: Mapping[str, str], cwd: str | Path | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """`svc` with these arguments, to its end; killed when cancelled."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = popen(arguments, env=env, stdout=out, stderr=err, cwd=cwd)
        try:
            code = await exited(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([*SVC, *arguments], code, out.read(), err.read())


def _fixed(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_AT_THE_START) and name not in _SAME}


_lock = threading.Lock()


shared: str | None = None
"""The `path` of a `Shared` of another process, to be used by this one."""


class Shared:
    """One process that has done the imports, for several that connect to `path`: it forks for each, and what is forked serves it
    as its own would. Ends when its parent has, and when they have."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="svc-forks-")
        self.path = f"{self._folder.name}/line"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            self._leash, self._process = _start(listener)

    def end(self) -> None:
        self._leash.close()
        self._process.wait()
        self._folder.cleanup()


def _start(*more: socket.socket) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    with theirs:
        given = [one.fileno() for one in (theirs, *more)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", *map(str, given)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=given,
        )
    return ours, process


@cache
def _control() -> socket.socket:
    """The line to the process that forks for this one."""
    if shared is not None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(shared)
        atexit.register(line.close)
        return line
    ours, forks = _start()
    atexit.register(forks.wait)
    atexit.register(ours.close)
    return ours


def _exactly(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = line.recv(count - len(found))
        if not more:
            raise ConnectionError("the process that forks has ended")
        found += more
    return found


# -- in the process that forks --


def _serve_each(leash: socket.socket, listener: socket.socket) -> socket.socket | None:
    """Fork for each that connects. Returns in each child with its line, at the end with None."""
    while leash not in (ready := select.select([leash, listener], [], [])[0]):
        assert ready == [listener]
        line, _ = listener.accept()
        with line:
            if os.fork() == 0:
                leash.close()
                listener.close()
                return line.dup()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return None


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns twice: in a child with what it is to do, at the end with None."""
    children: dict[int, socket.socket] = {}
    awake, wakes = socket.socketpair()
    awake.setblocking(False)
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)  # of the terminal: for the tests and for the children
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(awake, selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if awake in ready:
            awake.recv(4096)
            _reap(children)
        if control not in ready:
            continue
        size, files, _, _ = socket.recv_fds(control, 4, 3)
        if not size:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            return None
        asked: dict[str, Any] = json.loads(_exactly(control, int.from_bytes(size, "big")))
        out, err, report = files
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for one in (control, awake, wakes, selector, *children.values()):
                one.close()
            os.dup2(out, 1)
            os.dup2(err, 2)
            for file in files:
                os.close(file)
            return asked
        os.close(out)
        os.close(err)
        children[pid] = socket.socket(fileno=report)
        children[pid].sendall(pid.to_bytes(4, "big"))


def _reap(children: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with contextlib.suppress(OSError), children.pop(pid) as report:  # whoever asked may have gone
                report.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become(asked: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["folder"])
    sys.argv = [str(ROOT / "svc/__main__.py"), *asked["arguments"]]
    sys.path[:1] = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    from svc.__main__ import main

    main()


if __name__ == "__main__":
    import svc.cli.dlq
    import svc.cli.main
    import svc.cli.maintenance
    import svc.devstack.stack
    import svc.service
    import svc.sqs.dead_letters  # noqa: F401
    import tests.recording  # noqa: F401

    # Neither a collection nor the end of a child looks at what is here already, page by page, and copies it.
    gc.collect()
    gc.freeze()
    line: socket.socket | None
    line, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    if listeners:
        line = _serve_each(line, *listeners)
    if line is not None and (todo := _serve(line)) is not None:
        _become(todo)
