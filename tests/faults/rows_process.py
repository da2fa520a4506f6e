"""The process itself: signals, a full disk, no file descriptors, large messages."""

import os
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import trio

from svc.devstack.child import free_ports
from tests.faults.rows import scenario
from tests.faults.trial import Footprint, Trial
from tests.live import Instance

STOPPING = "stop asked for: draining (a second signal ends this at once)"
STOPPED = "stopped"
SERVING = 40.0
"""Calls per second where work goes on: this is no outage of SQS."""

NO_FILES = "the API cannot accept connections: the process is out of file descriptors"


async def at_work(t: Trial, service: Instance, messages: int = 1) -> None:
    await t.until(lambda: sum(pid == service.pid for pid in t.record.running.values()) >= messages)


async def others_finish(t: Trial, held: set[str], since: float, within: float = 40) -> None:
    """What the ended process held is processed by another; the time since then is the recovery."""
    await t.until(
        lambda: held <= {event["id"] for event in t.record.events if event["event"] == "succeeded"}, within=within
    )
    t.row.recovery = round(trio.current_time() - since, 1)


def held_by(t: Trial, service: Instance) -> set[str]:
    t.record.look()
    return {id_ for id_, pid in t.record.running.items() if pid == service.pid}


async def with_endless_ones(t: Trial) -> tuple[Instance, set[str]]:
    """An instance that is at work on three messages that never end with it; and their ids."""
    first = await t.start()
    await t.quiet()
    for _ in range(3):
        await t.send(seconds=3600, first=True)
    await at_work(t, first, 3)
    return first, held_by(t, first)


async def another_takes(t: Trial, held: set[str], since: float) -> None:
    """A new instance processes what the ended one held."""
    await t.start(load=False)
    await others_finish(t, held, since)


async def stops_clean(t: Trial, service: Instance, pid: int | None = None) -> float:
    """SIGTERM ends it with exit code 0 and nothing in its hands; returns when it had ended."""
    os.kill(pid or service.pid, signal.SIGTERM)
    assert await service.exit_code() == 0
    await t.told(STOPPING, STOPPED)
    assert not held_by(t, service)
    return trio.current_time()


async def another_goes_on(t: Trial, since: float) -> None:
    await t.start(load=False)
    await t.processes()
    t.row.recovery = round(trio.current_time() - since, 1)


@scenario(
    "process-sigterm",
    "SIGTERM under load",
    "what is in flight is finished, exit code 0; another instance goes on",
)
async def _(t: Trial) -> None:
    first = await t.start()
    await at_work(t, first)
    await another_goes_on(t, await stops_clean(t, first))


@scenario(
    "process-sigterm-twice",
    "SIGTERM twice, with messages that never end",
    "exit code 3 within seconds; what was unfinished is visible at once, for another instance",
)
async def _(t: Trial) -> None:
    first, held = await with_endless_ones(t)
    first.signal(signal.SIGTERM)
    await t.logged("drain begins")
    began = trio.current_time()
    first.signal(signal.SIGTERM)
    assert await first.exit_code() == 3
    assert trio.current_time() - began < 10  # 2 s, and what a busy machine takes to end a process
    await t.told("second signal: what is unfinished is released now", STOPPED)
    await another_takes(t, held, trio.current_time())


@scenario(
    "process-sigterm-at-start",
    "SIGTERM at any moment of the start",
    "the process ends within 5 s, and no message is touched before it has read the key",
)
async def _(t: Trial) -> None:
    body = await t.send()
    code = None
    for after in (0.05, 0.3, 0.6, 0.9, 1.3):
        service = Instance({**t.stand.environ, **t.environ}, prefix=["env"])  # a start with all its imports
        t.stand.instances.append(service)
        await trio.sleep(after)  # any moment will do
        began = trio.current_time()
        service.signal(signal.SIGTERM)
        code = await service.exit_code()
        assert code in (0, -signal.SIGTERM), service.output  # before it has a handler, the signal's own way
        assert trio.current_time() - began < 5 + 5  # a busy machine
    t.record.look()
    assert t.record.succeeded[body] <= 1
    await t.start()


@scenario(
    "process-sigterm-in-drain",
    "SIGTERM while a maintenance drains",
    "the running drain is the last one, with the deadline it has; exit code 0",
)
async def _(t: Trial) -> None:
    first = await t.start(load=False)
    for _ in range(3):
        await t.send(seconds=3)
    await at_work(t, first, 3)
    await t.switch("on")
    await t.logged("drain begins")
    ended = await stops_clean(t, first)
    await t.switch("off")
    await t.start()
    t.row.recovery = round(trio.current_time() - ended, 1)


@scenario(
    "process-drain-expires",
    "SIGTERM with messages that take longer than `DRAIN_TIMEOUT`",
    "exit code 3 on time; the drain's report names them, they are visible at once",
    DRAIN_TIMEOUT="2s",
)
async def _(t: Trial) -> None:
    first, held = await with_endless_ones(t)
    began = trio.current_time()
    first.signal(signal.SIGTERM)
    assert await first.exit_code() == 3
    ended = trio.current_time()
    assert ended - began < 2 + 1 + 3
    line = await t.logged("drain ended")
    assert all(id_ in line["error"] for id_ in held)
    await t.told("drain ended", STOPPED)
    await another_takes(t, held, ended)


@scenario(
    "process-pid-1",
    "SIGTERM as PID 1 of a container (a PID namespace of its own)",
    "as anywhere else: drained, exit code 0",
)
async def _(t: Trial) -> None:
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        alone += ["--user", "--map-root-user"]
    if (await trio.run_process([*alone, "true"], capture_stderr=True, check=False)).returncode != 0:
        pytest.skip("this machine lets nobody make a PID namespace (tests/containers has it with a container)")
    service = await t.start(prefix=alone)
    await t.until(lambda: 1 in {event["pid"] for event in t.record.events})
    await another_goes_on(t, await stops_clean(t, service, child_of(service.pid)))


@scenario(
    "process-sigkill",
    "SIGKILL under load, two instances",
    "what it held is visible when its lease is over, and the other instance processes it",
    by_default=True,
    SQS_VISIBILITY_TIMEOUT_SECONDS="5",
)
async def _(t: Trial) -> None:
    t.rate = 16
    await t.start(load=False)
    first = t.service
    other = await t.start()
    await at_work(t, first)
    t.record.stopped[first.pid] = time.time()
    first.signal(signal.SIGKILL)
    killed = trio.current_time()
    assert await first.exit_code() == -signal.SIGKILL
    held = held_by(t, first)
    assert t.service is other
    await others_finish(t, held, killed)


@scenario(
    "process-sigkill-all",
    "SIGKILL of the only instance under load, and a new start",
    "what it held is visible when its lease is over; the new one processes it",
    SQS_VISIBILITY_TIMEOUT_SECONDS="5",
)
async def _(t: Trial) -> None:
    first = await t.start()
    await at_work(t, first)
    t.record.stopped[first.pid] = time.time()
    first.signal(signal.SIGKILL)
    killed = trio.current_time()
    await first.exit_code()
    await another_takes(t, held_by(t, first), killed)


@scenario(
    "process-frozen",
    "a process stands still (SIGSTOP) for longer than its leases, and wakes up; two instances",
    "the other instance takes what it held; awake, it looks at the switch before it receives, and goes on",
    SQS_VISIBILITY_TIMEOUT_SECONDS="5",
)
async def _(t: Trial) -> None:
    t.rate = 16
    await t.start(load=False)
    frozen = await t.start()
    await at_work(t, frozen)
    frozen.signal(signal.SIGSTOP)
    t.record.stopped[frozen.pid] = time.time()
    held = held_by(t, frozen)
    await others_finish(t, held, trio.current_time())
    frozen.signal(signal.SIGCONT)
    await t.told(
        "this process has stood still: looking at the switch before the next receive",
        "receives may begin again after the standstill",
    )
    awake = time.time()
    await t.until(lambda: any(event["pid"] == frozen.pid and event["at"] > awake for event in t.record.events))


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def without_log(t: Trial, prefix: Sequence[str]) -> Instance:
    """An instance whose log nobody gets to see, and so not its port either; `prefix` runs it with such a stderr."""
    (port,) = free_ports(1)
    service = Instance(
        {**t.stand.environ, **t.environ, "HTTP_PORT": str(port)},
        prefix=prefix,
    )
    t.stand.instances.append(service)
    service.url = f"http://127.0.0.1:{port}"
    await t.healthy(lambda body: body["status"] == "healthy", within=60)
    t.load()
    await t.processes()
    return service


async def goes_on_without_log(t: Trial, prefix: Sequence[str]) -> Instance:
    service = await without_log(t, prefix)
    before = Footprint.of(service.pid)
    for _ in range(5):
        await t.send(fail=True, first=True)  # something to log
    await t.switch("on")
    await t.healthy(lambda body: body["status"] == "maintenance")
    await t.switch("off")
    began = trio.current_time()
    await t.processes()
    t.row.recovery = round(trio.current_time() - began, 1)
    t.row.memory, t.row.files = (before.memory, 0.0), (before.files, 0)
    return service


INTO_A_PIPE_THAT_NOBODY_READS = """
import fcntl, os, sys
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
os.set_inheritable(reader, True)
os.dup2(writer, 2)
os.execvp(sys.argv[1], sys.argv[1:])
"""


NO_LOG = "no log; work, drains, API and exit code as ever"

for name, fault, redirection in (
    ("process-log-full", "the disk is full: the log cannot be written (stderr is /dev/full)", "2>/dev/full"),
    ("process-log-closed", "whoever read the log has gone (stderr is a broken pipe)", "2> >(true)"),
):

    @scenario(name, fault, NO_LOG)
    async def _(t: Trial, redirection: str = redirection) -> None:
        await goes_on_without_log(t, ["bash", "-c", f'exec "$@" {redirection}', "bash"])


@scenario(
    "process-log-unread",
    "whoever should read the log stands still (stderr is a full pipe)",
    NO_LOG,
)
async def _(t: Trial) -> None:
    service = await goes_on_without_log(t, [sys.executable, "-c", INTO_A_PIPE_THAT_NOBODY_READS])
    pipe = os.open(f"/proc/{service.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        assert not select.select([], [pipe], [], 0)[1]  # it was full
    finally:
        os.close(pipe)


@scenario(
    "process-no-files",
    "out of file descriptors: clients hold all that `RLIMIT_NOFILE` grants",
    "new requests wait; work goes on over the connections that are open; recovers when the clients go",
)
async def _(t: Trial) -> None:
    await t.start(prefix=["prlimit", "--nofile=60:60"])
    port = int(t.service.url.rpartition(":")[2])
    async with t.outage(named=NO_FILES, over="there are file descriptors again", calls_limit=SERVING):
        end = trio.current_time() + 6
        async with trio.open_nursery() as nursery:

            async def idle() -> None:
                while trio.current_time() < end:
                    try:
                        stream = await trio.open_tcp_stream("127.0.0.1", port)
                        async with stream:
                            with trio.move_on_at(end):
                                await stream.receive_some()
                    except OSError:
                        await trio.sleep(0.1)

            for _ in range(80):
                nursery.start_soon(idle)
            await trio.sleep(2)
            await t.processes()
    assert sum(line["event"].startswith(NO_FILES) for line in t.service.logs) <= 3  # a line, not a flood


@scenario(
    "process-large-messages",
    "a backlog of 60 messages of 1 MiB each",
    "memory stays within what `MAX_CONCURRENCY` messages take",
    MAX_CONCURRENCY="10",
)
async def _(t: Trial) -> None:
    await t.start(load=False)
    await t.processes()
    before = Footprint.of(t.service.pid)
    for _ in range(60):
        await t.send(filling="x" * 1_040_000)
    began = trio.current_time()
    await t.quiet(within=90)
    t.row.recovery = round(trio.current_time() - began, 1)
    peak = Footprint.peak(t.service.pid)
    t.row.memory, t.row.files = (before.memory, 0.0), (before.files, 0)
    # Ten in flight and ten on the wire, each once as bytes, once as JSON text, once as the body; an answer on the wire is there
    # in pieces and whole for a moment; and the allocator's waste.
    t.memory_growth = (10 * 3 + 10 * 4) * 1.3
    t.row.sees += f" (at most {peak - before.memory:.0f} MiB more than idle)"
    assert peak - before.memory < t.memory_growth, f"{peak} MiB"


@scenario(
    "process-clock-jumps",
    "the machine's clock jumps a day forward, then two days back",
    "the log's timestamps; leases, drains and waits do not follow (what AWS says to it is a row of its own)",
)
async def _(t: Trial) -> None:
    folder = t.stand.record.parent
    library, jump = folder / "clock_jump.so", folder / "jump"
    source = Path(__file__).with_name("clock_jump.c")
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is needed to move the clock of one process (clock_jump.c)")
    await trio.run_process(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"])
    set_jump(jump, 0)
    await t.start(prefix=["env", f"LD_PRELOAD={library}", f"CLOCK_JUMP={jump}"])
    day = 86_400
    for seconds in (day, -day):
        before = Footprint.of(t.service.pid)
        set_jump(jump, seconds)
        t.row.recovery = round(await t.processes(), 1)
        await t.switch("on")
        body = await t.healthy(lambda body: body["status"] == "maintenance")
        assert body["drain"]["outcome"] == "drained"
        shown = datetime.fromisoformat(body["timestamp"]).timestamp()
        assert abs(shown - time.time() - seconds) < 60  # it did jump
        await t.switch("off")
        await t.processes()
        t.row.memory, t.row.files = (before.memory, 0.0), (before.files, 0)


def set_jump(path: Path, seconds: int) -> None:
    """In place: the process has the file mapped."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("l", seconds))
