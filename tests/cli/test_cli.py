"""The command line, as processes of its own: exit codes, what is said, and what is left behind."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from svc import __version__
from svc.cli.dev import told
from svc.cli.main import cli
from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd
from svc.maintenance.switch_value import parse_switch
from svc.settings import Settings, load
from svc.sqs import queue as sqs
from tests import preloaded
from tests.live import http_client
from tests.preloaded import SVC

NOWHERE = "127.0.0.1:1"  # nothing listens on port 1


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An environment in which no other stack is found, with a home of its own."""
    ours = {field.upper() for field in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("XDG_")}
    return {**kept, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "NO_COLOR": "1"}


class Ended:
    """What a process left."""

    def __init__(self, ended: "subprocess.CompletedProcess[bytes]") -> None:
        self.code = ended.returncode
        self.out = ended.stdout.decode()
        self.err = ended.stderr.decode()
        assert "Traceback" not in self.out + self.err, self.err
        assert "Error:" not in self.err or self.code != 0


async def svc(*arguments: str, environ: Mapping[str, str], cwd: Path | None = None, within: float = 20) -> Ended:
    with trio.fail_after(within):
        return Ended(await preloaded.run(*arguments, env=environ, cwd=cwd))


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


# -- arguments and settings --


async def test_version_and_help(surroundings: dict[str, str]) -> None:
    started = await trio.run_process([*SVC, "--version"], env=surroundings, capture_stdout=True, capture_stderr=True)
    assert (started.stdout.decode(), started.stderr) == (f"svc, version {__version__}\n", b"")
    told = await svc("--help", environ=surroundings)
    assert told.code == 0
    for command in ("run", "dev", "init", "maintenance", "config"):
        assert re.search(rf"^  {command} ", told.out, re.MULTILINE)


async def side_by_side(*runs: Callable[[], Awaitable[None]]) -> None:
    """Most of a short process's time is its start; two at once are quicker."""
    limit = trio.CapacityLimiter(2)

    async def one(run: Callable[[], Awaitable[None]]) -> None:
        async with limit:
            await run()

    async with trio.open_nursery() as nursery:
        for run in runs:
            nursery.start_soon(one, run)


BAD_ARGUMENTS = [
    (["nonsense"], "nonsense"),
    (["run", "more"], "more"),
    (["run", "--nonsense"], "--nonsense"),
    (["maintenance", "perhaps"], "perhaps"),
    (["init", "--messages", "-1"], "-1"),
    (["init", "--messages", "ten"], "ten"),
    (["maintenance", "on", "--for", "soon"], "'soon' is not a duration"),
    (["maintenance", "on", "--for", "0"], "'0' is not a duration"),
    (["maintenance", "on", "--for", "9999h"], "'9999h' is not a duration"),
]


@pytest.mark.parametrize(("arguments", "word"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments(arguments: list[str], word: str) -> None:
    """In this process: nothing but the parsing of arguments is begun."""
    ended = CliRunner().invoke(cli, arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert word in ended.stderr


async def test_bad_arguments_of_a_real_process(surroundings: dict[str, str]) -> None:
    ended = await svc("maintenance", "on", "--for", "soon", environ=surroundings)
    assert (ended.code, ended.out) == (2, "")
    assert "'soon' is not a duration from 1s to 720h" in ended.err


async def test_bad_settings_are_told_all_at_once(surroundings: dict[str, str]) -> None:
    bad = {"HTTP_PORT": "http", "DRAIN_TIMEOUT": "soon", "MAX_CONCURRENCY": "0", "API_TOKEN": "secret"}

    async def refused(*arguments: str) -> None:
        ended = await svc(*arguments, environ={**surroundings, **bad})
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.splitlines() == [
            "svc: HTTP_PORT holds 'http'; it must be a port from 0 to 65535",
            "svc: API_TOKEN holds an unusable value (not shown); it must be at least 8 characters, none of them a blank",
            "svc: DRAIN_TIMEOUT holds 'soon'; it must be a duration from 1s to 12h",
            "svc: MAX_CONCURRENCY holds '0'; it must be a whole number from 1 to 100000",
        ]

    commands = [["run"], ["dev"], ["init"], ["maintenance", "on"]]
    await side_by_side(*(partial(refused, *command) for command in commands))


BAD_PROCESSORS = [
    ("run", "there_is_none:handle", "there is no module 'there_is_none'"),
    ("run", "user:nothing", "module 'user' has no attribute 'nothing'"),
    ("run", "user:broken", "cannot be called with one message"),
    ("run", "broken:handle", "importing 'broken' failed: ZeroDivisionError"),
    ("dev", "broken:handle", "importing 'broken' failed: ZeroDivisionError"),
]


async def test_bad_processors(surroundings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("def broken(): pass\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")

    async def refused(command: str, processor: str, told: str) -> None:
        ended = await svc(command, environ={**surroundings, "MESSAGE_PROCESSOR": processor}, cwd=tmp_path)
        assert (ended.code, ended.out) == (2, "")
        (line,) = ended.err.splitlines()
        assert line.startswith(f"svc: MESSAGE_PROCESSOR holds {processor!r}: ")
        assert told in line

    await side_by_side(*(partial(refused, *case) for case in BAD_PROCESSORS))


async def test_a_context_manager_that_yields_no_processor(surroundings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import contextlib\n@contextlib.asynccontextmanager\nasync def held():\n    yield 3\n"
    )
    environ = {**surroundings, "MESSAGE_PROCESSOR": "user:held", "AWS_ENDPOINT": f"http://{NOWHERE}"}
    ended = await svc("run", environ=environ, cwd=tmp_path)
    assert ended.code == 2
    assert "svc: MESSAGE_PROCESSOR: 'what held yields' is a int, not a function" in ended.err


async def test_config_shows_everything_but_secrets(surroundings: dict[str, str]) -> None:
    secrets = {"API_TOKEN": "a-token-nobody-knows", "ETCD_USERNAME": "ann", "ETCD_PASSWORD": "sesame-open"}
    ended = await svc("config", environ={**surroundings, **secrets, "HTTP_PORT": "0"})
    assert ended.code == 0
    lines = [line for line in ended.out.splitlines() if not line.startswith("# ")]
    shown = dict(line.split("=", 1) for line in lines)
    assert [line for line in ended.out.splitlines() if line not in lines] == [
        f"# {name}: set" for name in ("ETCD_USERNAME", "ETCD_PASSWORD", "HTTP_PORT", "API_TOKEN")
    ]
    assert set(shown) == {field.upper() for field in Settings.model_fields}
    assert (shown["HTTP_PORT"], shown["ETCD_USERNAME"], shown["DRAIN_TIMEOUT"]) == ("0", "ann", "30s")
    assert "nobody" not in ended.out + ended.err
    assert "sesame" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("asked:handle", "# MESSAGE_PROCESSOR: runtime=asyncio, envelope=sns > eventbridge, invalid=fail"),
        ("asked:plain", "# MESSAGE_PROCESSOR: says nothing of how it is called"),
        ("asked:nothing", "# MESSAGE_PROCESSOR: cannot be used: module 'asked' has no attribute 'nothing'"),
    ],
)
async def test_config_shows_what_the_processor_says(
    surroundings: dict[str, str], tmp_path: Path, named: str, line: str
) -> None:
    (tmp_path / "asked.py").write_text(
        "from svc import Message, processor\n"
        "@processor(runtime='asyncio', envelope=('sns', 'eventbridge'), invalid='fail')\n"
        "async def handle(order: dict) -> None: ...\n"
        "def plain(message: Message) -> None: ...\n"
    )
    ended = await svc("config", environ={**surroundings, "MESSAGE_PROCESSOR": named, "PYTHONPATH": str(tmp_path)})
    assert ended.code == 0
    assert line in ended.out.splitlines()


# -- the world is not as it should be --


async def test_the_port_is_in_use(surroundings: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = {
            **surroundings,
            "HTTP_PORT": str(port),
            "AWS_ENDPOINT": f"http://{NOWHERE}",
            "ETCD_ENDPOINTS": NOWHERE,
        }
        ended = await svc("run", environ=environ)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(
        f"svc: cannot listen on 127.0.0.1:{port}: Address already in use; set HTTP_HOST"
    )


async def test_an_address_of_another_machine(surroundings: dict[str, str]) -> None:
    ended = await svc("run", environ={**surroundings, "HTTP_HOST": "192.0.2.1", "AWS_ENDPOINT": f"http://{NOWHERE}"})
    assert ended.code == 1
    assert "svc: cannot listen on 192.0.2.1:8082: Cannot assign requested address" in ended.err


async def test_an_error_of_the_processor_s_own_is_not_taken_for_ours(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    """An OSError while its connections are opened has nothing to do with the port."""
    (tmp_path / "user.py").write_text(
        "import contextlib\n@contextlib.asynccontextmanager\nasync def held():\n    open('/there/is/none')\n    yield print\n"
    )
    environ = {
        **surroundings,
        "MESSAGE_PROCESSOR": "user:held",
        "AWS_ENDPOINT": f"http://{NOWHERE}",
        "LOG_FORMAT": "json",
    }
    with trio.fail_after(20):
        ended = await preloaded.run("run", env=environ, cwd=tmp_path)
    assert ended.returncode == 1
    assert b"HTTP_PORT" not in ended.stderr
    last = json.loads(ended.stderr.splitlines()[-1])
    assert (last["event"], last["level"]) == ("the service has failed", "critical")
    assert "/there/is/none" in last["exception"]


async def test_maintenance_without_etcd(surroundings: dict[str, str]) -> None:
    async def fails(command: str) -> None:
        began = time.monotonic()
        ended = await svc("maintenance", command, environ={**surroundings, "ETCD_ENDPOINTS": NOWHERE})
        assert (ended.code, ended.out) == (1, "")
        assert time.monotonic() - began < 8
        (line,) = ended.err.splitlines()
        assert line.startswith("svc: etcd")
        assert NOWHERE in line

    await side_by_side(*(partial(fails, command) for command in ("on", "off", "status")))


async def test_init_without_sqs(surroundings: dict[str, str]) -> None:
    ended = await svc("init", environ={**surroundings, "AWS_ENDPOINT": f"http://{NOWHERE}"})
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("svc: ")
    assert "AWS_ENDPOINT" in line


# -- etcd --


async def test_maintenance_on_off_status(surroundings: dict[str, str], etcd: Etcd, key_prefix: str) -> None:
    environ = {**surroundings, "ETCD_ENDPOINTS": etcd.endpoint, "MAINTENANCE_KEY": key_prefix + "key"}
    settings = load(environ)
    run = {"environ": environ}

    async def held() -> Any:
        return await read(settings)

    status = await svc("maintenance", "status", **run)
    assert (status.code, status.err) == (0, "")
    assert status.out == f"maintenance: off\nkey: {key_prefix}key (not set)\ninstances: none is registered\n"

    on = await svc("maintenance", "on", **run)
    assert on.code == 0
    state = await held()
    assert state.value == b"true"
    assert on.out == f"maintenance is on (key {key_prefix}key, revision {state.mod_revision})\n"
    assert (await svc("maintenance", "status", **run)).out.startswith("maintenance: on\n")

    on = await svc("maintenance", "on", "--reason", 'new "disks" é', "--by", "ann", "--for", "1m30s", **run)
    assert on.code == 0
    assert "on, for 90 s" in on.out
    state = await held()
    switch = parse_switch(state.value)
    assert (switch.on, switch.reason, switch.by) == (True, 'new "disks" é', "ann")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", switch.until or "")
    assert 80 < (state.expires_in or 0) <= 90  # etcd ends it by itself
    status = await svc("maintenance", "status", **run)
    assert 'reason: new "disks" é\nby: ann\nends by itself in: ' in status.out

    off = await svc("maintenance", "off", **run)
    assert (off.code, off.out) == (1, "")
    assert off.err.startswith('svc: maintenance is on by ann (new "disks" é), until 20')
    assert "--force" in off.err
    assert (await held()).value == state.value
    off = await svc("maintenance", "off", "--by", "ann", **run)
    assert off.out.startswith("maintenance is off (key ")
    state = await held()
    assert (state.value, state.expires_in) == (b"false", None)
    assert "maintenance: off" in (await svc("maintenance", "status", **run)).out


async def test_status_of_a_garbage_value(surroundings: dict[str, str], etcd: Etcd, key_prefix: str) -> None:
    environ = {**surroundings, "ETCD_ENDPOINTS": etcd.endpoint, "MAINTENANCE_KEY": key_prefix + "key"}
    await write(load(environ), b"perhaps")
    status = await svc("maintenance", "status", environ=environ)
    assert status.code == 0
    assert status.out.startswith("maintenance: unknown, the services keep the state they have (the value 'perhaps'")


async def read(settings: Settings) -> Any:
    return await etcd.read(settings, settings.maintenance_key)


async def write(settings: Settings, value: bytes) -> None:
    await etcd.write(settings, settings.maintenance_key, value)


# -- SQS --


async def test_init_is_idempotent(surroundings: dict[str, str], moto: Moto, queue_name: str) -> None:
    queue = {
        "SQS_QUEUE_URL": moto.queue_url(queue_name),
        "AWS_ENDPOINT": moto.url,
        "SQS_DLQ_NAME": f"{queue_name}-dead",
    }
    environ = {**surroundings, **queue, "SQS_MAX_RECEIVE_COUNT": "7"}
    first = await svc("init", "--messages", "3", environ=environ)
    assert (first.code, first.err) == (0, "")
    assert f"queue {queue['SQS_QUEUE_URL']}: created\n" in first.out
    assert "sent 3 messages" in first.out
    second = await svc("init", environ=environ)
    assert second.code == 0
    assert f"queue {queue['SQS_QUEUE_URL']}: was there\n" in second.out
    assert "sent" not in second.out
    async with sqs.opened(load(environ), polls=1) as opened:
        attributes = await opened.attributes()
    assert attributes["ApproximateNumberOfMessages"] == "3"
    assert json.loads(attributes["RedrivePolicy"])["maxReceiveCount"] in (7, "7")
    assert json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].endswith(f":{queue_name}-dead")


# -- svc dev --


class Dev:
    """A running `svc dev`."""

    def __init__(self, process: preloaded.Process, output: Path) -> None:
        self.process = process
        self._output = output
        self.children: set[int] = set()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def logs(self) -> list[dict[str, Any]]:
        """Every line of the log; all but the block of first instructions is JSON."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def url(self) -> str:
        found = re.search(r"^    API    (\S+)$", self.output, re.MULTILINE)
        assert found
        return found[1]

    async def ready(self) -> None:
        with trio.fail_after(30):
            while "svc runs on an embedded stack" not in self.output:
                assert self.process.poll() is None, self.output
                await trio.sleep(0.05)
        self.children = descendants(self.process.pid)

    async def statistics(self) -> dict[str, Any]:
        async with http_client(self.url) as client:
            figures: dict[str, Any] = (await client.get("/messages/stats")).json()["sqs"]
        return figures

    async def status(self) -> str:
        async with http_client(self.url) as client:
            return str((await client.get("/health")).json()["status"])


@asynccontextmanager
async def dev(
    surroundings: dict[str, str], tmp_path: Path, *, arguments: tuple[str, ...] = (), **variables: str
) -> AsyncIterator[Dev]:
    environ = {**surroundings, "HTTP_PORT": "0", "LOG_FORMAT": "json", "SIMULATED_WORK_SECONDS": "0.1", **variables}
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = preloaded.popen(["dev", *arguments], env=environ, stderr=file, stdout=file, cwd=tmp_path)
    running = Dev(process, output)
    try:
        await running.ready()
        yield running
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 15):
            if process.poll() is None:
                process.kill()
            await preloaded.exited(process)
            await all_gone(running.children)


def announcements(runtime: Path) -> list[Path]:
    return list(runtime.glob("svc/dev-*.json"))


async def all_gone(pids: set[int]) -> None:
    with trio.fail_after(10):
        while not all(gone(pid) for pid in pids):
            await trio.sleep(0.05)


async def test_dev_from_its_start_to_ctrl_c(surroundings: dict[str, str], tmp_path: Path) -> None:
    async with dev(surroundings, tmp_path) as running:
        assert len(running.children) >= 2, "moto and etcd"
        with trio.fail_after(15):
            while (await running.statistics())["messages_processed"] < 3:
                await trio.sleep(0.05)
        assert (await running.statistics())["messages_received"] == 3

        # Found without any setting, from anywhere.
        on = await svc("maintenance", "on", "--reason", "a look", environ=surroundings)
        assert on.code == 0
        assert f"svc dev of process {running.process.pid}, {running.url}" in on.err
        with trio.fail_after(15):
            while await running.status() != "maintenance":
                await trio.sleep(0.05)
        async with http_client(running.url) as client:
            sent = {"json": {"message": "hello"}}
            refused = await client.post("/messages/send", **sent)
            assert (refused.status_code, refused.json()["reason"]) == (503, "a look")
            assert (await svc("maintenance", "off", environ=surroundings)).code == 0
            with trio.fail_after(5):
                while await running.status() != "healthy":
                    await trio.sleep(0.05)
            assert (await client.post("/messages/send", **sent)).status_code == 200
        with trio.fail_after(10):
            while (await running.statistics())["messages_processed"] < 4:
                await trio.sleep(0.05)

        running.process.send_signal(signal.SIGINT)
        with trio.fail_after(15):
            assert await preloaded.exited(running.process) == 0
        assert all(gone(pid) for pid in running.children)
    lines = running.logs()
    assert all({"event", "level", "timestamp", "logger"} <= set(line) for line in lines)
    assert not [line for line in lines if line["level"] in ("warning", "error", "critical")]
    work = [line for line in lines if line["event"] == "simulated work done"]
    assert len({line["message_id"] for line in work}) == 4
    assert [line["event"] for line in lines].count("drain ended") == 2
    assert "Traceback" not in running.output
    # What it had announced is taken back: without it and without settings there is no etcd to be found.
    assert announcements(tmp_path) == []


@pytest.mark.parametrize(
    ("processor", "body", "hint"),
    [
        ("svc.processors:simulated", "Hello from SQS!", ":"),
        ("svc.database.example:write_order", "Hello from SQS!", ":"),
        ("orders:handle", '{"id": 7}', ' (in place of {"id": 7} a body that orders:handle takes):'),
    ],
)
def test_dev_suggests_a_message_that_the_processor_may_take(processor: str, body: str, hint: str) -> None:
    said = told(processor, url="http://localhost:8082", sqs="http://localhost:1", etcd="localhost:2")
    assert f"  Try, in another terminal of this folder{hint}\n" in said
    [sends] = [line for line in said.splitlines() if "/messages/send" in line]
    *_, document = shlex.split(sends)
    assert json.loads(document) == {"message": body}


async def test_dev_with_a_database_of_its_own_says_that_another_one_is_not_used(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    broken = {**surroundings, "MESSAGE_PROCESSOR": "there_is_none:handle", "DATABASE_URL": "postgresql://a:b@db/orders"}
    ended = await svc("dev", "--database", environ=broken, cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.splitlines()[0] == (
        "svc: DATABASE_URL is set and not used: --database starts a PostgreSQL of its own"
    )


async def test_dev_killed_leaves_no_process_behind(surroundings: dict[str, str], tmp_path: Path) -> None:
    async with dev(surroundings, tmp_path) as running:
        assert not any(gone(pid) for pid in running.children)
        running.process.send_signal(signal.SIGKILL)
        await preloaded.exited(running.process)
        await all_gone(running.children)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev_stopped_while_it_starts(
    number: signal.Signals, surroundings: dict[str, str], tmp_path: Path
) -> None:
    """In the middle of starting its stack: a clean stop all the same, that takes back what was begun."""
    process = await trio.lowlevel.open_process(
        [*SVC, "dev"],
        env={**surroundings, "HTTP_PORT": "0"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    seen: set[int] = set()
    with trio.fail_after(20):
        while len(seen) < 2:  # a leash, and what it holds
            seen |= descendants(process.pid)
            await trio.sleep(0.01)
        process.send_signal(number)
        assert process.stderr is not None
        said = b""
        async for piece in process.stderr:
            said += piece
        assert (await process.wait(), said.decode()) == (0, "")
    await all_gone(seen)
