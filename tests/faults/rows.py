"""The list of the faults that are tried: each a function of a `Trial`, with the words that stand in the table."""

import importlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path

from svc.devstack.stack import Etcd
from tests.faults.trial import CALLS_LIMIT, Row, Trial

MakeEtcd = Callable[[Path], AbstractContextManager[Sequence[Etcd]]]
"""Given a folder for files, starts an etcd of the trial's own; its members."""

Run = Callable[[Trial], Awaitable[None]]

GROUPS = (
    "SQS", "credentials", "etcd", "switch", "process", "processor", "database", "HTTP", "protection", "dlq", "crash",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    name: str
    group: str
    fault: str
    sees: str
    """What a user or operator sees meanwhile; the function checks it."""
    run: Run
    environ: dict[str, str] = field(default_factory=dict)
    """Settings of the service."""
    etcd: MakeEtcd | None = None
    """An etcd of its own; None: the one that all tests share."""
    by_default: bool = False
    """Part of the ordinary test run."""

    def row(self) -> Row:
        return Row(self.name, self.group, self.fault, self.sees)


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    fault: str,
    sees: str,
    *,
    etcd: MakeEtcd | None = None,
    by_default: bool = False,
    **environ: str,
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        assert name not in SCENARIOS, name
        group = next(group for group in GROUPS if run.__module__.endswith("_" + group.lower()))
        SCENARIOS[name] = Scenario(name, group, fault, sees, run, environ, etcd, by_default)
        return run

    return add


def outage(
    name: str,
    fault: str,
    sees: str,
    *,
    named: str,
    over: str | None,
    etcds: bool = False,
    recovers: Run | None = None,
    afterwards: Run | None = None,
    calls_limit: float = CALLS_LIMIT,
    within: float = 30,
    etcd: MakeEtcd | None = None,
    by_default: bool = False,
    **environ: str,
) -> Callable[[Run], Run]:
    """The usual scenario: the service works under load, the function breaks something and holds it, and how the service comes
    back is measured (`Trial.outage`). `etcds`: it is the lines to etcd that are broken, not that to SQS. `afterwards`: what the
    trial itself has to put back, or to look at."""

    def add(breaks: Run) -> Run:
        @wraps(breaks)
        async def run(t: Trial) -> None:
            await t.start()
            back = None if recovers is None else partial(recovers, t)
            lines = t.etcds if etcds else [t.sqs]
            async with t.outage(
                named=named, over=over, lines=lines, recovers=back, calls_limit=calls_limit, within=within
            ):
                await breaks(t)
            if afterwards is not None:
                await afterwards(t)

        return scenario(name, fault, sees, etcd=etcd, by_default=by_default, **environ)(run)

    return add


def all_scenarios() -> list[Scenario]:
    for group in GROUPS:
        importlib.import_module(f"tests.faults.rows_{group.lower()}")
    return list(SCENARIOS.values())
