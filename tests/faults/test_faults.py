"""Every row of the table of faults, tried. `pytest tests/faults -m faults -n 4`; an ordinary run takes a slice."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import pytest

from svc.devstack.stack import Etcd, Moto
from tests.faults.conftest import ROW
from tests.faults.rows import Scenario, all_scenarios
from tests.faults.trial import trial


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name, marks=pytest.mark.faults(by_default=one.by_default)) for one in all_scenarios()],
)
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
