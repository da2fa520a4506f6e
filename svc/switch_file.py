"""The switch of an instance without etcd, as production has it: with the wall's clock, and `MAINTENANCE_FILE` where it is set.

The file holds what the maintenance key would hold. Two more things are usual with such files, and hold here:

- `touch FILE` switches on and `rm FILE` off: a file that is there and says nothing is `on`. Who writes a file empties it first,
  so that is believed when it is still so a moment later.
- It may be a link into a mounted ConfigMap: it is opened anew by its name each time. Such a mount cannot be written.

A file is taken for what it is when it is opened: nothing that waits for somebody (a FIFO) or never ends (a device) is read.
Everything that touches the disk runs in a thread, one at a time; one that a dead mount holds is left behind, and no other begins.
"""

import errno
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import trio

from svc.maintenance.orders import CannotWrite
from svc.maintenance.standalone import CannotRead, StandaloneSwitch
from svc.settings import Settings

LIMIT = 65_536
"""Bytes of a value: a ConfigMap holds a MiB at most, and no word takes one."""

MOMENT = 0.1
"""Seconds for which a file that was emptied may be on its way to hold something."""


def standalone_switch(settings: Settings, clock: Callable[[], float]) -> StandaloneSwitch:
    """Of an instance with these settings; `clock` goes on while the machine sleeps. Make it inside `trio.run`."""
    store = None if settings.maintenance_file is None else SwitchFile(settings.maintenance_file)
    return StandaloneSwitch(store, wall=time.time, date=_rfc3339, clock=clock, revision=int(time.time()))


def _rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


Result = TypeVar("Result")


class SwitchFile:
    """An `standalone.Store`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._one_thread = trio.CapacityLimiter(1)
        self._was_blank = False

    async def read(self) -> bytes | None:
        value = await self._in_thread(partial(read, self.path))
        if value == b"" and not self._was_blank:
            await trio.sleep(MOMENT)
            value = await self._in_thread(partial(read, self.path))
        self._was_blank = value == b""
        return b"on" if value == b"" else value

    async def write(self, value: bytes | None) -> None:
        await self._in_thread(partial(write, self.path, value))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._one_thread)


def read(path: str) -> bytes | None:
    """What the file holds, without blanks around it; None: there is none. Raises `CannotRead`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.isdir(os.path.dirname(os.path.abspath(path))):
            return None
        raise CannotRead("its folder is gone") from None
    except OSError as error:
        raise CannotRead(error.strerror or "it cannot be opened") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CannotRead("it is no file, but something else (a folder, a device)")
        value = os.read(descriptor, LIMIT + 1)
    except OSError as error:
        raise CannotRead(error.strerror or "it cannot be read") from None
    finally:
        os.close(descriptor)
    if len(value) > LIMIT:
        raise CannotRead(f"it has more than {LIMIT} bytes")
    return value.strip()


def write(path: str, value: bytes | None) -> None:
    """Put this into the file, or remove it: whoever reads it meanwhile sees the one or the other. Raises `CannotWrite`."""
    target = os.path.realpath(path)  # a link stays one
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            raise CannotWrite(f"{path} cannot be written: it is no file, but something else (a folder, a device)")
        if value is None:
            _remove(target)
        else:
            _replace(target, value + b"\n")
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written ({error.strerror or type(error).__name__}): it is switched where the file comes from, "
            "such as its ConfigMap"
        ) from None


def _remove(target: str) -> None:
    try:
        os.unlink(target)
    except FileNotFoundError:
        pass
    except OSError:
        # In a folder that is not ours, or mounted by itself into a container, where it can be neither removed nor replaced.
        _overwrite(target, b"off\n")


def _replace(target: str, value: bytes) -> None:
    made = None
    try:
        descriptor, made = tempfile.mkstemp(prefix=".maintenance-", dir=os.path.dirname(target))
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            os.fchmod(file.fileno(), _mode(target))
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, target)
    except OSError as error:
        if made is not None:
            with suppress(OSError):
                os.unlink(made)
        try:
            _overwrite(target, value)
        except FileNotFoundError:
            raise error from None  # why it could not be made


def _mode(target: str) -> int:
    try:
        return stat.S_IMODE(os.stat(target).st_mode)
    except FileNotFoundError:
        return 0o644


def _overwrite(target: str, value: bytes) -> None:
    """In place, and cut off after it: half of it is a value that means nothing, and changes nothing."""
    descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.write(descriptor, value) < len(value):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, len(value))
    finally:
        os.close(descriptor)
