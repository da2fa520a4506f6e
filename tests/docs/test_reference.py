"""docs/reference is what `python -m docs.generate` makes of the code as it is."""

import re
from pathlib import Path

import pytest

import docs.generate
from docs.generate import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_as_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text("utf-8") == PAGES[name](), "stale: run python -m docs.generate"


def test_nothing_else_lives_there() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_the_command_names_what_is_stale_and_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs.generate, "FOLDER", tmp_path)
    monkeypatch.setattr(docs.generate, "PAGES", {"one.md": lambda: "1", "two.md": lambda: "2"})
    (tmp_path / "two.md").write_text("2")
    assert docs.generate.stale() == ["one.md"]
    assert docs.generate.write() == ["one.md"]
    assert docs.generate.stale() == []
    assert (tmp_path / "one.md").read_text() == "1"


def test_nothing_private_is_on_the_page_of_the_python_api() -> None:
    page = PAGES["python-api.md"]()
    shown = re.findall(r"(?m)^- `(.+)`$", page) + re.findall(r"(?ms)^```python\n(.*?)^```", page)
    assert len(shown) > 100
    assert [part for part in shown if re.search(r"(?<![\w\"'])_[A-Za-z]", part)] == []


def test_every_event_of_the_log_has_a_row() -> None:
    assert "| `drain ended` | info, error |" in (FOLDER / "log-fields.md").read_text("utf-8")
