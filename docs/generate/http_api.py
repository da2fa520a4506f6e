"""docs/reference/http-api.md, from the API's own description (`GET /openapi.json`)."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from docs.generate.markdown import code, fenced, head, joined, table
from svc.api.openapi import DESCRIPTION

Document = Mapping[str, Any]


def page() -> str:
    parts = [
        head(
            "HTTP API",
            "svc/api/openapi*.py",
            "A running instance serves the same as `GET /docs`, and for programs as `GET /openapi.json`. All bodies are JSON in "
            "UTF-8; timestamps are RFC 3339 in UTC.",
            'Errors have one form: `{"error": "Bad Request", "message": "what to do about it", "code": 400}`. With `API_TOKEN` '
            "set, every request that changes something needs `Authorization: Bearer <token>`. Reading is open, so keep the port "
            "inside your network.",
            "In maintenance everything but `/health*`, `/metrics`, `/fleet`, `/maintenance`, `/log-level` and the page with its "
            "feed answers 503 with `Retry-After`. The 503 of `/messages/stats` still carries the figures.",
            table(
                ("endpoint", "what"),
                (
                    (f"[{code(f'{method.upper()} {path}')}](#{_anchor(method, path)})", operation["summary"])
                    for method, path, operation in _operations()
                ),
            ).rstrip(),
        )
    ]
    for method, path, operation in _operations():
        parts += _section(method, path, operation)
    return joined(parts)


def _operations() -> Iterator[tuple[str, str, Document]]:
    for path, item in DESCRIPTION["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def _anchor(method: str, path: str) -> str:
    """As GitHub and MyST make it of the heading `GET /health/live`."""
    return f"{method}-{path.replace('/', '').replace('.', '')}"


def _section(method: str, path: str, operation: Document) -> Iterator[str]:
    yield f"## {method.upper()} {path}\n\n{operation['summary']}.\n"
    if "description" in operation:
        yield f"{operation['description']}\n"
    if any(operation.get("security", ())):
        optional = {} in operation["security"]
        yield f"Needs `Authorization: Bearer …`{' where `API_TOKEN` is set' if optional else ''}.\n"
    if operation.get("parameters"):
        rows = ((code(one["name"]), one["in"], one.get("description", "")) for one in operation["parameters"])
        yield table(("parameter", "where", "what"), rows)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        yield table(("field of the body", "type", "what"), _fields(body["schema"]))
        yield fenced(_curl(method, path, operation, body), "sh")
    yield table(("status", "when", "body"), _answers(operation))
    answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    if "example" in answer:
        example = json.dumps(answer["example"], indent=2, ensure_ascii=False)
        yield f"<details><summary>An answer</summary>\n\n{fenced(example, 'json')}\n</details>\n"


def _answers(operation: Document) -> Iterator[tuple[str, str, str]]:
    for status, answer in operation["responses"].items():
        yield status, answer["description"], ", ".join(answer.get("content", {}))


def _fields(schema: Document) -> Iterator[tuple[str, str, str]]:
    schema = _resolved(schema)
    for name, field in schema.get("properties", {}).items():
        field = _resolved(field)
        kind = field.get("type") or " or ".join(json.dumps(one) for one in field.get("enum", ()))
        words = " or ".join(kind) if isinstance(kind, list) else kind
        limits = [f"{text} {field[limit]}" for limit, text in _LIMITS.items() if limit in field]
        required = ", required" if name in schema.get("required", ()) else ""
        yield code(name), f"{words}{required}{''.join(f', {one}' for one in limits)}", field.get("description", "")


_LIMITS = {
    "minimum": "from",
    "maximum": "to",
    "minLength": "length from",
    "maxLength": "to",
    "maxProperties": "at most",
}


def _curl(method: str, path: str, operation: Document, body: Document) -> str:
    token = ' -H "Authorization: Bearer $API_TOKEN"' if operation.get("security") else ""
    data = shlex.quote(json.dumps(body.get("example", {})))
    return (
        f"curl -s -X {method.upper()} http://localhost:8082{path}{token} \\\n"
        f"  -H 'Content-Type: application/json' -d {data}"
    )


def _resolved(schema: Document) -> Document:
    found: Any = schema
    while "$ref" in found:
        found = DESCRIPTION["components"]["schemas"][found["$ref"].rpartition("/")[2]]
    return found
