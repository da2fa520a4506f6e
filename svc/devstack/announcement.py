"""How `svc maintenance on` and `svc dlq`, typed in a second terminal, find the stack that `svc dev` runs: a file in the user's
own folder, which holds no secret and is believed only when nobody else can have written it.
"""

import contextlib
import dataclasses
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MOTO_TAKES_ANY = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "dev",
    "AWS_SECRET_ACCESS_KEY": "dev",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Credentials."""


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
        return {"SQS_QUEUE_URL": self.queue_url, "AWS_ENDPOINT": self.sqs_url, **MOTO_TAKES_ANY}


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
    texts: Sequence[object] = (what.etcd_endpoints, what.maintenance_key, what.http_url, what.sqs_url, what.queue_url)
    # Printable: they are shown, and become variables of an environment, where a NUL is none.
    if (
        type(what.pid) is not int
        or what.pid <= 1
        or not all(isinstance(one, str) and one.isprintable() for one in texts)
    ):
        return None
    if not all(texts[:3]):
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
