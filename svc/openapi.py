"""`GET /openapi.json`: the API's description. A test holds it to the routes that there are."""

from typing import Any

from svc import __version__, outgoing

_ERROR = {
    "type": "object",
    "required": ["error", "message", "code"],
    "properties": {
        "error": {"type": "string", "description": "HTTP reason"},
        "message": {"type": "string", "description": "what to do about it"},
        "code": {"type": "integer"},
    },
}


def _answer(text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema or {"type": "object"}}}}


def _errors(*codes: int) -> dict[str, Any]:
    texts = {
        400: "Bad input; the message says what to change",
        401: "API_TOKEN is set and the request carries no bearer token",
        403: "The bearer token is wrong",
        408: "The body did not arrive in time",
        413: "The message is larger than SQS takes",
        415: "The body is not application/json",
        502: "SQS is out of reach or refuses the service",
        503: "Maintenance, draining, starting or stopping; see Retry-After",
        504: "SQS did not answer in time",
    }
    return {str(code): _answer(texts[code], {"$ref": "#/components/schemas/Error"}) for code in codes}


_HEALTH = {
    "type": "object",
    "required": ["status", "maintenance", "handlers", "etcd", "drain", "queue_url", "timestamp"],
    "properties": {
        "status": {"enum": ["healthy", "draining", "maintenance", "starting", "unhealthy"]},
        "maintenance": {"type": "boolean"},
        "handlers": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "etcd": {"type": "object"},
        "switch": {"type": ["object", "null"]},
        "drain": {"type": ["object", "null"]},
        "queue_url": {"type": "string"},
        "queue_error": {"type": ["string", "null"]},
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
            "maxProperties": outgoing.ATTRIBUTES_LIMIT,
            "additionalProperties": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "number"}]},
        },
        "delay_seconds": {"type": "integer", "minimum": 0, "maximum": 900},
        "group_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "deduplication_id": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "example": {"message": "Hello from SQS!"},
}

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
                "responses": {"200": _answer("It works", _HEALTH), "503": _answer("It does not", _HEALTH)},
            }
        },
        "/health/live": {"get": {"summary": "Liveness probe", "responses": {"200": _answer("The process answers")}}},
        "/health/ready": {
            "get": {
                "summary": "Readiness probe",
                "responses": {"200": _answer("Messages are received"), **_errors(503)},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {"200": {"description": "Text format", "content": {"text/plain": {}}}},
            }
        },
        "/messages/send": {
            "post": {
                "summary": "Send a message to the queue",
                "security": [{}, {"token": []}],
                "requestBody": {"required": True, "content": {"application/json": {"schema": _SEND}}},
                "responses": {
                    "200": _answer(
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
                    ),
                    **_errors(400, 401, 403, 408, 413, 415, 502, 503, 504),
                },
            }
        },
        "/messages/stats": {
            "get": {
                "summary": "What happened to the messages",
                "responses": {
                    "200": _answer("The figures"),
                    "503": _answer("Maintenance: the error form and the figures together"),
                },
            }
        },
        "/queue/info": {
            "get": {
                "summary": "The queue's attributes, asked of SQS now",
                "responses": {"200": _answer("Every attribute that SQS returns"), **_errors(502, 503, 504)},
            }
        },
        "/openapi.json": {
            "get": {"summary": "This description", "responses": {"200": _answer("OpenAPI 3.1"), **_errors(503)}}
        },
    },
    "components": {
        "schemas": {"Error": _ERROR},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    },
}
