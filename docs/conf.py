"""The documents' site: sphinx-build -W --keep-going -q docs docs/_site (see docs/contribute.md). It needs no network."""

import re
from pathlib import Path
from typing import Any

import svc

TOP = Path(__file__).parent.parent

project = "svc"
copyright = "2026, the contributors to svc"
version = release = svc.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_site", "generate"]

html_theme = "furo"
html_title = "svc"
html_show_sourcelink = False
html_copy_source = False

# Links to headings work as on GitHub: maintenance.md#the-drain-report. A link that leads nowhere is a warning, and so an error.
myst_heading_anchors = 3
nitpicky = True
# Fences without a language hold the output of a terminal.
highlight_language = "text"


def for_the_site(app: Any, name: str, source: list[str]) -> None:
    """On the site the first page is the README. Links to files outside of docs/ become text: the site does not have them."""
    if name == "index":
        contents = source[0][source[0].index("```{toctree}") :]
        source[0] = re.sub(r"\]\(docs/", "](", (TOP / "README.md").read_text("utf-8")) + "\n" + contents
        source[0] = re.sub(r"\[([^\]]+)\]\((?:[A-Z-]+(?:\.md)?|examples/)\)", r"\1", source[0])
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./(?:[A-Z]+\.md|examples/[^)]*)(?:#[^)]*)?\)", r"\1", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", for_the_site)
