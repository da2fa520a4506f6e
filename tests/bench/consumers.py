"""The consumers that are measured, and how each is started. Every one is a process with an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent

RECEIVERS = 10
"""Receives on the wire at once: what `svc` goes up to (`intake.MAX_RECEIVERS`), and the floors beside it."""


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

    @property
    def url(self) -> str:
        return f"{self.endpoint}/000000000000/{self.queue}"


@dataclass(frozen=True)
class Consumer:
    """One of those that are measured."""

    key: str
    title: str
    how: str
    """The configuration, in a few words."""

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
        return _versions(sys.executable, ("svc", "trio", "trio-asyncio", "aiobotocore", "botocore"))

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
            **place.settings,
        }


@dataclass(frozen=True)
class Floor(Consumer):
    kind: str = "asyncio"

    def versions(self) -> str:
        return _versions(sys.executable, ("aiobotocore", *(["trio", "trio-asyncio"] if self.kind == "trio" else [])))

    def command(self, place: Place) -> list[str]:
        return [sys.executable, str(FOLDER / "floor.py"), self.kind, place.endpoint, place.url, str(RECEIVERS)]


SVC = Svc("svc", "**svc**", "`svc run`, defaults")
FLOOR = Floor("floor", "floor, asyncio", f"bare aiobotocore, {RECEIVERS} receivers", kind="asyncio")
FLOOR_TRIO = Floor(
    "floor-trio", "floor, trio-asyncio", f"the same through trio-asyncio, {RECEIVERS} receivers", kind="trio"
)

CONSUMERS: list[Consumer] = [SVC, FLOOR, FLOOR_TRIO]


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
