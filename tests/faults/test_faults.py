"""Every row of the table of faults, tried. `pytest tests/faults -m faults -n 4`; an ordinary run takes a slice."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import pytest

from svc.devstack import Etcd, Moto
from tests.faults.conftest import ROW
from tests.faults.rows import Scenario, all_scenarios
from tests.faults.trial import trial

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "faults.md"


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


def rows_of_the_document() -> set[str]:
    """The first cells of its tables of faults."""
    tables, _, _ = DOCUMENT.read_text().partition("## In the log")
    return {line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines() if line.startswith("| ")} - {
        "fault",
        "---",
    }


def test_the_document_has_a_row_for_each_scenario_and_no_other() -> None:
    """`--faults-table docs/faults.md` makes it."""
    assert rows_of_the_document() == {one.fault for one in all_scenarios()}


def test_the_readme_leads_to_the_document_and_tells_the_commands() -> None:
    readme = (DOCUMENT.parent.parent / "README.md").read_text()
    for told in ("docs/faults.md", "pytest tests/faults -m faults", "python -m tests.faults.soak --minutes 30"):
        assert told in readme
