"""Every row of the table of faults, tried: `pytest tests/faults -m faults -n 4`. Ordinary runs take a slice, `-m slow` more."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from svc.devstack.stack import Etcd, Moto
from tests.faults.conftest import ROW
from tests.faults.rows import Scenario, all_scenarios
from tests.faults.trial import trial

QUICK = ("sqs-reset", "etcd-killed")
"""Of the rows by default those of an ordinary run. The others take a minute together, and run with `-m slow`."""


def marks(one: Scenario) -> Iterator[pytest.MarkDecorator]:
    yield pytest.mark.faults(by_default=one.by_default)
    if one.by_default and one.name not in QUICK:
        yield pytest.mark.slow


@pytest.mark.parametrize("scenario", [pytest.param(one, id=one.name, marks=[*marks(one)]) for one in all_scenarios()])
async def test_fault(
    scenario: Scenario,
    moto: Moto,
    etcd: Etcd,
    queue_name: str,
    tmp_path: Path,
    record_property: pytest.FixtureRequest,
) -> None:
    row = scenario.row()
    with scenario.etcd(tmp_path) if scenario.etcd else contextlib.nullcontext(()) as members:
        endpoints = [member.endpoint for member in members] or [etcd.endpoint]
        async with trial(row, moto, endpoints, queue_name, tmp_path, **scenario.environ) as t:
            t.members = members
            await scenario.run(t)
            if not t.settled:
                await t.settle()
    record_property(ROW, asdict(row))
