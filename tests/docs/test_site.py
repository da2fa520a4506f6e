"""The site builds without a warning. Sphinx comes with the extra `docs`, which `.ci/run` installs; elsewhere this is skipped."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT


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
