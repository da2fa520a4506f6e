"""What was raised → the one form of error that every answer has: whose fault it is, and what to do about it."""

from datetime import UTC, datetime
from http import HTTPStatus

from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge, RequestTimeout

from svc.api import request_bodies
from svc.api.answers import Answer, Unauthorised, error
from svc.api.feed import TooManyWatchers
from svc.consumer.queue import MessageRefused, MessageTooLong, QueueError, QueueTimeout
from svc.core import Core
from svc.maintenance.gate import GateClosed
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase

RETRY_AFTER = 30
"""Seconds that a client is told to wait in maintenance whose end is not known."""


def add(app: QuartTrio, core: Core) -> None:
    @app.errorhandler(HTTPException)
    async def http_error(raised: HTTPException) -> Answer:
        status = raised.code or 500
        match raised:
            case MethodNotAllowed(valid_methods=methods):
                allowed = ", ".join(sorted(methods or ()))
                return error(status, f"this endpoint takes {allowed}", {"Allow": allowed})
            case RequestEntityTooLarge():
                return error(status, f"the request body is over {request_bodies.BODY_LIMIT} bytes")
            case Unauthorised():
                return error(status, str(raised.description), {"WWW-Authenticate": "Bearer"})
            case RequestTimeout():
                within = f"the request body did not arrive within {app.config['BODY_TIMEOUT']:g} s"
                return error(status, within, {"Connection": "close"})
        if status == 404:
            return error(status, "there is no such endpoint; GET /openapi.json describes those there are")
        if status >= 500:
            return error(500, "the service failed on this request; its log says why")
        return error(status, raised.description or HTTPStatus(status).phrase)

    @app.errorhandler(request_bodies.Unacceptable)
    async def unacceptable(raised: request_bodies.Unacceptable) -> Answer:
        return error(raised.status, str(raised))

    @app.errorhandler(QueueError)
    async def queue_error(raised: QueueError) -> Answer:
        match raised:
            case MessageTooLong():
                status = 413
            case MessageRefused():
                status = 400
            case QueueTimeout():
                status = 504
            case _:
                status = 502
        return error(status, str(raised))

    @app.errorhandler(TooManyWatchers)
    async def too_many(raised: TooManyWatchers) -> Answer:
        return error(503, str(raised), {"Retry-After": "10"})

    @app.errorhandler(GateClosed)
    async def closed(_: GateClosed) -> Answer:
        return closed_answer(core.manager.state())


def closed_answer(state: MaintenanceState) -> Answer:
    switch, wait = state.in_force, RETRY_AFTER
    match state.phase:
        case Phase.STARTING:
            why, wait = "the service is starting: it has not read the maintenance key yet", 5
            if state.unreadable:
                why = f"the service is waiting for a usable value of the maintenance key: {state.unreadable}"
        case Phase.STOPPING | Phase.STOPPED:
            why = "the service is stopping"
        case _:
            why = "the service is in maintenance"
    if switch is not None:
        told = [
            f"{name}: {value}"
            for name, value in (("reason", switch.reason), ("by", switch.by), ("until", switch.until))
            if value
        ]
        why = f"{why} ({'; '.join(told)})" if told else why
        wait = _seconds_until(switch.until) or wait
    body, status, _ = error(503, why)  # type: ignore[misc]
    if switch is not None:
        body |= {"reason": switch.reason, "until": switch.until, "by": switch.by}
    return body, status, {"Retry-After": str(wait)}


def _seconds_until(date: str | None) -> int | None:
    if date is None:
        return None
    try:
        until = datetime.fromisoformat(date)
    except ValueError:
        return None
    if until.tzinfo is None:
        return None
    return max(1, min(86_400, round((until - datetime.now(UTC)).total_seconds())))
