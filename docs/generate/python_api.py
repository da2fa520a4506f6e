"""docs/reference/python-api.md, from the docstrings of what users import."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import svc
import svc.processors
import svc.service
import svc.settings
import svc.sqs
import svc.testing
from docs.generate.markdown import fenced, head, joined
from svc import pytest_plugin
from svc.maintenance import handler

FIXTURES = ("svc_queue", "svc_service", "svc_moto", "svc_etcd", "svc_stack")

TOLD = ("Unmarked", "System", "ShuttingDown")

ENVELOPES = ("SnsEnvelope", "EventBridgeEnvelope", "S3Envelope", "S3Record", "Peeled")


class Section(NamedTuple):
    title: str
    text: str
    names: dict[str, Any]
    """As a user writes it → the object."""


def sections() -> list[Section]:
    testing = {f"svc.testing.{name}": getattr(svc.testing, name) for name in svc.testing.__all__}
    return [
        Section(
            "For processors",
            "How they are used: [Write a processor](../write-a-processor.md).",
            {
                f"svc.{name}": getattr(svc, name)
                for name in ("Message", "Retry", "Reject", "Batch", "Item", "processor", "Transaction")
            }
            | {f"svc.processors.{name}": getattr(svc.processors, name) for name in ("Result", *TOLD, *ENVELOPES)},
        ),
        Section(
            "Fixtures of pytest",
            "There in every project that has svc installed. How they are used: [Test a processor](../test-a-processor.md).",
            {name: getattr(pytest_plugin, name) for name in FIXTURES},
        ),
        Section(
            "svc.testing",
            "What the fixtures are made of, for tests without them. All of it runs in virtual time.",
            {name: held for name, held in testing.items() if inspect.isclass(held)},
        ),
        Section(
            "Running the service from Python",
            "What `svc run` does.",
            {
                "svc.settings.load": svc.settings.load,
                "svc.settings.BadSettings": svc.settings.BadSettings,
                "svc.service.run": svc.service.run,
                "svc.sqs.opened": svc.sqs.opened,
            },
        ),
        Section(
            "Taking part in maintenance",
            "What a further part implements, and the report that it becomes part of: "
            "[Contribute](../contribute.md#how-do-i-add).",
            {
                "svc.maintenance.handler.Handler": handler.Handler,
                "svc.maintenance.handler.DrainReport": handler.DrainReport,
            },
        ),
    ]


def page() -> str:
    parts = [
        head(
            "Python API",
            "the docstrings",
            "Names with an underscore, and modules that are not listed here, may change without notice. Times are seconds.",
        )
    ]
    for section in sections():
        parts.append(f"## {section.title}\n\n{section.text}\n")
        for name, held in section.names.items():
            parts += _described(name, held)
    return joined(parts)


def _described(name: str, held: Any) -> Iterator[str]:
    yield f"### {name}\n"
    node = _tree(held)
    if isinstance(node, ast.ClassDef):
        yield from _class(name.rpartition(".")[2], node)
        return
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if name not in FIXTURES:
        yield fenced(_signature(name.rpartition(".")[2], node), "python")
    yield _text(node)


def _tree(held: Any) -> ast.stmt:
    # A fixture, and a context manager function, wrap the function that was written.
    function = getattr(held, "_fixture_function", held)
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]


def _class(name: str, node: ast.ClassDef) -> Iterator[str]:
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    makers = [one for one in methods if one.name == "__init__"]
    if makers:
        yield fenced(_signature(name, makers[0], method=True), "python")
    yield _text(node)
    if makers and ast.get_docstring(makers[0]):
        yield _text(makers[0])
    lines = list(_attributes(node.body))
    for maker in makers:
        lines += _attributes(maker.body)
    for method in methods:
        if method.name.startswith("_"):
            continue
        written = method.name if _is_property(method) else _signature(method.name, method, method=True)
        lines.append((" ".join(written.split()), _text(method)))
    for written, text in lines:
        yield f"- `{written}`\n\n{textwrap.indent(text, '  ')}"


def _attributes(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Public attributes of a class body or an `__init__`, with the docstring below each."""
    for position, one in enumerate(body):
        after = body[position + 1] if position + 1 < len(body) else None
        documented = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        text = inspect.cleandoc(after.value.value) if documented else ""  # type: ignore[union-attr]
        target: ast.expr | None = None
        if isinstance(one, ast.AnnAssign):
            target = one.target
        elif isinstance(one, ast.Assign) and documented:
            target = one.targets[0]
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
            name = target.attr
        elif isinstance(target, ast.Name):
            name = target.id
        else:
            continue
        if not name.startswith("_"):
            kind = f": {ast.unparse(one.annotation)}" if isinstance(one, ast.AnnAssign) else ""
            yield f"{name}{kind}", f"{text}\n" if text else ""


def _is_property(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(one) == "property" for one in method.decorator_list)


def _signature(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool = False) -> str:
    arguments = ast.parse(ast.unparse(node)).body[0].args  # type: ignore[attr-defined]
    if method and arguments.args:
        arguments.args = arguments.args[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and name[:1].islower() else ""
    prefix = "await " if isinstance(node, ast.AsyncFunctionDef) and not _yields(node) else ""
    return f"{prefix}{name}({ast.unparse(arguments)}){returns}"


def _yields(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Yield) for one in ast.walk(node))


def _text(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node) or ""
    return f"{text}\n" if text else ""
