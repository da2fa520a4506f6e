"""`GET /docs`: the API's description as a page for people, made from the same document as `/openapi.json`. Pure.

Everything is escaped. No script, no outside resources: the page's own style sheet only.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Document = Mapping[str, Any]

_BASE = "http://localhost:8082"


def page(document: Document) -> str:
    """The whole HTML."""
    info = document["info"]
    groups = _groups(document)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>The API of {escape(info['title'])}</title>",
        '<link rel="icon" href="/page.svg" type="image/svg+xml">\n<link rel="stylesheet" href="/page.css">',
        '</head>\n<body class="docs">',
        '<a class="skip" href="#main">Skip to the endpoints</a>',
        f'<header class="top"><p class="name">{escape(info["title"])} <span>{escape(info["version"])}</span></p>',
        '<p class="link"><a href="/">The page</a></p></header>',
        f'<main id="main" tabindex="-1"><h1>The API</h1><p class="lead">{escape(info.get("description", ""))} '
        'The same for programs: <a href="/openapi.json">openapi.json</a>.</p>',
        '<nav aria-label="Endpoints"><ul class="toc">',
        *(
            f'<li><a href="#{_anchor(method, path)}"><span class="verb">{method.upper()}</span> {escape(path)}</a></li>'
            for operations in groups.values()
            for method, path, _ in operations
        ),
        "</ul></nav>",
    ]
    for name, operations in groups.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        for method, path, operation in operations:
            parts.extend(_operation(document, method, path, operation))
    parts.append("</main>\n</body>\n</html>\n")
    return "\n".join(parts)


def _groups(document: Document) -> dict[str, list[tuple[str, str, Document]]]:
    """The operations by the first part of their paths, in the order of the document."""
    found: dict[str, list[tuple[str, str, Document]]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            first = path.strip("/").split("/")[0]
            name = "For browsers" if "." in first or first in ("", "events", "docs") else first.capitalize()
            if path == "/openapi.json":
                name = "For programs"
            found.setdefault(name, []).append((method, path, operation))
    return found


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""), quote=True)


def _operation(document: Document, method: str, path: str, operation: Document) -> Iterator[str]:
    yield f'<section class="operation" aria-labelledby="{_anchor(method, path)}">'
    yield f'<h3 id="{_anchor(method, path)}"><span class="verb">{method.upper()}</span> <code>{escape(path)}</code></h3>'
    yield f'<p class="summary">{escape(operation["summary"])}.</p>'
    if "description" in operation:
        yield f"<p>{escape(operation['description'])}</p>"
    if any(scheme for scheme in operation.get("security", ())):
        optional = {} in operation["security"]
        yield f'<p class="note">Needs <code>Authorization: Bearer …</code>{" where API_TOKEN is set" if optional else ""}.</p>'
    if operation.get("parameters"):
        yield "<h4>Parameters</h4>" + _table(
            ("Name", "Where", "What"),
            (
                (parameter["name"], parameter["in"], parameter.get("description", ""))
                for parameter in operation["parameters"]
            ),
        )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        yield "<h4>Body</h4>" + _fields(document, body["schema"])
    if "text/event-stream" not in operation["responses"].get("200", {}).get("content", {}):
        yield f"<pre><code>{escape(_curl(method, path, operation, body))}</code></pre>"
    yield "<h4>Answers</h4>"
    for status, answer in operation["responses"].items():
        yield from _answer(status, answer)
    yield "</section>"


def _curl(method: str, path: str, operation: Document, body: Document | None) -> str:
    words = ["curl", "-s"]
    if method != "get":
        words += ["-X", method.upper()]
    words.append(_BASE + path)
    command = " ".join(words)
    if operation.get("security"):
        command += ' -H "Authorization: Bearer $API_TOKEN"'
    if body is not None:
        command += " -H 'Content-Type: application/json' -d " + shlex.quote(json.dumps(body.get("example", {})))
    return command


def _answer(status: str, answer: Document) -> Iterator[str]:
    contents: Mapping[str, Document] = answer.get("content", {})
    kind = next(iter(contents), "")
    content = contents.get(kind, {})
    told = (
        f'<span class="status" data-class="{escape(status[0])}">{escape(status)}</span> {escape(answer["description"])}'
    )
    if "example" not in content:
        yield f'<p class="answer">{told} <span class="note">{escape(kind)}</span></p>'
        return
    example = escape(json.dumps(content["example"], indent=2, ensure_ascii=False))
    yield f'<details class="answer"><summary>{told}</summary><pre><code>{example}</code></pre></details>'


def _fields(document: Document, schema: Document) -> str:
    schema = _resolved(document, schema)
    required = schema.get("required", ())
    rows = (
        (
            name,
            _kind(document, field) + (", required" if name in required else ""),
            _resolved(document, field).get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    )
    return _table(("Field", "Type", "What"), rows)


def _kind(document: Document, schema: Document) -> str:
    schema = _resolved(document, schema)
    kind = schema.get("type", "")
    words = " or ".join(kind) if isinstance(kind, list) else kind or ", ".join(map(str, schema.get("enum", ())))
    limits = [f"{text} {schema[name]}" for name, text in _LIMITS.items() if name in schema]
    return f"{words} ({', '.join(limits)})" if limits else words


_LIMITS = {
    "minimum": "from",
    "maximum": "to",
    "minLength": "at least",
    "maxLength": "at most",
    "maxProperties": "at most",
    "maxItems": "at most",
}


def _resolved(document: Document, schema: Document) -> Document:
    """The schema itself, or the one that it refers to."""
    found: Any = schema
    while "$ref" in found:
        name = found["$ref"].rpartition("/")[2]
        found = document["components"]["schemas"][name]
    return found  # type: ignore[no-any-return]


def _table(heads: tuple[str, ...], rows: Any) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
