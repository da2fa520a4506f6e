"""The site builds without a warning. Sphinx comes with the extra `docs`, which `.ci/run` installs; elsewhere this is skipped.

That takes seconds (`pytest -m slow tests/docs/test_site.py`). What is most often forgotten is seen without Sphinx: a page that is
in no table of contents. Links are the matter of `test_pages.py`."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


def test_each_page_is_in_one_table_of_contents() -> None:
    """A page leads to others by the tables in it, as Sphinx reads them: without their suffix, from the page's own folder."""
    listed: list[Path] = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for table in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            names = [line for line in table.splitlines() if line and not line.startswith(":")]
            listed += [(page.parent / name).with_suffix(".md") for name in names]
    assert sorted(listed) == sorted(set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "index.md"})


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None and "CI" not in os.environ, reason="pip install -e '.[docs]'"
)
def test_the_site_builds_without_a_warning_and_without_the_network(tmp_path: Path) -> None:
    # A proxy that nobody listens on: what would reach out fails.
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "doctrees",
        "docs",
        tmp_path / "site",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "maintenance.html", "write-a-processor.html"} <= pages
    assert (tmp_path / "site" / "reference" / "settings.html").exists()
