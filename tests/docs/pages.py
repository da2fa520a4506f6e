"""The pages of the documents, as the tests of this folder read them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
WRITTEN = [page for page in PAGES if page.parent.name != "reference" and page.name != "faults.md"]
"""Without those that are made by a program."""


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    """The language of the fence, "" without one."""
    text: str


def blocks(*kinds: str) -> Iterator[Block]:
    """The fenced blocks of these kinds on all pages; all blocks when none is given."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if not kinds or match[1] in kinds:
                line = text.count("\n", 0, match.start()) + 1
                yield Block(page.relative_to(ROOT).as_posix(), line, match[1], match[2])


def prose(page: Path) -> str:
    """Without the fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub and MyST make them."""
    return {
        re.sub(r"[^\w\- ]", "", title.strip().lower().replace("`", "")).replace(" ", "-")
        for title in re.findall(r"^#{1,4} (.+)$", prose(page), re.MULTILINE)
    }
