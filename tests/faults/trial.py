"""One trial: the service as a real process under load, a line that can be broken, and the figures of what came of it.

    async with trial(row, …) as t:
        await t.start()
        async with t.outage(named="receiving failed, trying again", over="receiving works again"):
            t.sqs.reset()

What holds after every trial, whatever its fault (`settle()`): every message sent was processed (or refused on purpose), the
queue is empty, nothing was processed twice at the same time, and what was processed again has a reason that the log names.
"""

import contextlib
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd_client
from svc.settings import load
from tests.faults.proxy import Proxy, SqsProxy
from tests.live import Instance, Stand, http_client, stand
from tests.recording import MOST

VISIBILITY = 10
"""Seconds of lease in these trials: what a dead process held comes back after it."""

CALLS_LIMIT = 10.0
"""Calls per second and instance during an outage, at most: above that somebody does not back off. (Two receives, one read of the
attributes and one of /health, which the trial asks for, can fall into the same second; so can retried deletes.)"""

FILES_GROWTH, MEMORY_GROWTH = 12, 40.0
"""Open files, and MiB of memory, that a process may have more after a fault than before it. Pools keep what they have opened."""


@dataclass
class Row:
    """A line of the table."""

    name: str
    group: str
    fault: str
    sees: str
    sent: int = 0
    lost: int = 0
    """Sent, and never processed."""
    stranded: int = 0
    """Still invisible when everything is over, the leases included."""
    doubled: int = 0
    """Processed twice at the same time."""
    duplicates: int = 0
    """Processed again after having been processed."""
    why_duplicates: str = ""
    recovery: float | None = None
    """Seconds from the end of the fault until the service did again what the fault had kept it from."""
    calls_per_second: float | None = None
    """During the fault; None where nothing can be counted."""
    cpu: float | None = None
    """Part of a core that the service used during the fault."""
    memory: tuple[float, float] | None = None
    """MiB before and after."""
    files: tuple[int, int] | None = None
    named: str = ""
    """The log line that names the fault, and the one that says it is over."""
    over: str = ""


LATE = ("message lost", "message deleted when its lease was over")
"""What the log says, with the message's id, when a delete was not confirmed within the lease."""


@dataclass(frozen=True)
class Footprint:
    memory: float
    """MiB resident."""
    files: int
    cpu: float
    """Seconds used so far."""

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        status = Path(f"/proc/{pid}/status").read_text()
        rss = re.search(r"VmRSS:\s+(\d+) kB", status)
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return cls(
            memory=round(int(rss[1]) / 1024, 1) if rss else 0.0,
            files=len(os.listdir(f"/proc/{pid}/fd")),
            cpu=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        )

    @staticmethod
    def peak(pid: int) -> float:
        """MiB resident, at most, so far."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024


class Record:
    """What the processors wrote down (tests/recording.py), read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.events: list[dict[str, Any]] = []
        self.succeeded: Counter[str] = Counter()
        """Body → how often it was processed to the end."""
        self.doubled: list[str] = []
        self.stopped: dict[int, float] = {}
        """Process id → when it was killed or frozen: its runs are over, or stand still, from then on."""
        self.running: dict[str, int] = {}
        """Message id → process id."""

    def look(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        id_, pid = event["id"], event["pid"]
        if event["event"] == "began":
            holder = self.running.get(id_)
            if holder is not None and not self._stopped(holder, event["at"]):
                self.doubled.append(event["body"])
            self.running[id_] = pid
            return
        if self.running.get(id_) == pid:
            del self.running[id_]
        if event["event"] == "succeeded":
            self.succeeded[event["body"]] += 1

    def _stopped(self, pid: int, at: float) -> bool:
        return self.stopped.get(pid, at + 1) <= at

    def stopped_while_at_work_on(self, body: str) -> bool:
        return any(
            event["body"] == body and event["event"] == "began" and event["at"] <= self.stopped.get(event["pid"], 0)
            for event in self.events
        )

    def ids_of(self, body: str) -> set[str]:
        return {event["id"] for event in self.events if event["body"] == body}

    def processed_by(self, body: str) -> list[int]:
        return [event["pid"] for event in self.events if event["event"] == "succeeded" and event["body"] == body]


@dataclass
class Trial:
    """The parts of a trial. `sqs` and `etcds` are the lines between the service and the two."""

    row: Row
    stand: Stand
    sqs: SqsProxy
    etcds: list[Proxy]
    """One for each endpoint of etcd."""
    record: Record
    nursery: trio.Nursery
    environ: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    expected: Callable[[str], bool] = lambda body: True
    """Which of the messages sent are to be processed."""
    rate: float = 8.0
    """Messages per second."""
    members: Sequence[Etcd] = ()
    """The etcd of this trial's own, if it has one."""
    memory_growth: float = MEMORY_GROWTH
    settled: bool = False
    reasons: dict[str, str] = field(default_factory=dict)
    """Lines of the log that say why their message is processed again, by what stands in the table for them."""
    last_words: list[str] = field(default_factory=list)
    """What an instance may say at level critical."""
    _loading: trio.CancelScope = field(default_factory=trio.CancelScope)
    _quiet: trio.Event | None = None
    _unique: int = 0

    @property
    def etcd(self) -> Proxy:
        return self.etcds[0]

    @property
    def service(self) -> Instance:
        return self.stand.instances[-1]

    # -- the service and its load --

    async def start(self, *, load: bool = True, prefix: Sequence[str] = (), **environ: str) -> Instance:
        """Start an instance and wait until it works; then it is under load."""
        service = await self.stand.start(prefix=prefix, **{**self.environ, **environ})
        if load:
            self.load()
            await self.processes()
        return service

    def load(self) -> None:
        """Messages come in, one by one, until `quiet()` or `settle()`."""
        self._loading, self._quiet = trio.CancelScope(), trio.Event()
        self.nursery.start_soon(self._send, self._loading, self._quiet)

    async def _end_load(self) -> None:
        """No more messages come in; one that was on its way is there."""
        self._loading.cancel()
        if self._quiet is not None:
            await self._quiet.wait()

    async def quiet(self, *, within: float = 45) -> None:
        """No more messages come in, and those that came are processed."""
        await self._end_load()
        await self.until(lambda: all(self.record.succeeded[body] for body in self.sent), within=within)
        await self.stand.empty(within=within)

    async def _send(self, loading: trio.CancelScope, quiet: trio.Event) -> None:
        with loading:
            while True:
                await self.send()
                await trio.sleep(1 / self.rate)  # the rhythm of the senders
        quiet.set()

    async def send(self, **told: object) -> str:
        self._unique += 1
        body = json.dumps({"n": self._unique, **told})
        with trio.CancelScope(shield=True):
            await self.stand.queue.send(body)
        named = body[:MOST]
        self.sent.append(named)
        return named

    async def until(self, satisfied: Callable[[], object], *, within: float = 30) -> None:
        with trio.fail_after(within):
            while True:
                self.record.look()
                if satisfied():
                    return
                await trio.sleep(0.03)

    async def processes(self, *, within: float = 30) -> float:
        """Wait until a message that is sent now has been processed; returns the seconds that it took."""
        began = trio.current_time()
        body = await self.send()
        await self.until(lambda: self.record.succeeded[body], within=within)
        return trio.current_time() - began

    async def switch(self, value: str | bytes) -> None:
        """Set the maintenance key, past the broken line."""
        credentials = {name: value for name, value in self.environ.items() if name.startswith("ETCD_CA")}
        settings = load({**self.stand.environ, **credentials})
        raw = value.encode() if isinstance(value, str) else value
        await etcd_client.write(settings, settings.maintenance_key, raw)

    async def switch_when_possible(self, value: str) -> None:
        """etcd is just coming back: as an operator does, try again until it takes it."""
        with trio.fail_after(30):
            while True:
                with contextlib.suppress(etcd_client.EtcdError):
                    return await self.switch(value)
                await trio.sleep(0.1)

    async def aws(self, action: str, **parameters: str) -> str:
        """A call to SQS itself, past the line, as an administrator makes it."""
        async with http_client() as client:
            answer = await client.post(
                self.stand.environ["AWS_ENDPOINT"], data={"Action": action, "Version": "2012-11-05", **parameters}
            )
            assert answer.status_code == 200, answer.text
            return answer.text

    async def dead_letters(self) -> int:
        url = self.stand.environ["SQS_QUEUE_URL"] + "-dlq"
        answer = await self.aws("GetQueueAttributes", **{"QueueUrl": url, "AttributeName.1": "All"})
        found = re.search(r"ApproximateNumberOfMessages</Name>\s*<Value>(\d+)", answer)
        assert found is not None, answer
        return int(found[1])

    async def health(self) -> tuple[int, dict[str, Any]]:
        answer = await self.service.get("/health")
        return answer.status_code, answer.json()

    async def healthy(self, satisfied: Callable[[dict[str, Any]], object], *, within: float = 30) -> dict[str, Any]:
        """Wait until /health satisfies; asked twice a second, as an orchestrator does at most."""
        seen: object = None
        with trio.move_on_after(within):
            while True:
                try:
                    _, body = seen = await self.health()
                    if satisfied(body):
                        return body
                except httpx.TransportError as error:
                    seen = error
                await trio.sleep(0.5)
        raise AssertionError(f"/health did not come to it within {within:g} s; the last time: {seen!r}{self._log()}")

    def _log(self) -> str:
        return "\n" + "\n".join(json.dumps(line) for line in self.service.logs[-12:])

    # -- the fault --

    @contextlib.asynccontextmanager
    async def outage(
        self,
        *,
        named: str | None,
        over: str | None,
        lines: Sequence[Proxy] | None = None,
        recovers: Callable[[], Awaitable[object]] | None = None,
        calls_limit: float = CALLS_LIMIT,
        within: float = 30,
        from_the_start: bool = False,
    ) -> AsyncIterator[None]:
        """The fault is there inside the block; whoever makes it ends it (`heal()` is called in any case). Measures the calls and
        the CPU meanwhile and the recovery after it (`recovers()`; by default: a message sent now is processed), and looks for the
        two lines in the log."""
        lines = [self.sqs] if lines is None else lines
        before = Footprint.of(self.service.pid)
        already = 0 if from_the_start else len(self.service.logs)
        began = time.time()
        try:
            yield
        finally:
            unseen = any(line.refused for line in lines)
            for line in lines:
                await line.heal()
        healed, at = trio.current_time(), time.time()
        meanwhile = Footprint.of(self.service.pid)
        seconds = max(at - began, 0.1)
        calls = sum(sum(line.calls(began, at).values()) for line in lines)
        per_second = round(calls / seconds, 1)
        self.row.calls_per_second = None if unseen else per_second
        self.row.cpu = round((meanwhile.cpu - before.cpu) / seconds, 2)
        if recovers is None:
            await self.processes(within=within)
        else:
            await recovers()
        self.row.recovery = round(trio.current_time() - healed, 1)
        await self.told(named, over, since=already)
        assert per_second <= calls_limit, f"{per_second} calls per second: a hot loop"
        self.row.memory, self.row.files = (before.memory, 0.0), (before.files, 0)

    async def told(self, named: str | None, over: str | None, *, since: int = 0, within: float = 30) -> None:
        """An operator finds one line that names the fault, and one that says it is over."""
        for attribute, event in (("named", named), ("over", over)):
            if event is not None:
                setattr(self.row, attribute, event)
                await self.logged(event, since=since, within=within)

    async def logged(self, event: str, *, since: int = 0, within: float = 30) -> dict[str, Any]:
        """The first log line whose event begins so."""
        with trio.move_on_after(within):
            while True:
                for line in self.service.logs[since:]:
                    if line["event"].startswith(event):
                        return line
                await trio.sleep(0.05)
        raise AssertionError(f"not in the log within {within:g} s: {event!r}{self._log()}")

    # -- what came of it --

    async def settle(self, *, within: float = 45, exit_code: int | None = 0) -> None:
        """Stop the load, let everything be processed, look at the figures, stop the service, look again."""
        self.settled = True
        await self._end_load()
        wanted = [body for body in self.sent if self.expected(body)]
        with trio.move_on_after(within):
            await self.until(lambda: all(self.record.succeeded[body] for body in wanted), within=within)
            while await self.stand.depth() != (0, 0):
                await trio.sleep(0.1)
        if exit_code is not None:
            after = await self._footprint_at_rest()
            await self.service.statistics()  # they add up
            self.service.signal(signal.SIGTERM)
            code = await self.service.exit_code()
            assert code == exit_code, f"exit code {code}\n" + "".join(self.service.output[-20:])
            if self.row.memory is not None and self.row.files is not None:
                self.row.memory = (self.row.memory[0], after.memory)
                self.row.files = (self.row.files[0], after.files)
        self.record.look()
        self._count(wanted)
        visible, invisible = await self.stand.depth()
        self.row.stranded = invisible
        self.row.lost = max(self.row.lost - visible - invisible, 0) if visible + invisible else self.row.lost
        self._judge(visible)

    async def _footprint_at_rest(self) -> Footprint:
        """Pools and timers let go of what they hold in a few seconds."""
        with trio.move_on_after(15):
            while (found := Footprint.of(self.service.pid)).files > (self.row.files or (0, 0))[0] + FILES_GROWTH:
                await trio.sleep(0.2)
        return found

    def _count(self, wanted: list[str]) -> None:
        row, record = self.row, self.record
        row.sent = len(self.sent)
        row.lost = sum(not record.succeeded[body] for body in wanted)
        row.doubled = len(record.doubled)
        twice = [body for body in self.sent if record.succeeded[body] > 1]
        row.duplicates = sum(record.succeeded[body] - 1 for body in twice)
        reasons = Counter(self._reason(body) for body in twice)
        row.why_duplicates = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        self.unexplained = [body for body in twice if self._reason(body) == "unexplained"]

    def _reason(self, body: str) -> str:
        """Why a message was processed again."""
        (id_,) = self.record.ids_of(body)
        # Whoever processed it first could not tell the queue: it was killed, or its lease ended before the delete was confirmed.
        # Whoever was frozen in the middle goes on when it wakes, before anything can stop it.
        first, *_ = self.record.processed_by(body)
        if first in self.record.stopped or self.record.stopped_while_at_work_on(body):
            return "process killed or frozen between its work and its delete"
        told = [
            line["event"]
            for instance in self.stand.instances
            for line in instance.logs
            if line.get("message_id") == id_
        ]
        if any(event.startswith(LATE) for event in told):
            return "delete not confirmed within the lease"
        return next((self.reasons[event] for event in told if event in self.reasons), "unexplained")

    def _judge(self, visible: int) -> None:
        row = self.row
        story = json.dumps(asdict(row), indent=1)
        assert row.lost == 0, f"lost\n{story}"
        assert row.stranded == 0, f"stranded\n{story}"
        assert visible == 0, f"{visible} messages not processed in time\n{story}"
        assert row.doubled == 0, f"processed twice at the same time: {self.record.doubled}\n{story}"
        assert not self.unexplained, f"processed again without a reason: {self.unexplained}\n{story}"
        if row.files is not None and row.files[1]:
            assert row.files[1] <= row.files[0] + FILES_GROWTH, f"open files\n{story}"
        if row.memory is not None and row.memory[1]:
            assert row.memory[1] <= row.memory[0] + self.memory_growth, f"memory\n{story}"
        for instance in self.stand.instances:
            broken = [line for line in instance.logs if line.get("level") == "critical"]
            assert [line["event"] for line in broken] in ([], self.last_words), broken


@contextlib.asynccontextmanager
async def trial(
    row: Row,
    moto: Moto,
    etcd_endpoints: Sequence[str],
    name: str,
    folder: Path,
    **environ: str,
) -> AsyncIterator[Trial]:
    """A queue, a key, lines to SQS and (the first member of) etcd of their own. Leaves nothing behind."""
    record = folder / "record"
    base = {
        "WORK_SECONDS": "0.2",
        "MAX_CONCURRENCY": "20",
        "SQS_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY),
        "SQS_MAX_RECEIVE_COUNT": "20",
        "DRAIN_TIMEOUT": "10s",
        **environ,
    }
    sqs, etcds = SqsProxy(moto.url), [Proxy(endpoint) for endpoint in etcd_endpoints]
    async with (
        stand(moto, ",".join(etcd_endpoints), name, f"/faults/{name}", record, **base) as held,
        contextlib.AsyncExitStack() as inner,
    ):
        for line in (sqs, *etcds):
            await inner.enter_async_context(line.running())
        nursery = await inner.enter_async_context(trio.open_nursery())
        own = {"AWS_ENDPOINT": sqs.url, "ETCD_ENDPOINTS": ",".join(line.endpoint for line in etcds)}
        yield Trial(row, held, sqs, etcds, Record(record), nursery, {**own, **environ})
        nursery.cancel_scope.cancel()
