"""What the groups of routes share: the one form of every error, and who may change something."""

import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import quart
from werkzeug.exceptions import HTTPException

from svc.settings import Settings

Answer = tuple[dict[str, Any], int] | tuple[dict[str, Any], int, dict[str, str]]


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """The one form of every error."""
    # RFC 9110's name for 413, which Python knows from 3.13 on: the answer must not depend on the interpreter.
    reason = "Content Too Large" if status == 413 else HTTPStatus(status).phrase
    body: dict[str, object] = {"error": reason, "message": message, "code": status}
    return body, status, dict(headers or {})


def authorise(settings: Settings, *, token_needed: bool = False) -> None:
    """Abort with 401 or 403 unless the request carries the token, where one is configured. `token_needed`: without a configured
    token nobody may do this."""
    if settings.api_token is None:
        if token_needed:
            quart.abort(403, "this takes a token, and the service was given none: set API_TOKEN")
        return
    scheme, _, token = quart.request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorised
    # The bytes that were sent against those of the environment: the one is decoded as ISO 8859-1, the other as UTF-8.
    sent = token.strip().encode("latin-1", "replace")
    if not hmac.compare_digest(sent, settings.api_token.get_secret_value().encode("utf-8", "surrogateescape")):
        quart.abort(403, "the bearer token is not the one that this service was given in API_TOKEN")


async def json_body(limit: int) -> bytes:
    """The body of a request that has to be JSON; aborts with 415, or with 413 over so many bytes."""
    if quart.request.mimetype != "application/json":
        quart.abort(415, "send the body as Content-Type: application/json")
    if quart.request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        quart.abort(415, "send the body as it is: no Content-Encoding is understood")
    if (quart.request.content_length or 0) > limit:
        quart.abort(413)
    body: bytes = await quart.request.get_data(cache=False)  # type: ignore[assignment]
    if len(body) > limit:
        quart.abort(413)
    return body


class Unauthorised(HTTPException):
    code = 401
    description = "this request changes something: send Authorization: Bearer <the service's API_TOKEN>"
