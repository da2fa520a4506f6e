"""The list of the faults that are tried: each a function of a `Trial`, with the words that stand in the table."""

import importlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from svc.devstack.stack import Etcd
from tests.faults.trial import Row, Trial

MakeEtcd = Callable[[Path], AbstractContextManager[Sequence[Etcd]]]
"""Given a folder for files, starts an etcd of the trial's own; its members."""

Run = Callable[[Trial], Awaitable[None]]

GROUPS = ("SQS", "etcd", "process", "processor", "HTTP")


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


def all_scenarios() -> list[Scenario]:
    for group in GROUPS:
        importlib.import_module(f"tests.faults.rows_{group.lower()}")
    return list(SCENARIOS.values())
