"""Markdown from data: headings, tables, and the note at the top of every page."""

import re
from collections.abc import Iterable, Sequence


def head(title: str, source: str, *text: str) -> str:
    """The beginning of a page; `source` is the file to change instead of the page."""
    note = f"<!-- Made by `python -m docs.generate` from {source}: change it there. -->"
    return "\n\n".join([f"# {title}", note, *text]) + "\n"


def joined(parts: Iterable[str]) -> str:
    """One page of parts that end with a line break each."""
    return "\n".join(part.strip("\n") + "\n" for part in parts if part.strip())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def _cell(text: str) -> str:
    """On one line; a bar would end the cell, and what looks like HTML outside of code would vanish."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace(">", "&gt;") for part in parts
    ).replace("|", "\\|")
