"""The house keeps its rooms: suites on floors, imports that point down, nobody who reaches past a suite's door, one door for
each foreign library. DESIGN's table of suites, as data."""

import ast
from functools import cache
from pathlib import Path

import pytest

import svc
from tests.source import tree

FOLDER = Path(svc.__file__).parent

SUITES: dict[str, tuple[int, set[str]]] = {
    # suite: (floor, the foreign libraries whose only door it is)
    "cli": (9, {"click"}),
    "testing": (8, {"psycopg", "trio_asyncio"}),
    "service": (7, set()),
    "api": (6, {"quart", "quart_trio", "hypercorn", "h11"}),
    "telemetry": (5, {"prometheus_client", "opentelemetry"}),
    "core": (4, set()),
    "sqs": (4, {"pydantic_core", "aiobotocore", "botocore", "aiohttp", "asyncio", "trio_asyncio", "httptools"}),
    "etcd": (4, {"h2", "google"}),
    "database": (4, {"psycopg", "psycopg_pool", "asyncio"}),
    "consumer": (3, set()),
    "maintenance": (2, set()),
    "processors": (1, {"pydantic", "asyncio", "uvloop"}),
    "settings": (1, {"pydantic"}),
    "devstack": (1, {"moto"}),
    "shared": (0, set()),
}
"""From the top floor down. A suite imports from lower floors only, never from its neighbours on the same floor."""

FILES = {
    "__main__": "cli",
    "pytest_plugin": "testing",
    "__init__": "shared",
    "wakeup": "shared",
    "backoff": "shared",
    "defects": "shared",
    "signals": "shared",
    "switch_file": "core",
}
"""The files beside the suites' folders, and the suite that each belongs to; `core`, `service` and `settings` are their own."""

PURE = {"consumer", "maintenance"}
"""Suites that touch no wall clock and no world: all of them runs in virtual time."""


def suite_of(path: Path) -> str:
    top, *rest = path.relative_to(FOLDER).with_suffix("").parts
    return top if rest else FILES.get(top, top)


def imports(path: Path) -> set[tuple[str, ...]]:
    """Every imported name, as a path, within functions too; what only the type checker sees is left out."""
    whole = tree(path)
    hidden: set[int] = set()
    for node in ast.walk(whole):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            hidden |= {id(inner) for inner in ast.walk(node)}
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(whole):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {(*str(node.module).split("."), alias.name) for alias in node.names}
    return found


@cache
def modules() -> dict[Path, set[tuple[str, ...]]]:
    """What each file imports. Not at this file's import, which each of xdist's workers makes."""
    return {path: imports(path) for path in FOLDER.rglob("*.py")}


def own(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """What a module imports of svc: (suite, the path below svc)."""
    below = [name[1:] for name in modules()[path] if name[0] == "svc" and len(name) > 1]
    return [(FILES.get(name[0], name[0] if name[0] in SUITES else "shared"), name) for name in below]


def test_every_file_belongs_to_a_suite() -> None:
    assert {suite_of(path) for path in modules()} == set(SUITES)
    assert len(SUITES) <= 15
    assert len(list(FOLDER.glob("*.py"))) <= 10


def test_imports_between_suites_point_down() -> None:
    crossed = 0
    for path in modules():
        here = suite_of(path)
        for there, name in own(path):
            if there != here:
                assert SUITES[there][0] < SUITES[here][0], f"{path} imports {'.'.join(name)}, which is not below it"
                crossed += 1
    assert crossed > 100


def test_nobody_reaches_past_the_door_of_a_suite() -> None:
    """What a suite's `__init__` names in `__all__` (a module, or a name of its own) may be used by others, and nothing else."""
    for path in modules():
        for there, name in own(path):
            if there != suite_of(path) and (FOLDER / there).is_dir() and len(name) > 1:
                assert name[1] in offered(there), (
                    f"{path} imports {'.'.join(name)}, which svc/{there}/__init__.py does not name"
                )


def offered(suite: str) -> set[str]:
    for node in tree(FOLDER / suite / "__init__.py").body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and ast.unparse(node).startswith("__all__"):
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"svc/{suite}/__init__.py has no __all__")


@pytest.mark.parametrize("suite", sorted(name for name in SUITES if (FOLDER / name).is_dir()))
def test_a_suite_says_what_lives_there_and_what_never_does(suite: str) -> None:
    text = ast.get_docstring(tree(FOLDER / suite / "__init__.py")) or ""
    assert "Never here:" in text
    assert "Begin reading at" in text
    users = [path for path in modules() if suite_of(path) != suite]
    used = {name[1] for path in users for there, name in own(path) if there == suite and len(name) > 1}
    known = {path.stem for path in (FOLDER / suite).glob("*.py")}
    if suite not in {"testing", "processors", "settings", "database"}:  # they offer names, not modules
        assert offered(suite) <= known, "names a module that is not there"
        assert offered(suite) == used, "names what nobody uses"


def test_foreign_libraries_have_one_door() -> None:
    """A library that two suites name (pydantic: settings, and payloads) may be imported by both."""
    doors: dict[str, set[str]] = {}
    for suite, (_, libraries) in SUITES.items():
        for library in libraries:
            doors.setdefault(library, set()).add(suite)
    for path, names in modules().items():
        for library in {name[0] for name in names} & doors.keys():
            assert suite_of(path) in doors[library], f"{path} imports {library}, whose door is {doors[library]}"


def test_what_decides_touches_no_foreign_library_and_no_wall_clock() -> None:
    world = {"asyncio", "time", "datetime", "socket", "os", "threading", "subprocess", "http", "urllib"}
    for path, names in modules().items():
        if suite_of(path) in PURE:
            assert not {name[0] for name in names} & world, path


def test_no_primitive_of_trio_outlives_a_run() -> None:
    """An event, a lock or a limiter at the top of a module would be shared by two event loops: the service's, and the
    registration's in its thread. (A `RunVar` has a value in each.)"""
    for path in modules():
        for statement in tree(path).body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                made = [call for call in ast.walk(statement.value) if isinstance(call, ast.Call)]
                called = {ast.unparse(call.func) for call in made} - {"trio.lowlevel.RunVar"}
                assert not any(name.startswith(("trio.", "WakeUp")) for name in called), f"{path}:{statement.lineno}"


def test_circles_within_a_suite_are_none() -> None:
    for suite in SUITES:
        files = {path.stem: path for path in modules() if suite_of(path) == suite and path.parent.name == suite}
        edges = {
            stem: {name[1] for there, name in own(path) if there == suite and len(name) > 1 and name[1] in files}
            - {stem}
            for stem, path in files.items()
        }
        while leaves := [stem for stem, used in edges.items() if not used & edges.keys()]:
            for stem in leaves:
                del edges[stem]
        assert not edges, f"a circle in {suite}: {sorted(edges)}"


def test_every_cancellation_says_why() -> None:
    """In the traceback of whoever was cancelled (`trio.Cancelled` shows the reason)."""
    cancelled = 0
    for path in modules():
        for call in ast.walk(tree(path)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "cancel":
                of_a_scope = ast.unparse(call.func.value).rpartition(".")[2] not in {
                    "task",
                    "_task",
                    "future",
                    "timer",
                    "_call",
                }
                said = any(keyword.arg == "reason" for keyword in call.keywords)
                assert said == of_a_scope, f"{path.name}:{call.lineno}"
                cancelled += said
    assert cancelled > 20
