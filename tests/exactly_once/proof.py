"""The run: what is started, killed and cut; and the judgement at the end."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psycopg
import trio

from svc.devstack.postgres import Postgres
from tests.bench.stub import ACCOUNT
from tests.bench.stubbed import Stub
from tests.faults.proxy import Proxy

COLOURS = ("on_trio", "on_asyncio", "in_a_thread", "in_batches")

VISIBILITY = 6
"""Seconds of a lease: after so many what a killed instance held comes back."""

BATCH = 5_000
"""Messages that are put at once: the queue holds so many more when half of them are gone."""

TABLES = """
CREATE TABLE effects (number bigint, pid int);
CREATE TABLE more_effects (number bigint, pid int);
"""


@dataclass
class Found:
    """What came of it."""

    messages: int
    seconds: float = 0.0
    did: Counter[str] = field(default_factory=Counter)
    """kills, freezes, cuts, terminated backends."""
    told: Counter[str] = field(default_factory=Counter)
    """Of the instances' logs: duplicates, failures, …"""
    faults: list[str] = field(default_factory=list)
    """Empty: each message is there exactly once."""


class Instance:
    """One `svc run`."""

    def __init__(self, environ: dict[str, str], folder: Path, number: int) -> None:
        self.path = folder / f"instance-{number}.log"
        self._log: TextIO = self.path.open("w")
        self.frozen = False
        self.child = subprocess.Popen(
            [sys.executable, "-m", "svc", "run"], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._log, start_new_session=True,
        )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        if self.child.poll() is None:
            self.child.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.child.wait()
        self._log.close()


class Proof:
    def __init__(
        self, messages: int, instances: int, every: float, rng: random.Random, stub: Stub, postgres: Postgres
    ) -> None:
        self.found = Found(messages)
        self._instances = instances
        self._every = every
        self._rng = rng
        self._stub = stub
        self._postgres = postgres
        self._proxy = Proxy(f"127.0.0.1:{postgres.port}")
        self._queue = "exactly-once"
        self._live: list[Instance] = []
        self._all: list[Instance] = []
        self._numbers = itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="svc-exactly-once-"))
        self._sent = 0

    def _environ(self, number: int) -> dict[str, str]:
        url = self._postgres.url.replace(f":{self._postgres.port}/", f":{self._proxy.port}/")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_ENDPOINT": self._stub.url,
            "SQS_QUEUE_URL": f"{self._stub.url}/{ACCOUNT}/{self._queue}",
            "SQS_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY),
            "RETRY_BACKOFF": "1s-2s",
            "BREAKER_FAILURES": "off",
            "ETCD_ENDPOINTS": "off",
            "INSTANCE_ID": f"proof-{number}",
            "HTTP_PORT": "0",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info",
            "MAX_CONCURRENCY": "20",
            "DATABASE_URL": url,
            "DATABASE_TIMEOUT": "3s",
            "DRAIN_TIMEOUT": "10s",
            "MESSAGE_PROCESSOR": f"tests.exactly_once.processors:{COLOURS[number % len(COLOURS)]}",
        }

    async def run(self, seconds: float) -> Found:
        began = time.monotonic()
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            connection.execute(TABLES)
        self._stub.sqs(
            "CreateQueue",
            QueueName=self._queue,
            Attributes={"VisibilityTimeout": str(VISIBILITY), "Duplicates": "0.02"},
        )
        async with self._proxy.running(), trio.open_nursery() as trouble:
            self._init()
            try:
                for _ in range(self._instances):
                    self._start()
                for does in (self._kill, self._freeze, self._cut, self._terminate):
                    trouble.start_soon(self._now_and_then, does)
                with trio.move_on_after(seconds) as bound:
                    await self._until_empty()
                trouble.cancel_scope.cancel()
                if bound.cancelled_caught:
                    self.found.faults.append(f"not done within {seconds:g} s: {self._counts()}")
            finally:
                with trio.CancelScope(shield=True):
                    await self._proxy.heal()
                    await self._stop()
        self.found.seconds = time.monotonic() - began
        self._judge()
        return self.found

    def _init(self) -> None:
        environ = {**self._environ(0), "DATABASE_URL": self._postgres.url}
        subprocess.run(
            [sys.executable, "-m", "svc", "database", "init"], env=environ, check=True, stdout=subprocess.DEVNULL
        )

    def _start(self) -> None:
        number = next(self._numbers)
        instance = Instance(self._environ(number), self._folder, number)
        self._live.append(instance)
        self._all.append(instance)

    def _counts(self) -> dict[str, Any]:
        return self._stub.control("counts", queue=self._queue)

    async def _until_empty(self) -> None:
        """Put the messages, a part of them twice as a sender does that tries again, until all are gone."""
        while True:
            waiting = sum(self._counts().values())
            if self._sent < self.found.messages and waiting < BATCH / 2:
                self._put(range(self._sent, min(self._sent + BATCH, self.found.messages)))
            elif waiting == 0:
                return
            for instance in [one for one in self._live if one.child.poll() is not None]:
                self.found.faults.append(f"{instance.path} ended with {instance.child.returncode}")
                self._live.remove(instance)
                self._start()
            await trio.sleep(0.2)

    def _put(self, numbers: range) -> None:
        bodies = [str(number) for number in numbers]
        bodies += self._rng.sample(bodies, len(bodies) // 50)
        for first in range(0, len(bodies), 10):
            batch = [{"Id": str(at), "MessageBody": body} for at, body in enumerate(bodies[first : first + 10])]
            self._stub.sqs("SendMessageBatch", QueueUrl=f"{self._stub.url}/{ACCOUNT}/{self._queue}", Entries=batch)
        self._sent = numbers.stop

    # -- what goes wrong --

    async def _now_and_then(self, does: Any) -> None:
        while True:
            await trio.sleep(self._rng.uniform(0.5, 1.5) * self._every)
            await does()

    def _one(self) -> Instance | None:
        # A frozen one is left to thaw.
        able = [one for one in self._live if not one.frozen]
        return self._rng.choice(able) if able else None

    async def _kill(self) -> None:
        if instance := self._one():
            instance.end()
            self._live.remove(instance)
            self.found.did["killed"] += 1
            self._start()

    async def _freeze(self) -> None:
        """Past its lease: at its thaw it goes on in the middle of transactions whose messages others have by then."""
        if instance := self._one():
            instance.frozen = True
            instance.signal(signal.SIGSTOP)
            await trio.sleep(VISIBILITY + self._rng.uniform(0.5, 3))
            instance.signal(signal.SIGCONT)
            instance.frozen = False
            self.found.did["frozen"] += 1

    async def _cut(self) -> None:
        self._proxy.cut()
        self.found.did["cut"] += 1
        await trio.sleep(self._rng.uniform(0, 0.3))
        await self._proxy.heal()

    async def _terminate(self) -> None:
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'proof-%' AND random() < 0.5"
            ).fetchone()
        self.found.did["terminated"] += ended[0] if ended else 0

    # -- the end --

    async def _stop(self) -> None:
        for instance in self._live:
            instance.signal(signal.SIGCONT)
            instance.signal(signal.SIGTERM)
        with trio.move_on_after(20):
            for instance in self._live:
                while instance.child.poll() is None:
                    await trio.sleep(0.05)
        for instance in self._live:
            if (code := instance.child.poll()) != 0:
                self.found.faults.append(f"{instance.path}: stopped with {code}")
        for instance in self._all:
            instance.end()

    def _judge(self) -> None:
        for instance in self._all:
            for line in instance.path.read_text().splitlines():
                self._note(line)
        faults = self.found.faults
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            for table in ("effects", "more_effects"):
                row = connection.execute(
                    f"SELECT count(*), count(DISTINCT number), max(number) FROM {table}"
                ).fetchone()
                if row != (self._sent, self._sent, self._sent - 1):
                    faults.append(
                        f"{table}: {self._sent} were sent, and there are (rows, different ones, highest) {row}"
                    )
            keys = connection.execute("SELECT count(*) FROM svc_inbox").fetchone()
            if keys != (self._sent,):
                faults.append(f"the inbox has {keys} keys")
            left = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'proof-%'"
            ).fetchone()
            if left != (0,):
                faults.append(f"{left} connections are left")
        if stranded := {state: count for state, count in self._counts().items() if count}:
            faults.append(f"left in the queue: {stranded}")

    def _note(self, line: str) -> None:
        try:
            event, level = json.loads(line)["event"], json.loads(line)["level"]
        except (ValueError, KeyError, TypeError):
            self.found.told["lines of no log"] += 1
            return
        told = {
            "duplicate: its": "duplicates",
            "message lost": "lost",
            "message failed": "failed",
            "message will be": "retried",
        }
        for words, name in told.items():
            if event.startswith(words):
                self.found.told[name] += 1
        if "internal error" in event or level == "critical":
            self.found.faults.append(line[:500])


def run(messages: int, *, instances: int, every: float, seconds: float, seed: int) -> Found:
    """`every`: each kind of trouble comes once in so many seconds. `seconds`: the most that it may take."""
    with Stub() as stub, Postgres("-c", "max_connections=200") as postgres:
        proof = Proof(messages, instances, every, random.Random(seed), stub, postgres)
        return trio.run(proof.run, seconds)
