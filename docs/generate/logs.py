"""docs/reference/log-fields.md, from `svc/telemetry/log_fields.py` and from every call in `svc/` that logs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import svc
from docs.generate.markdown import code, head, table
from svc.telemetry.log_fields import FIELDS

LEVELS = ("debug", "info", "warning", "error", "critical")


def page() -> str:
    return head(
        "Log lines",
        "svc/telemetry/log_fields.py and the calls in svc/",
        "A line for each event, to stderr. `LOG_FORMAT=json` writes an object per line, of these fields; `LOG_FORMAT=console` "
        "shows the same to people. What a processor or a library logs comes in the same form, with fields of its own.",
        table(
            ("field", "type", "what", "in"),
            ((", ".join(map(code, one.names)), one.kind, one.what, one.where) for one in FIELDS),
        ).rstrip(),
        "## Events",
        "Every line of svc itself, by the first words of its `event`. An event does not change from one occasion to the next; "
        "what changes is in the fields.",
        table(
            ("event", "level", "fields", "from"),
            (
                (code(event), ", ".join(sorted(levels, key=LEVELS.index)), ", ".join(map(code, fields)), code(suite))
                for (event, suite), (levels, fields) in sorted(events().items())
            ),
        ).rstrip(),
    )


def events() -> dict[tuple[str, str], tuple[set[str], list[str]]]:
    """(event, suite) → its levels, and its fields in the order of the calls."""
    found: dict[tuple[str, str], tuple[set[str], list[str]]] = {}
    root = Path(svc.__file__).parent
    for path in sorted(root.rglob("*.py")):
        suite = "/".join(("svc", *path.relative_to(root).parts[:1]))
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        chosen = _chosen(nodes)
        for call in nodes:
            if not (isinstance(call, ast.Call) and call.args):
                continue
            levels = chosen.get(call.func.id, set()) if isinstance(call.func, ast.Name) else _level(call.func)
            for event in _texts(call.args[0]) if levels else ():
                known, fields = found.setdefault((event, suite), (set(), []))
                known |= levels
                names = [one.arg for one in call.keywords if one.arg not in (None, "exc_info")]
                fields += [name for name in names if name is not None and name not in fields]
    return found


def _chosen(nodes: list[ast.AST]) -> dict[str, set[str]]:
    """Names that stand for a level: of `tell = log.info if … else log.warning`."""
    found: dict[str, set[str]] = {}
    for one in nodes:
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            levels = {level for part in ast.walk(one.value) for level in _level(part)}
            if levels and isinstance(one.value, ast.IfExp):
                found.setdefault(one.targets[0].id, set()).update(levels)
    return found


def _level(function: ast.AST) -> set[str]:
    """Of `log.info`; empty for what does not log."""
    if not (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "log"
    ):
        return set()
    return {{"exception": "error"}.get(function.attr, function.attr)} & set(LEVELS)


def _texts(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body)
        yield from _texts(expression.orelse)
