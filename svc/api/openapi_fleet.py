"""The description of the routes of the fleet (`routes_fleet.py`)."""

from typing import Any

from svc.api import openapi_examples as examples
from svc.api.openapi_parts import answer, errors
from svc.maintenance.orders import FIELDS, LONGEST
from svc.maintenance.switch_value import TEXT_LIMIT

_TEXT = {"type": "string", "minLength": 1, "maxLength": TEXT_LIMIT}

_HELD = {
    "fleet": {
        "type": "boolean",
        "description": "false: this instance runs by itself (ETCD_ENDPOINTS=off), and is all there is",
    },
    "key": {"type": ["string", "null"], "description": "null: there is no etcd"},
    "file": {
        "type": ["string", "null"],
        "description": "MAINTENANCE_FILE, which may hold the switch where there is no etcd",
    },
    "maintenance": {"type": ["boolean", "null"], "description": "null: the value means nothing, see ignored_value"},
    "reason": {"type": ["string", "null"]},
    "by": {"type": ["string", "null"]},
    "until": {"type": ["string", "null"]},
    "ignored_value": {"type": ["string", "null"]},
    "expires_in": {"type": ["number", "null"], "description": "seconds until the maintenance ends by itself"},
    "revision": {
        "type": ["integer", "null"],
        "description": "etcd's revision of the key; null: there is none. Without etcd: counts the changes",
    },
    "only": {"type": "array", "items": {"type": "string"}, "description": "instances that are switched by themselves"},
    "timestamp": {"type": "string", "format": "date-time"},
}

_INSTANCE = {
    "type": "object",
    "required": ["id", "phase", "current"],
    "properties": {
        "id": {"type": "string"},
        "phase": {
            "enum": ["starting", "running", "draining", "drained", "expired", "stopped", "blocked", "unreadable"]
        },
        "current": {"type": "boolean", "description": "it has acted on what the key says now"},
        "in_flight": {"type": "integer"},
        "quiet": {
            "type": "boolean",
            "description": "nothing is at work there, and nothing will be begun until the key is off",
        },
        "receives": {"type": "integer", "description": "in a drain: receives on the wire; what they bring goes back"},
        "revision": {"type": ["integer", "null"], "description": "of the key, that the phase answers to"},
        "own_revision": {"type": ["integer", "null"], "description": "the same of its own key"},
        "keys": {"type": "array", "items": {"enum": ["all", "instance"]}, "description": "which keys are on"},
        "drain": {"type": ["object", "null"]},
    },
}

_FLEET = {
    "type": "object",
    "required": [*_HELD, "instances", "quiet", "drained", "vanished"],
    "properties": {
        **_HELD,
        "instances": {"type": "array", "items": _INSTANCE},
        "vanished": {
            "type": "array",
            "items": {"type": "string"},
            "description": "members of the fleet that are not heard of; what they do is not known",
        },
        "quiet": {
            "type": "boolean",
            "description": "as drained, but an instance need only be quiet: nothing is at work, and nothing will be begun",
        },
        "drained": {
            "type": "boolean",
            "description": "maintenance is on, every instance listed has drained for it, there is one, and none has vanished",
        },
    },
}

_ORDER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "reason": _TEXT,
        "by": {**_TEXT, "description": "who asks; a maintenance with a name is ended under the same name"},
        "for": {
            "oneOf": [{"type": "number", "minimum": 1, "maximum": LONGEST}, {"type": "string"}],
            "description": "how long: seconds, or a duration such as 30m",
        },
        "instance": {"type": "string", "description": "only this one"},
        "force": {"type": "boolean"},
        "quiet": {
            "type": "boolean",
            "description": "instances are quiet as soon as nothing is at work; what lands after that goes back, even in its last "
            "receive",
        },
    },
}
assert set(_ORDER["properties"]) == set(FIELDS)  # type: ignore[call-overload]

_OBEYED = answer(
    "It is written; GET /fleet shows what the instances make of it",
    {
        "type": "object",
        "required": ["maintenance", "key", "instance", "revision", "timestamp"],
        "properties": {
            "maintenance": {"type": "boolean"},
            "key": {"type": ["string", "null"]},
            "instance": {"type": ["string", "null"]},
            "revision": {"type": ["integer", "null"]},
            "timestamp": {"type": "string", "format": "date-time"},
        },
    },
    examples.OBEYED,
)

_TOLD: dict[str, str] = {
    "_401": "the request carries no bearer token",
    "_403": "the token is wrong, or the service was given no API_TOKEN",
    "_409": "the maintenance is somebody else's, and was not to be forced; or MAINTENANCE_FILE cannot be written",
    "_413": "the body is too large",
    "_502": "etcd is out of reach or refuses the service",
    "_504": "etcd did not answer in time",
}

_QUERY = [
    {"name": name, "in": "query", "schema": schema}
    for name, schema in (("by", _TEXT), ("instance", {"type": "string"}), ("force", {"enum": ["true", "false"]}))
]

PATHS: dict[str, Any] = {
    "/fleet": {
        "get": {
            "summary": "Every instance, and what it has made of the maintenance key",
            "description": "As etcd knows it, asked at most once a second. Answers in maintenance too.",
            "responses": {"200": answer("The fleet", _FLEET, examples.FLEET), **errors(502, 504, **_TOLD)},
        }
    },
    "/maintenance": {
        "get": {
            "summary": "What the maintenance key says",
            "responses": {
                "200": answer(
                    "The switch",
                    {"type": "object", "required": list(_HELD), "properties": _HELD},
                    {name: examples.FLEET[name] for name in _HELD},
                ),
                **errors(502, 504, **_TOLD),
            },
        },
        "put": {
            "summary": "Start maintenance, for all instances or for one",
            "security": [{"token": []}],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ORDER, "example": examples.ORDER}},
            },
            "responses": {"200": _OBEYED, **errors(400, 401, 403, 408, 409, 413, 415, 502, 504, **_TOLD)},
        },
        "delete": {
            "summary": "End maintenance, for all instances or for one",
            "security": [{"token": []}],
            "parameters": _QUERY,
            "responses": {"200": _OBEYED, **errors(400, 401, 403, 409, 502, 504, **_TOLD)},
        },
    },
}
