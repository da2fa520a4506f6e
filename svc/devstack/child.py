"""A child process of the embedded stack: started, waited for, frozen, killed, restarted, and never left behind.

Each child runs on a *leash* (`leash.py`): in a session of its own, so that the terminal's Ctrl-C reaches only us and we
stop things in order; and it dies with us even when we are killed with SIGKILL. What a child writes is kept in a temporary
directory of the handle, which goes when the child goes.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

START_TIMEOUT = 60.0
"""Seconds that a child may take until it is ready. Half a second is usual; a loaded machine takes many times that."""

STOP_TIMEOUT = 5.0
"""Seconds that a child may take to end after SIGTERM, before SIGKILL."""

_LOOK = 0.02
"""Seconds between two looks whether a child is ready."""

_LEASH = Path(__file__).with_name("leash.py")

_PORT_ATTEMPTS = 3
"""A port that was free when it was picked may be taken when the child binds it: pick again, so often."""


class DevstackError(Exception):
    """A child process did not start. The text holds the last lines that it wrote."""


class Child:
    """A handle on one child process. Methods block, each with a bound; call them from one thread at a time.

    Not started until `start()` or `with`. `kill`, `freeze` and `thaw` are for tests of what happens to its clients.
    """

    name = "child"

    def __init__(self) -> None:
        self.port = 0
        """Its TCP port on 127.0.0.1; kept over `restart()`. 0 before the first start."""
        self.pid = 0
        """Process id of the program itself (not of its leash)."""
        self._ports: list[int] = []
        self._leash: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._served = False  # clients know its port

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._leash is not None and self._leash.poll() is None

    def start(self) -> None:
        """Start it and wait until it is ready, 60 s at most. Raises `DevstackError`."""
        start_all(self)

    def stop(self) -> None:
        """End it (SIGTERM, after 5 s SIGKILL) and remove its directory. Does nothing when that is done already."""
        self._end(signal.SIGTERM)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """SIGKILL. Its data stay for `restart()`."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT, after `freeze()`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """End it if it runs, then start it on the same port, and wait until it is ready. Raises `DevstackError`."""
        self._end(signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await start_all_async(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await stop_all_async(self)

    # What follows is `start()` in pieces, so that several children can start side by side.

    @property
    def _directory(self) -> Path:
        """Its data and what it writes; made when first asked for."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"svc-{self.name}-"))
        return self._folder

    def _program(self) -> list[str]:
        """The command line; may pick ports."""
        raise NotImplementedError

    def _environ(self) -> dict[str, str]:
        return dict(os.environ)

    def _ready(self, lines: list[str]) -> bool:
        """Whether it serves; `lines` is what it has printed to standard output."""
        raise NotImplementedError

    def _launch(self) -> None:
        if self.running:
            raise DevstackError(f"{self.name} runs already, with process id {self.pid}")
        self.pid = 0
        program = self._program()
        with open(self._directory / "stdout", "wb") as out, open(self._directory / "stderr", "wb") as err:
            self._leash = subprocess.Popen(  # noqa: S603 - our own program
                # -I -S: the leash needs the standard library only, and starts in a fraction of the time.
                [sys.executable, "-I", "-S", str(_LEASH), str(self._directory), *program],
                stdin=subprocess.PIPE,  # the leash's other end: ours alone, closed by the kernel when we die
                stdout=out,
                stderr=err,
                env=self._environ(),
                start_new_session=True,
            )

    def _await_ready(self, deadline: float, checkpoint: Callable[[], None]) -> None:
        """Returns when it serves. `checkpoint` is called between looks and may raise. `deadline` is of
        `time.monotonic()`."""
        attempt = 1
        while True:
            checkpoint()
            lines = (self._directory / "stdout").read_text("utf-8", "replace").splitlines(keepends=True)
            lines = [line.strip() for line in lines if line.endswith("\n")]
            if lines and not self.pid:
                self.pid = int(lines[0])
            if self.pid and self.running and self._ready(lines[1:]):
                self._served = True
                return
            if not self.running:
                self._end(signal.SIGKILL)
                if attempt == _PORT_ATTEMPTS or "address already in use" not in self._wrote().lower():
                    raise DevstackError(f"{self.name} ended while starting.{self._wrote()}")
                attempt += 1
                if not self._served:
                    self._ports = []
                self._launch()
            elif time.monotonic() > deadline:
                raise DevstackError(f"{self.name} was not ready within {START_TIMEOUT:g} s.{self._wrote()}")
            time.sleep(_LOOK)

    def _wrote(self) -> str:
        """The last lines of its standard error, as the tail of an error's text."""
        lines = (self._directory / "stderr").read_text("utf-8", "replace").splitlines()[-10:]
        return f" It wrote:\n{chr(10).join(lines)}" if lines else " It wrote nothing to standard error."

    def _end(self, number: signal.Signals) -> None:
        """Returns when the child is gone, its port and files with it."""
        leash, self._leash = self._leash, None
        if leash is None:
            return
        # By way of the leash: its pid, our own child's, cannot be somebody else's before we have waited for it, and it
        # ends after the child. SIGTERM goes to the group (leash and child; the leash ignores it), SIGKILL is the
        # leash's to send.
        if leash.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.kill(leash.pid, signal.SIGUSR1)
                else:
                    os.killpg(leash.pid, number)
                    os.killpg(leash.pid, signal.SIGCONT)  # a frozen process does not get its SIGTERM
        for send, last_resort in ((os.kill, signal.SIGUSR1), (os.killpg, signal.SIGKILL)):
            try:
                leash.wait(STOP_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    send(leash.pid, last_resort)
        leash.wait()
        if leash.stdin is not None:
            leash.stdin.close()


def start_all(*children: Child, checkpoint: Callable[[], None] = lambda: None) -> None:
    """Start children side by side and return when all are ready, or leave none behind. Raises `DevstackError`.

    `checkpoint` is called every few milliseconds meanwhile and may raise to break off.
    """
    try:
        for child in children:
            child._launch()
        deadline = time.monotonic() + START_TIMEOUT
        for child in children:
            child._await_ready(deadline, checkpoint)
    except BaseException:
        for child in children:
            child.stop()
        raise


async def start_all_async(*children: Child) -> None:
    """`start_all`, for Trio: when cancelled, it breaks off at once and leaves no child behind."""
    await trio.to_thread.run_sync(lambda: start_all(*children, checkpoint=trio.from_thread.check_cancelled))


async def stop_all_async(*children: Child) -> None:
    """Stop children, one after the other, also under a cancelled scope. Bounded: `stop()` is, to `STOP_TIMEOUT`
    each."""
    with trio.CancelScope(shield=True):
        for child in children:
            await trio.to_thread.run_sync(child.stop)


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now. Not those that the kernel would pick (32768 and up on Linux): it also gives
    them to outgoing connections, so that a stopped child's port may be in use when it comes back; and a client that
    tries to reach a stopped child from such a port can even end up connected to itself."""
    with contextlib.ExitStack() as all_open:
        ports: list[int] = []
        while len(ports) < count:
            port = random.randrange(20_000, 32_000)
            one = all_open.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                ports.append(port)
    return ports
