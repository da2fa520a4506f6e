"""The list of the faults that are tried: each a function of a `Trial`, with the words that stand in the table."""

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults.trial import Row, Trial

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
    members: int = 0
    """Members of an etcd of its own; 0: the one that all tests share."""
    etcd_flags: tuple[str, ...] = ()
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
    members: int = 0,
    etcd_flags: tuple[str, ...] = (),
    by_default: bool = False,
    **environ: str,
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        assert name not in SCENARIOS, name
        group = next(group for group in GROUPS if run.__module__.endswith("_" + group.lower()))
        SCENARIOS[name] = Scenario(name, group, fault, sees, run, environ, members, etcd_flags, by_default)
        return run

    return add


def all_scenarios() -> list[Scenario]:
    for group in GROUPS:
        importlib.import_module(f"tests.faults.rows_{group.lower()}")
    return list(SCENARIOS.values())
