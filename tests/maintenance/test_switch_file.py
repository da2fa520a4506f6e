"""`MAINTENANCE_FILE` on a real disk: what operators, ConfigMaps and broken mounts make of it. Real time."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from svc.maintenance.orders import CannotWrite
from svc.maintenance.standalone import CannotRead
from svc.switch_file import LIMIT, SwitchFile, read, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "maintenance"


async def test_touch_is_on_and_rm_is_off(tmp_path: Path) -> None:
    path = tmp_path / "maintenance"
    file = SwitchFile(str(path))
    assert await file.read() is None
    path.touch()
    assert await file.read() == b"on"
    path.write_bytes(b" \n")
    assert await file.read() == b"on"
    path.unlink()
    assert await file.read() is None


async def test_a_file_that_is_being_written_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "maintenance"
    file = SwitchFile(str(path))
    path.write_bytes(b"off\n")
    assert await file.read() == b"off"
    path.write_bytes(b"")  # as a shell's `>` does first

    async def write_the_rest() -> None:
        await trio.sleep(0.02)
        path.write_bytes(b"false\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_the_rest)
        assert await file.read() == b"false"


def test_a_mounted_config_map_is_followed_when_it_is_swapped(tmp_path: Path) -> None:
    """As the kubelet does it: `maintenance` → `..data/maintenance`, and `..data` → a folder with a date."""
    for name, value in (("..1", "off"), ("..2", "on")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "maintenance").write_text(value)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "maintenance").symlink_to("..data/maintenance")
    path = str(tmp_path / "maintenance")
    assert read(path) == b"off"
    (tmp_path / "..tmp").symlink_to("..2")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    assert read(path) == b"on"
    (tmp_path / "maintenance").unlink()  # the entry was taken out of the ConfigMap
    assert read(path) is None


def unreadable(path: Path, what: str) -> None:
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case "huge":
            path.write_bytes(b"x" * (LIMIT + 1))


@pytest.mark.parametrize("what", ["folder", "fifo", "device", "loop", "huge"])
def test_what_is_no_such_file_is_told_and_nobody_waits_for_it(path: Path, what: str) -> None:
    unreadable(path, what)
    with pytest.raises(CannotRead) as told:
        read(str(path))
    assert str(told.value)
    assert str(path) not in str(told.value)  # said once, by whoever shows it
    if what != "huge":
        with pytest.raises(CannotWrite, match="cannot be written"):
            write(str(path), b"on")


def test_a_folder_that_is_gone_is_not_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CannotRead, match="folder is gone"):
        read(str(tmp_path / "unmounted" / "maintenance"))
    with pytest.raises(CannotWrite, match="No such file"):
        write(str(tmp_path / "unmounted" / "maintenance"), b"on")


def test_it_is_replaced_whole_and_stays_what_it_was(tmp_path: Path, path: Path) -> None:
    (tmp_path / "real").write_text("off")
    (tmp_path / "real").chmod(0o640)
    path.symlink_to("real")
    with open(path, "rb") as reader:
        write(str(path), b"on")
        assert reader.read() == b"off"  # another file: nobody sees half of one
    assert path.is_symlink()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("on\n", 0o640)
    write(str(path), None)
    assert read(str(path)) is None
    write(str(path), None)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["maintenance"]  # the link; nothing of ours is left


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_in_a_folder_that_is_not_ours_it_is_overwritten() -> None:
    """So it is where a file is mounted by itself (`docker run -v file:file`): it can be neither removed nor replaced."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "maintenance"
        path.write_text('{"enabled": true, "by": "ops"}')
        path.chmod(0o666)
        path.parent.chmod(0o555)
        with without_privileges():
            write(str(path), None)
            assert path.read_text() == "off\n"
            write(str(path), b"on")
            assert path.read_text() == "on\n"
        path.chmod(0o444)
        for name in ("maintenance", "another"):
            with without_privileges(), pytest.raises(CannotWrite, match="Permission denied"):
                write(str(path.with_name(name)), b"off")
        path.parent.chmod(0o700)


async def test_a_disk_that_does_not_answer_costs_one_thread(tmp_path: Path) -> None:
    path = tmp_path / "maintenance"
    file = SwitchFile(str(path))
    stuck = trio.CancelScope()
    async with file._one_thread:  # as a thread on a dead mount holds it
        with stuck, trio.move_on_after(0.05):
            await file.read()
        assert file._one_thread.statistics().tasks_waiting == 0
    assert await file.read() is None
