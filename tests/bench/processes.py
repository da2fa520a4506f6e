"""Processes pinned to a core, and what they have used: CPU and memory of a process and all its descendants, from /proc.

Linux only: /proc and `sched_setaffinity` are its own.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_TICK = os.sysconf("SC_CLK_TCK")

STOP_SECONDS = 2.0
"""How long a consumer may take to end after SIGTERM, before SIGKILL: it has been measured, and its queue is thrown away."""


class Process:
    """A child on one core, in a session of its own. What it writes goes to a file that `output()` reads."""

    first = False
    """Whether they all go before everything else on the machine (`--first`): see `prefer`."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, core: int | None, folder: Path) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        before = os.sched_getaffinity(0)
        if core is not None:
            os.sched_setaffinity(0, {core})  # children inherit it, and every thread and process that they start
        try:
            self._child = subprocess.Popen(
                command, env=dict(environ), cwd=folder, stdin=subprocess.DEVNULL,
                stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        finally:
            os.sched_setaffinity(0, before)
        if self.first:
            prefer(self._child.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")

    def cpu(self) -> float:
        """Seconds of user and system time that the process and its descendants have used, ended ones too."""
        return sum(_cpu(pid) for pid in family(self.pid))

    def resident(self) -> int:
        """Bytes of memory that belong to the process and its descendants alone (shared pages are counted once each)."""
        return sum(_resident(pid) for pid in family(self.pid))

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def stop(self) -> int:
        """End it and everything that it started; returns its exit code."""
        if self.running:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._child.wait()
        if not self._output.closed:
            self._last = self.output()
            self._output.close()
        return code


def prefer(pid: int, nice: int = -20) -> None:
    """Give the session of this process the highest priority that an ordinary process can have; needs root. The kernel shares
    the processor among sessions first (autogroups), so that niceness alone does not help against other sessions."""
    Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                found += [int(child) for child in Path(f"/proc/{one}/task/{thread}/children").read_text().split()]
    return found


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (
        sum(int(field) for field in fields[11:15]) / _TICK
    )  # user, system, and those of children that were waited for


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
