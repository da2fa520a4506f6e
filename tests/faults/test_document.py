"""docs/faults.md has what the fault suite tries, and the README leads to it."""

from pathlib import Path

from tests.faults.rows import all_scenarios

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "faults.md"


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
