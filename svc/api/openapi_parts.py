"""What the descriptions of all routes are made of."""

from http import HTTPStatus
from typing import Any

ERROR = {
    "type": "object",
    "required": ["error", "message", "code"],
    "properties": {
        "error": {"type": "string", "description": "HTTP reason"},
        "message": {"type": "string", "description": "what to do about it"},
        "code": {"type": "integer"},
    },
}


DATABASE = {
    "type": "object",
    "description": "The database of DATABASE_URL and the pool of connections to it, if there is one. Counts are since the start.",
    "required": ["database", "connected", "error", "size", "in_use", "waiting"],
    "properties": {
        "database": {"type": "string", "description": "which, and where"},
        "connected": {"type": "boolean", "description": "false in maintenance too"},
        "error": {"type": ["string", "null"], "description": "why it is not there, while it is needed"},
        "error_since": {"type": ["string", "null"], "format": "date-time"},
        **{
            name: {"type": "integer"}
            for name in ("size", "max_size", "in_use", "idle", "waiting", "requests", "waits", "errors")
        },
        "wait_seconds": {"type": "number"},
    },
}


def answer(text: str, schema: dict[str, Any] | None = None, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema or {"type": "object"}}
    if example is not None:
        content["example"] = example
    return {"description": text, "content": {"application/json": content}}


def page(text: str, kind: str) -> dict[str, Any]:
    """An answer for browsers."""
    return {"200": {"description": text, "content": {kind: {"schema": {"type": "string"}}}}}


def events(text: str, *kinds: str) -> dict[str, Any]:
    """A stream of server-sent events, with JSON in each. The schema is that of one event, as OpenAPI 3.1's readers take it."""
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"enum": list(kinds)},
            "data": {"type": "string", "contentMediaType": "application/json"},
            "retry": {"type": "integer", "description": "milliseconds until a browser connects again"},
        },
    }
    return {"200": {"description": text, "content": {"text/event-stream": {"schema": event}}}}


def errors(*codes: int, **told: str) -> dict[str, Any]:
    """Answers in the error form. What is not as usual is told by status (`_409="…"`): a text, and the same as the example."""
    texts = {
        400: ("Bad input; the message says what to change", '"message" is missing'),
        401: (
            "API_TOKEN is set and the request carries no bearer token",
            "this request changes something: send Authorization: Bearer <the service's API_TOKEN>",
        ),
        403: ("The bearer token is wrong", "the bearer token is not the one that this service was given in API_TOKEN"),
        408: ("The body did not arrive in time", "the request body did not arrive within 10 s"),
        413: ("The message is larger than SQS takes", "the request body is over 2097152 bytes"),
        415: ("The body is not application/json, or compressed", "send the body as Content-Type: application/json"),
        502: (
            "SQS is out of reach or refuses the service",
            "sending a message: SQS is out of reach (connection refused)",
        ),
        503: ("Maintenance, draining, starting or stopping; see Retry-After", "the service is in maintenance"),
        504: ("SQS did not answer in time", "SQS did not answer within 15 s"),
    }
    answers = {}
    for code in codes:
        text, message = texts.get(code) or (told[f"_{code}"], told[f"_{code}"])
        if f"_{code}" in told:
            text = message = told[f"_{code}"]
        reason = "Content Too Large" if code == 413 else HTTPStatus(code).phrase
        example = {"error": reason, "message": message, "code": code}
        answers[str(code)] = answer(text, {"$ref": "#/components/schemas/Error"}, example)
    return answers
