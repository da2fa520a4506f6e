"""docs/faults.md has what the fault suite tries, and other pages lead to it."""

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


def test_other_pages_lead_to_the_document_and_have_the_commands() -> None:
    assert "docs/faults.md" in (DOCUMENT.parent.parent / "README.md").read_text()
    assert "(faults.md)" in (DOCUMENT.parent / "what-breaks.md").read_text()
    proofs = (DOCUMENT.parent / "proofs.md").read_text()
    for command in (
        "pytest tests/faults -m faults",
        "--faults-table docs/faults.md",
        "python -m tests.faults.soak --minutes 30",
    ):
        assert command in proofs
