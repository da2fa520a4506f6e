"""The API's description: `GET /openapi.json` serves it, `GET /docs` renders it (`docs_page.py`).

Tests hold it to what is there: the same paths and methods as the routes have, every status that any test of the API meets and no
other, every body within its schema, an example for each that is within it too (`tests/api/test_openapi.py`).
"""

from typing import Any

from svc import __version__
from svc.api import openapi_examples as examples
from svc.api import request_bodies
from svc.api.openapi_dead_letters import DEAD_LETTERS
from svc.api.openapi_fleet import PATHS
from svc.api.openapi_parts import DATABASE, ERROR, answer, errors, events, page
from svc.telemetry import logs

_HEALTH = {
    "type": "object",
    "required": ["status", "maintenance", "handlers", "fleet", "etcd", "drain", "queue_url", "timestamp"],
    "properties": {
        "status": {"enum": ["healthy", "draining", "maintenance", "starting", "unhealthy"]},
        "maintenance": {"type": "boolean"},
        "handlers": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "fleet": {"type": "boolean", "description": "false: this instance runs by itself (ETCD_ENDPOINTS=off)"},
        "etcd": {"type": ["object", "null"]},
        "maintenance_file": {
            "type": ["object", "null"],
            "description": "without etcd: how things stand with MAINTENANCE_FILE",
        },
        "switch": {"type": ["object", "null"]},
        "drain": {"type": ["object", "null"]},
        "queue_url": {"type": "string"},
        "queue_error": {"type": ["string", "null"]},
        "queue_error_since": {"type": ["string", "null"], "format": "date-time"},
        "breaker": {"type": ["object", "null"]},
        "threads": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "message id → thread, of threads that go on although their message was given back",
        },
        "database": DATABASE,
        "timestamp": {"type": "string", "format": "date-time"},
    },
}

_SEND = {
    "type": "object",
    "required": ["message"],
    "additionalProperties": False,
    "properties": {
        "message": {"type": "string", "minLength": 1},
        "attributes": {
            "type": "object",
            "maxProperties": request_bodies.ATTRIBUTES_LIMIT,
            "additionalProperties": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "number"}]},
        },
        "delay_seconds": {"type": "integer", "minimum": 0, "maximum": 900},
        "group_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "deduplication_id": {"type": "string", "minLength": 1, "maxLength": 128},
    },
}

_TIME = {"type": "string", "format": "date-time"}

_PROBE = {
    "type": "object",
    "required": ["status", "timestamp"],
    "properties": {"status": {"type": "string"}, "timestamp": _TIME},
}

_LEVEL = {"enum": list(logs.LEVELS)}

_LOG_LEVEL = {
    "type": "object",
    "required": ["level", "configured", "timestamp"],
    "properties": {"level": _LEVEL, "configured": _LEVEL, "timestamp": _TIME},
}

_STATS = {
    "type": "object",
    "required": ["maintenance", "timestamp", "handlers", "sqs"],
    "properties": {
        "maintenance": {"type": "boolean"},
        "timestamp": _TIME,
        "handlers": {"type": "array", "items": {"type": "string"}},
        "sqs": {
            "type": "object",
            "description": "At every moment received = processed + failed + released + rejected + lost + in flight.",
            "required": [
                f"messages_{name}"
                for name in ("received", "processed", "failed", "in_flight", "released", "rejected", "lost")
            ],
            "properties": {
                "handler_state": {"enum": ["starting", "running", "draining", "maintenance", "stopping", "stopped"]},
                "in_maintenance": {"type": "boolean"},
                "messages_received": {"type": "integer"},
                "messages_processed": {"type": "integer"},
                "messages_failed": {"type": "integer"},
                "messages_in_flight": {"type": "integer"},
                "messages_released": {"type": "integer"},
                "messages_rejected": {"type": "integer"},
                "messages_lost": {"type": "integer"},
                "messages_duplicate": {"type": "integer"},
                "recent_errors": {"type": "array", "maxItems": 10, "items": {"type": "object"}},
                "drain": {"type": ["object", "null"]},
            },
        },
        "database": DATABASE,
    },
}

_STATS_IN_MAINTENANCE = {"allOf": [{"$ref": "#/components/schemas/Error"}, _STATS]}

DESCRIPTION: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "svc",
        "version": __version__,
        "description": "An SQS consumer service that can be stopped safely.",
    },
    "paths": {
        "/health": {
            "get": {
                "summary": "Whether the service works, in maintenance too",
                "description": "`status` is `healthy`, `draining`, `maintenance`, `starting` or `unhealthy`. SQS is asked once a "
                "second at most, and waited for no longer than 5 s.",
                "responses": {
                    "200": answer("It works", _HEALTH, examples.HEALTH),
                    "503": answer("It starts, or does not work", _HEALTH, examples.UNHEALTHY),
                },
            }
        },
        "/health/live": {
            "get": {
                "summary": "Liveness probe",
                "responses": {"200": answer("The process answers", _PROBE, examples.LIVE)},
            }
        },
        "/health/ready": {
            "get": {
                "summary": "Readiness probe",
                "description": "503 in maintenance and while draining for it (with READY_IN_MAINTENANCE=true: 200), before "
                "a stop, and before the first receive.",
                "responses": {"200": answer("Messages are received", _PROBE, examples.READY), **errors(503)},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": page("Text format", "text/plain"),
            }
        },
        "/messages/send": {
            "post": {
                "summary": "Send a message to the queue",
                "security": [{}, {"token": []}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _SEND, "example": examples.SEND}},
                },
                "responses": {
                    "200": answer(
                        "Sent",
                        {
                            "type": "object",
                            "required": ["message_id", "message", "queue_url", "timestamp"],
                            "properties": {
                                "message_id": {"type": "string"},
                                "message": {"type": "string"},
                                "queue_url": {"type": "string"},
                                "timestamp": {"type": "string", "format": "date-time"},
                            },
                        },
                        examples.SENT,
                    ),
                    **errors(400, 401, 403, 408, 413, 415, 502, 503, 504),
                },
            }
        },
        "/messages/stats": {
            "get": {
                "summary": "What happened to the messages",
                "description": "At every moment received = processed + failed + released + rejected + lost + in flight. "
                "`recent_errors` holds the last ten.",
                "responses": {
                    "200": answer("The figures", _STATS, examples.STATS),
                    "503": answer(
                        "Maintenance, draining, starting or stopping: the error form and the figures together",
                        _STATS_IN_MAINTENANCE,
                        examples.STATS_IN_MAINTENANCE,
                    ),
                },
            }
        },
        "/queue/info": {
            "get": {
                "summary": "The queue's attributes, asked of SQS now",
                "description": "Those of its dead-letter queue too (`dead_letter_queue`; null with the reason in "
                "`dead_letter_queue_error`).",
                "responses": {
                    "200": answer(
                        "Every attribute that SQS returns",
                        {
                            "type": "object",
                            "required": ["queue_url", "attributes", "timestamp"],
                            "properties": {
                                "queue_url": {"type": "string"},
                                "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
                                "dead_letter_queue": {
                                    "type": ["object", "null"],
                                    "properties": {
                                        "url": {"type": "string"},
                                        "arn": {"type": "string"},
                                        "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
                                    },
                                },
                                "dead_letter_queue_error": {"type": ["string", "null"]},
                                "timestamp": _TIME,
                            },
                        },
                        examples.QUEUE_INFO,
                    ),
                    **errors(502, 503, 504),
                },
            }
        },
        "/openapi.json": {
            "get": {
                "summary": "This description, for programs",
                "responses": {
                    "200": answer("OpenAPI 3.1", None, {"openapi": "3.1.0", "info": {"title": "svc"}, "paths": {}}),
                    **errors(503),
                },
            }
        },
        "/dead-letters": DEAD_LETTERS,
        **PATHS,
        "/log-level": {
            "get": {
                "summary": "The least level that is logged",
                "responses": {"200": answer("Now, and as LOG_LEVEL has it", _LOG_LEVEL, examples.LOG_LEVEL)},
            },
            "put": {
                "summary": "Change it, until the process ends",
                "description": "Answers in maintenance too.",
                "security": [{"token": []}],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["level"],
                                "additionalProperties": False,
                                "properties": {"level": _LEVEL},
                            },
                            "example": {"level": "debug"},
                        }
                    },
                },
                "responses": {
                    "200": answer("Changed", _LOG_LEVEL, examples.LOG_LEVEL),
                    **errors(
                        400,
                        401,
                        403,
                        408,
                        413,
                        415,
                        _403="the token is wrong, or the service was given no API_TOKEN",
                        _413="the body is too large",
                    ),
                },
            },
        },
        "/docs": {
            "get": {
                "summary": "This description, for people",
                "responses": {**page("A page without outside resources", "text/html"), **errors(503)},
            }
        },
        "/": {
            "get": {
                "summary": "The page: what the service does, live",
                "description": "Answers in maintenance too. No outside resources, no cookies.",
                "responses": page("The page", "text/html"),
            }
        },
        "/events": {
            "get": {
                "summary": "The page's live feed, as server-sent events",
                "description": "`state` once a second, `charts` every five seconds, `end` when the service stops; each with "
                "JSON. What it holds is the page's own business and may change. Answers in maintenance too. A stream ends "
                "after 15 minutes, when a browser connects again by itself.",
                "responses": {**events("A stream of events", "state", "charts", "end"), **errors(503)},
            }
        },
        "/page.css": {"get": {"summary": "The page's style", "responses": page("CSS", "text/css")}},
        **{
            path: {"get": {"summary": summary, "responses": page("JavaScript", "text/javascript")}}
            for path, summary in (
                ("/page.js", "The page's script"),
                ("/charts.js", "The page's charts"),
                ("/letters.js", "The page's dead letters"),
                ("/token.js", "The token, as the page keeps it"),
                ("/elements.js", "What the page's scripts share"),
            )
        },
        "/page.svg": {"get": {"summary": "The page's sign", "responses": page("SVG", "image/svg+xml")}},
    },
    "components": {
        "schemas": {"Error": ERROR},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    },
}
