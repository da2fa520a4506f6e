"""The description of `GET /dead-letters`."""

from typing import Any

from svc.api.openapi_examples import NOW
from svc.api.openapi_parts import answer, errors
from svc.api.request_bodies import LETTERS, MOST_LETTERS

_TEXT = {"type": ["string", "null"]}

_LETTER = {
    "type": "object",
    "required": [
        "id",
        "original_id",
        "sent",
        "age_seconds",
        "receives",
        "group",
        "reason",
        "error",
        "body",
        "body_length",
        "attributes",
    ],
    "properties": {
        "id": {"type": "string"},
        "original_id": {**_TEXT, "description": "of the message that a Reject has copied, as the log names it"},
        "sent": {"type": ["string", "null"], "format": "date-time"},
        "age_seconds": {"type": ["integer", "null"]},
        "receives": {"type": "integer"},
        "group": _TEXT,
        "reason": {**_TEXT, "description": "of a processor's Reject"},
        "error": {**_TEXT, "description": "of the AWS service that gave it up"},
        "body": {"type": "string", "description": "its first 2000 characters"},
        "body_length": {"type": "integer"},
        "attributes": {"type": "object", "additionalProperties": {"type": "object"}},
    },
}

_EXAMPLE: dict[str, Any] = {
    "dead_letters": [
        {
            "id": "5fea7756-0ea4-451a-a703-a558b933e274",
            "original_id": "ad1b4d67-5a2e-4b1a-9f7a-3f0f5c8f2f11",
            "sent": "2026-11-24T09:12:00.000Z",
            "age_seconds": 300,
            "receives": 2,
            "group": None,
            "reason": "no such article",
            "error": None,
            "body": '{"item": "a chair"}',
            "body_length": 19,
            "attributes": {
                "RejectReason": {"type": "String", "value": "no such article"},
                "RejectedMessageId": {"type": "String", "value": "ad1b4d67-5a2e-4b1a-9f7a-3f0f5c8f2f11"},
            },
        }
    ],
    "timestamp": NOW,
}

DEAD_LETTERS: dict[str, Any] = {
    "get": {
        "summary": "A look into the dead-letter queue",
        "description": "Some of the dead letters with their reasons. A look receives: it counts as one receive of each letter "
        "that it shows, and gives them back at once. One look at a time. Texts are cut; `svc dlq show` shows all.",
        "security": [{"token": []}],
        "parameters": [
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST_LETTERS, "default": LETTERS},
            }
        ],
        "responses": {
            "200": answer(
                "The letters",
                {
                    "type": "object",
                    "required": ["dead_letters", "timestamp"],
                    "properties": {
                        "dead_letters": {"type": "array", "maxItems": MOST_LETTERS, "items": _LETTER},
                        "timestamp": {"type": "string", "format": "date-time"},
                    },
                },
                _EXAMPLE,
            ),
            **errors(
                400, 401, 403, 409, 502, 503, 504,
                _400=f"limit has to be a whole number from 1 to {MOST_LETTERS}, once",
                _403="the token is wrong, or the service was given no API_TOKEN",
                _409="somebody else looks at this moment, or the queue has no dead-letter queue",
            ),
        },
    }
}  # fmt: skip
