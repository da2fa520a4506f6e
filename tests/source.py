"""The program's own source, read once for all tests that look at it: they are one group, which one of xdist's workers runs."""

import ast
from functools import cache
from pathlib import Path


@cache
def tree(path: Path) -> ast.Module:
    """What stands in a file."""
    return ast.parse(path.read_text("utf-8"))
