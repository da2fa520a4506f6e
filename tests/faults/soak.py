"""The soak: two instances under load, and one trouble after another, drawn at random, for as long as is wanted.

    python -m tests.faults.soak --minutes 30 --seed 1 [--log FILE]

Seeded: the same seed draws the same troubles in the same order (when they strike is a matter of the machine). It prints, and
writes to the log file, what it does and sees; at the end the figures and a table of the troubles. Exit code 1 when anything did
not hold: a message lost, stranded, processed twice at once, or again without a reason; no recovery within a minute; calls in a
hot loop; an instance that dies, exits with the wrong code, or grows. It ends by itself, and leaves nothing behind but its log.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import trio

from svc.devstack.stack import Etcd, Moto
from tests.border.odd import FOREIGN, poisoned
from tests.faults.proxy import Answer
from tests.faults.rows_http import ODD_REQUESTS
from tests.faults.trial import Footprint, Row, Trial, trial
from tests.faults.troublesome import RAISED
from tests.live import Instance

QUIET = (4.0, 10.0)
"""Seconds between two troubles."""

RECOVERY = 60.0
"""Seconds within which a message sent after a trouble has to be processed."""

CALLS_LIMIT = 40.0
"""Calls per second of both instances during a trouble."""

FILES, MEMORY = 25, 60.0
"""Open files, and MiB, that an instance may have more at its end than when it had run for `GROWN_UP` seconds."""

GROWN_UP = 90.0

ODD_CLIENTS = "slow and odd clients"


@dataclass
class Seen:
    """What came of one kind of trouble."""

    times: int = 0
    recoveries: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)


@dataclass
class Life:
    """An instance, and how it grew."""

    instance: Instance
    born: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Age, MiB, open files."""


class Soak:
    def __init__(self, t: Trial, etcd: Etcd, rng: random.Random, log: TextIO, environ: dict[str, str]) -> None:
        self.t = t
        self.own_etcd = etcd
        self.rng = rng
        self.log = log
        self.environ = environ
        self.began = trio.current_time()
        self.lives: list[Life] = []
        self.ended: list[Life] = []
        self.seen: dict[str, Seen] = {}
        self.violations: list[str] = []
        self.troubled: str | None = None

    def tell(self, text: str) -> None:
        line = f"{trio.current_time() - self.began:7.1f} s  {text}"
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def violation(self, text: str) -> None:
        self.violations.append(text)
        self.tell(f"VIOLATION: {text}")

    # -- instances --

    async def start(self) -> Life:
        instance = await self.t.stand.start(**{**self.t.environ, **self.environ})
        life = Life(instance, trio.current_time())
        self.lives.append(life)
        return life

    async def end(self, life: Life, number: signal.Signals, codes: tuple[int, ...], times: int = 1) -> None:
        self.lives.remove(life)
        self.ended.append(life)
        if number == signal.SIGKILL:
            self.t.record.stopped[life.instance.pid] = time.time()
        life.instance.signal(number)
        if times == 2:
            with contextlib.suppress(AssertionError):
                await life.instance.logged("drain begins", within=10)
            life.instance.signal(number)
        code = await life.instance.exit_code(within=60)
        if code not in codes:
            self.violation(f"instance {life.instance.pid} ended with {code}, not one of {codes}")

    async def sample(self) -> None:
        """Every 15 s: how things stand. An instance that died by itself is a violation."""
        while True:
            self.t.record.look()
            shown = []
            for life in list(self.lives):
                if life.instance.ended:
                    self.violation(f"instance {life.instance.pid} is gone:\n" + "".join(life.instance.output[-20:]))
                    self.lives.remove(life)
                    self.ended.append(life)
                    await self.start()
                    continue
                now = Footprint.of(life.instance.pid)
                if self.troubled != ODD_CLIENTS:  # their connections are there until they go
                    life.samples.append((trio.current_time() - life.born, now.memory, now.files))
                shown.append(f"{life.instance.pid}: {now.memory:.0f} MiB, {now.files} files, {now.cpu:.0f} s CPU")
            done = len(self.t.record.succeeded)
            self.tell(f"{len(self.t.sent)} sent, {done} processed; " + "; ".join(shown))
            await trio.sleep(15)

    # -- the load --

    async def load(self) -> None:
        """Four messages a second, of every kind."""
        rng = random.Random(self.rng.random())
        while True:
            kind = rng.random()
            if kind < 0.03:
                await self.t.send(fail=True, first=True)
            elif kind < 0.05:
                await self.t.send(**{"raise": rng.choice(list(RAISED))})
            elif kind < 0.07:
                await self.t.send(seconds=14)  # longer than the lease
            elif kind < 0.09:
                await self.t.send(filling="x" * 200_000)
            else:
                await self.t.send()
            await trio.sleep(0.25)  # the rhythm of the senders

    # -- one trouble after another --

    async def trouble(self, name: str, strike: Callable[["Soak"], Awaitable[None]]) -> None:
        self.tell(f"begins: {name}")
        seen = self.seen.setdefault(name, Seen())
        seen.times += 1
        began = time.time()
        self.troubled = name
        try:
            with trio.fail_after(150):
                await strike(self)
        except Exception as error:
            self.violation(f"{name}: {error!r}")
        for line in (self.t.sqs, *self.t.etcds):
            await line.heal()
        seconds = max(time.time() - began, 1)
        calls = sum(self.t.sqs.calls(began, time.time()).values()) / seconds
        seen.calls.append(calls)
        if calls > CALLS_LIMIT:
            self.violation(f"{name}: {calls:.0f} calls per second")
        try:
            seen.recoveries.append(await self.t.processes(within=RECOVERY))
            self.tell(f"over: {name}; recovered in {seen.recoveries[-1]:.1f} s, {calls:.1f} calls/s")
        except trio.TooSlowError:
            self.violation(f"{name}: no message was processed within {RECOVERY:g} s of its end")
        self.troubled = None

    async def run(self, seconds: float) -> None:
        for _ in range(2):
            await self.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sample)
            nursery.start_soon(self.load)
            deck: list[str] = []
            while trio.current_time() < self.began + seconds:
                if not deck:  # every kind once, in an order of its own, then again
                    deck = list(TROUBLES)
                    self.rng.shuffle(deck)
                name = deck.pop()
                await self.trouble(name, TROUBLES[name])
                await trio.sleep(self.rng.uniform(*QUIET))
            nursery.cancel_scope.cancel()
        await self.settle()

    async def settle(self) -> None:
        """Everything sent is processed, the instances stop cleanly, the figures are looked at."""
        self.tell("the load has ended; everything has to be processed now")
        t = self.t
        open_ = set(t.sent)
        with trio.move_on_after(120):
            while open_ or await t.stand.depth() != (0, 0):
                t.record.look()
                open_ -= t.record.succeeded.keys()
                await trio.sleep(0.5)
        for life in list(self.lives):
            now = Footprint.of(life.instance.pid)
            life.samples.append((trio.current_time() - life.born, now.memory, now.files))
            await self.end(life, signal.SIGTERM, (0,))
        t.record.look()
        t._count(list(t.sent))
        visible, t.row.stranded = await t.stand.depth()
        row = t.row
        for wrong, text in (
            (row.lost, f"{row.lost} messages lost"),
            (row.stranded, f"{row.stranded} messages stranded"),
            (visible, f"{visible} messages left in the queue"),
            (row.doubled, f"{row.doubled} processed twice at once: {t.record.doubled[:5]}"),
            (t.unexplained, f"processed again without a reason: {t.unexplained[:5]}"),
        ):
            if wrong:
                self.violation(text)
        for life in self.ended:
            self.grown(life)
            for line in life.instance.logs:
                if line.get("level") == "critical":
                    self.violation(f"instance {life.instance.pid}: {line}")

    def grown(self, life: Life) -> None:
        adult = [sample for sample in life.samples if sample[0] >= GROWN_UP]
        if len(adult) < 2:
            return
        (_, memory, files), (age, last_memory, last_files) = adult[0], adult[-1]
        if last_memory > memory + MEMORY or last_files > files + FILES:
            self.violation(
                f"instance {life.instance.pid} grew in {age:.0f} s from {memory:.0f} MiB and {files} files to "
                f"{last_memory:.0f} MiB and {last_files}"
            )

    def report(self, seed: int) -> str:
        row, record = self.t.row, self.t.record
        calls = len(self.t.sqs.requests)
        adults = [life for life in self.ended if life.samples]
        memory = [sample[1] for life in adults for sample in life.samples]
        files = [sample[2] for life in adults for sample in life.samples]
        troubles = sum(seen.times for seen in self.seen.values())
        lines = [
            f"soak, seed {seed}: {(trio.current_time() - self.began) / 60:.1f} minutes, {troubles} troubles of "
            f"{len(self.seen)} kinds, {len(self.ended)} instances",
            f"messages: {row.sent} sent, {len(record.succeeded)} processed, {row.lost} lost, {row.stranded} stranded, "
            f"{row.doubled} twice at once, {row.duplicates} again ({row.why_duplicates or 'none'})",
            f"SQS calls through the line: {calls}",
            f"memory {min(memory, default=0):.0f}-{max(memory, default=0):.0f} MiB, open files "
            f"{min(files, default=0)}-{max(files, default=0)}",
            "",
            "| trouble | times | recovery, median | recovery, worst | calls/s, worst |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, seen in sorted(self.seen.items()):
            found = sorted(seen.recoveries) or [float("nan")]
            recoveries = f"{found[len(found) // 2]:.1f} s | {found[-1]:.1f} s"
            lines.append(f"| {name} | {seen.times} | {recoveries} | {max(seen.calls, default=0):.1f} |")
        lines += ["", f"violations: {len(self.violations)}", *self.violations]
        return "\n".join(lines)


# -- the troubles --

TROUBLES: dict[str, Callable[[Soak], Awaitable[None]]] = {}


def trouble(name: str) -> Callable[[Callable[[Soak], Awaitable[None]]], Callable[[Soak], Awaitable[None]]]:
    def add(strike: Callable[[Soak], Awaitable[None]]) -> Callable[[Soak], Awaitable[None]]:
        TROUBLES[name] = strike
        return strike

    return add


def on_the_line(name: str, break_it: Callable[[Trial], None], least: float, most: float) -> None:
    @trouble(name)
    async def strike(soak: Soak) -> None:
        break_it(soak.t)
        await trio.sleep(soak.rng.uniform(least, most))


on_the_line("SQS refused", lambda t: t.sqs.refuse(), 2, 12)
on_the_line("SQS resets", lambda t: t.sqs.reset(), 2, 12)
on_the_line("SQS cuts", lambda t: t.sqs.cut(), 2, 12)
on_the_line("SQS hangs", lambda t: t.sqs.hang(), 2, 15)
on_the_line("SQS half-open", lambda t: t.sqs.half_open(), 0, 1)
on_the_line("SQS slow", lambda t: t.sqs.slow(3), 4, 10)
on_the_line("SQS narrow", lambda t: t.sqs.throttle(500), 4, 10)
on_the_line("SQS receives lost", lambda t: t.sqs.lose_answers("ReceiveMessage"), 2, 6)
on_the_line("SQS deletes lost", lambda t: t.sqs.lose_answers("DeleteMessageBatch", "DeleteMessage"), 2, 6)
on_the_line("SQS 500", lambda t: t.sqs.answer(Answer(500, "InternalFailure")), 2, 12)
on_the_line("SQS 503", lambda t: t.sqs.answer(Answer(503, "ServiceUnavailable")), 2, 12)
on_the_line("SQS throttles", lambda t: t.sqs.answer(Answer(400, "com.amazonaws.sqs#RequestThrottled")), 2, 12)
on_the_line(
    "SQS credentials expired",
    lambda t: t.sqs.answer(Answer(403, "com.amazon.coral.service#ExpiredTokenException")),
    2,
    12,
)
on_the_line(
    "SQS deletes fail",
    lambda t: t.sqs.answer(Answer(500, "InternalFailure"), "DeleteMessageBatch", "DeleteMessage"),
    4,
    14,
)
on_the_line(
    "SQS extensions fail",
    lambda t: t.sqs.answer(Answer(500, "InternalFailure"), "ChangeMessageVisibilityBatch"),
    4,
    12,
)
on_the_line("SQS answers oddly", lambda t: t.sqs.odd(FOREIGN), 2, 12)
on_the_line("SQS hands out poison", lambda t: t.sqs.rewrite("ReceiveMessage", poisoned()), 2, 12)
on_the_line("SQS confirms nothing", lambda t: t.sqs.rewrite("DeleteMessageBatch", lambda answer: {}), 2, 6)
on_the_line("etcd resets", lambda t: t.etcd.reset(), 2, 12)
on_the_line("etcd cut off", lambda t: t.etcd.hang(), 4, 15)
on_the_line("etcd half-open", lambda t: t.etcd.half_open(), 0, 1)
on_the_line("etcd slow", lambda t: t.etcd.slow(2), 4, 12)


def both(t: Trial) -> None:
    t.sqs.hang()
    t.etcd.hang()


on_the_line("SQS and etcd cut off", both, 4, 12)


@trouble("etcd killed")
async def _(soak: Soak) -> None:
    await trio.to_thread.run_sync(soak.own_etcd.kill)
    await trio.sleep(soak.rng.uniform(1, 8))
    await trio.to_thread.run_sync(soak.own_etcd.restart)


@trouble("etcd frozen")
async def _(soak: Soak) -> None:
    soak.own_etcd.freeze()
    try:
        await trio.sleep(soak.rng.uniform(2, 12))
    finally:
        soak.own_etcd.thaw()


@trouble("maintenance")
async def _(soak: Soak) -> None:
    """Nothing is begun between the end of the drains and the switching off."""
    t = soak.t
    await t.switch_when_possible("on")
    for life in soak.lives:
        await life.instance.reaches("maintenance", within=60)
    t.record.look()
    begun = sum(event["event"] == "began" for event in t.record.events)
    await trio.sleep(soak.rng.uniform(1, 6))
    t.record.look()
    if sum(event["event"] == "began" for event in t.record.events) != begun:
        soak.violation("messages were begun in maintenance")
    await t.switch_when_possible("off")


@trouble("maintenance, with SQS failing meanwhile")
async def _(soak: Soak) -> None:
    t = soak.t
    t.sqs.reset()
    await t.switch_when_possible("on")
    await trio.sleep(soak.rng.uniform(1, 4))
    await t.sqs.heal()
    for life in soak.lives:
        await life.instance.reaches("maintenance", within=60)
    await t.switch_when_possible("off")


@trouble("maintenance on and off in haste")
async def _(soak: Soak) -> None:
    for value in ("on", "off") * 5:
        await soak.t.switch_when_possible(value)
        await trio.sleep(soak.rng.uniform(0, 0.6))


@trouble("etcd's key holds 1 MiB")
async def _(soak: Soak) -> None:
    await soak.t.switch(b"x" * 1_048_576)
    await trio.sleep(2)
    await soak.t.switch_when_possible("off")


@trouble("SIGTERM and a new instance")
async def _(soak: Soak) -> None:
    # With a message of 14 s in its hands the drain may use its whole time.
    await soak.end(soak.lives[0], signal.SIGTERM, (0, 3))
    await soak.start()


@trouble("SIGTERM twice and a new instance")
async def _(soak: Soak) -> None:
    await soak.end(soak.lives[0], signal.SIGTERM, (0, 3), times=2)
    await soak.start()


@trouble("SIGKILL and a new instance")
async def _(soak: Soak) -> None:
    await soak.end(soak.lives[0], signal.SIGKILL, (-signal.SIGKILL,))
    await soak.start()


@trouble("SIGTERM with SQS hanging")
async def _(soak: Soak) -> None:
    soak.t.sqs.hang()
    await soak.end(soak.lives[0], signal.SIGTERM, (0, 3))
    await soak.t.sqs.heal()
    await soak.start()


@trouble("a processor blocks for 2 s")
async def _(soak: Soak) -> None:
    await soak.t.send(block=2)
    await trio.sleep(3)


@trouble(ODD_CLIENTS)
async def _(soak: Soak) -> None:
    port = int(soak.lives[0].instance.url.rpartition(":")[2])

    async def client(said: bytes) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError), trio.move_on_after(8):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(said)
                while await stream.receive_some():
                    pass

    async with trio.open_nursery() as nursery:
        for said in (*ODD_REQUESTS, *[b"GET /health HTTP/1.1\r\nX: "] * 60):
            nursery.start_soon(client, said)


async def soak(minutes: float, seed: int, log: TextIO, folder: Path) -> int:
    environ = {
        "MESSAGE_PROCESSOR": "tests.faults.troublesome:handle",
        "RETRY_BACKOFF": "1s-5s",
        "SQS_MAX_RECEIVE_COUNT": "100",
        "DRAIN_TIMEOUT": "8s",
        # Two in a hundred fail on purpose; the breaker's own tests are elsewhere.
    }
    row = Row("soak", "", "", "")
    with Moto() as moto, Etcd() as etcd:
        async with trial(row, moto, [etcd.endpoint], f"soak-{seed}", folder, **environ) as t:
            run = Soak(t, etcd, random.Random(seed), log, environ)
            try:
                with trio.fail_after(minutes * 60 + 600):
                    await run.run(minutes * 60)
            except Exception as error:
                run.violation(f"the soak itself broke: {error!r}")
            finally:
                report = run.report(seed)
                print(report)
                print(report, file=log, flush=True)
                if run.violations:
                    keep_logs(run, log)
            return 1 if run.violations else 0


def keep_logs(run: Soak, log: TextIO) -> None:
    """What the instances said last, for whoever looks for the reason."""
    for life in (*run.lives, *run.ended):
        print(f"\n--- instance {life.instance.pid}", file=log)
        log.writelines(life.instance.output[-2000:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--log", type=Path, default=None, help="default: soak-SEED.log among the temporary files")
    told = parser.parse_args()
    seed = told.seed if told.seed is not None else random.SystemRandom().randrange(10_000)
    path = told.log or Path(tempfile.gettempdir()) / f"soak-{seed}.log"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_EC2_METADATA_DISABLED="true",
        no_proxy="127.0.0.1,localhost",
        NO_PROXY="127.0.0.1,localhost",
    )
    print(f"seed {seed}, {told.minutes:g} minutes, log: {path}")
    with tempfile.TemporaryDirectory(prefix="svc-soak-") as folder, path.open("w") as log:
        return trio.run(soak, told.minutes, seed, log, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
