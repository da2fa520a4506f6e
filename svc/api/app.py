"""The HTTP API: routes, one form of error for everything, and the server that carries it.

A route looks at snapshots and renders them, or passes a checked request to the queue. What may be asked in maintenance is not
gated; everything else goes through the `Gate`, which counts it as under way until it is answered. No route starts a task,
decides about a message or changes a phase.

One quirk of the libraries is met here (STACK 1.2): QuartTrio loses hypercorn's idle timer unless `send` is shielded.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from http import HTTPStatus
from typing import ParamSpec

import quart
import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.json.provider import DefaultJSONProvider
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge, RequestTimeout

from svc import __version__
from svc.api import bodies as render
from svc.api import request_bodies as outgoing
from svc.api import routes_fleet as api_fleet
from svc.api import routes_logs as api_logs
from svc.api import routes_page as api_page
from svc.api import server
from svc.api.answers import Answer, Unauthorised, authorise, error
from svc.api.feed import Feed, TooManyWatchers
from svc.api.openapi import DESCRIPTION
from svc.consumer.queue import MessageRefused, MessageTooLong, QueueError, QueueTimeout
from svc.core import Core
from svc.maintenance.gate import GateClosed
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.orders import NoFleet, Switchboard
from svc.maintenance.phases import Phase
from svc.settings import Settings
from svc.telemetry.metrics import CONTENT_TYPE, Metrics

log = structlog.get_logger(__name__)

P = ParamSpec("P")

BODY_TIMEOUT = 10
"""Seconds that a client may take to send a body."""

ANSWER_TIMEOUT = 15.0
"""Seconds after which a request that waits for SQS is answered with 504."""

GRACE = server.GRACE
"""Seconds that requests under way get when the server stops."""

RETRY_AFTER = 30
"""Seconds that a client is told to wait in maintenance whose end is not known."""


class _Connection(TrioASGIHTTPConnection):
    """Shields `send`: hypercorn restarts a connection's idle timer within the last one, and QuartTrio cancels it there. The bound
    is a backstop: the server gives up a client that does not read its answer."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def shielded(event: ASGISendEvent) -> None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + server.SEND_TIMEOUT + 1):
                await send(event)

        await super().__call__(receive, shielded)


class _InOrder(DefaultJSONProvider):
    """Answers keep the order in which they are written here: what people look for comes first."""

    sort_keys = False


class _App(QuartTrio):
    asgi_http_class = _Connection
    json_provider_class = _InOrder


def make(
    core: Core,
    metrics: Metrics | None = None,
    feed: Feed | None = None,
    switchboard: Switchboard | None = None,
    *,
    body_timeout: float = BODY_TIMEOUT,
) -> QuartTrio:
    """The application with its routes. `metrics`: what observes the core, if anything does. The page lives while `feed` runs.
    `switchboard`: the fleet, if it belongs to one."""
    app = _App(__name__, static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=outgoing.BODY_LIMIT, BODY_TIMEOUT=body_timeout, PROVIDE_AUTOMATIC_OPTIONS=False
    )
    _add_errors(app, core)
    _add_open_routes(app, core, metrics or Metrics(__version__))
    _add_gated_routes(app, core)
    api_page.add(app, feed or Feed(core))
    api_logs.add(app, core.settings)
    api_fleet.add(app, core.settings, switchboard or NoFleet())
    return app


async def serve(
    app: QuartTrio,
    settings: Settings,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set, then give requests under way `server.GRACE` seconds. Starts with the URL. Raises
    `server.CannotListen` (in groups) when the address cannot be had."""
    await server.serve(
        app,
        settings.http_host,
        settings.http_port,
        stop,
        max_connections=settings.http_max_connections,
        task_status=task_status,
    )


# -- errors --


def _add_errors(app: QuartTrio, core: Core) -> None:
    @app.errorhandler(HTTPException)
    async def http_error(raised: HTTPException) -> Answer:
        status = raised.code or 500
        match raised:
            case MethodNotAllowed(valid_methods=methods):
                allowed = ", ".join(sorted(methods or ()))
                return error(status, f"this endpoint takes {allowed}", {"Allow": allowed})
            case RequestEntityTooLarge():
                return error(status, f"the request body is over {outgoing.BODY_LIMIT} bytes")
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

    @app.errorhandler(outgoing.Unacceptable)
    async def unacceptable(raised: outgoing.Unacceptable) -> Answer:
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
        return _closed_answer(core.manager.state())


def _closed_answer(state: MaintenanceState) -> Answer:
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


# -- endpoints that answer in maintenance too --


def _add_open_routes(app: QuartTrio, core: Core, metrics: Metrics) -> None:
    metrics.look_at(
        lambda: (core.worker.statistics(), core.gate.statistics(), core.manager.state(), core.watcher.snapshot())
    )

    @app.get("/health")
    async def health() -> Answer:
        working = await _handlers_health(core)
        state = core.manager.state()
        status = _status(state, all(working.values()))
        body: dict[str, object] = {
            "status": status,
            "maintenance": render.in_maintenance(state),
            "handlers": working,
            "etcd": render.etcd(core.watcher.snapshot(), state, core.settings.maintenance_key),
            "switch": render.switch(state),
            "drain": render.drain(state.drain),
            "queue_url": core.settings.sqs_queue_url,
            **render.queue_trouble(core.worker.statistics(), core.worker.probe_trouble),
            "breaker": render.breaker(core.worker.statistics().breaker),
            "timestamp": render.now(),
        }
        return body, 503 if status in ("starting", "unhealthy") else 200

    @app.get("/health/live")
    async def live() -> Answer:
        return {"status": "live", "timestamp": render.now()}, 200

    @app.get("/health/ready")
    async def ready() -> Answer:
        state = core.manager.state()
        if state.phase is not Phase.RUNNING:
            return error(503, f"not ready: {state.phase.value}")
        if not core.worker.statistics().received_once:
            return error(503, "not ready: no receive has been answered yet")
        return {"status": "ready", "timestamp": render.now()}, 200

    @app.get("/metrics")
    async def show_metrics() -> quart.Response:
        return quart.Response(metrics.text(), content_type=CONTENT_TYPE)


async def _handlers_health(core: Core) -> dict[str, bool]:
    working: dict[str, bool] = {}

    async def ask(name: str, health: Callable[[], Awaitable[bool]]) -> None:
        working[name] = await health()

    async with trio.open_nursery() as nursery:
        for handler in core.manager.handlers:
            working[handler.name] = False
            nursery.start_soon(ask, handler.name, handler.health)
    return working


def _status(state: MaintenanceState, works: bool) -> str:
    if state.phase is Phase.STARTING:
        return "starting"
    if not works:
        return "unhealthy"
    return {Phase.RUNNING: "healthy", Phase.MAINTENANCE: "maintenance"}.get(state.phase, "draining")


# -- endpoints behind the gate --


def _add_gated_routes(app: QuartTrio, core: Core) -> None:
    queue_url = core.settings.sqs_queue_url

    def gated(route: Callable[P, Awaitable[Answer]]) -> Callable[P, Awaitable[Answer]]:
        @wraps(route)
        async def let_in(*args: P.args, **kwargs: P.kwargs) -> Answer:
            with core.gate.let_in(), trio.move_on_after(ANSWER_TIMEOUT):
                return await route(*args, **kwargs)
            return error(504, f"SQS did not answer within {ANSWER_TIMEOUT:g} s")

        return let_in

    def stats_body() -> dict[str, object]:
        state = core.manager.state()
        sqs = render.worker(
            core.worker.statistics(),
            state,
            name=core.worker.name,
            queue_url=queue_url,
            drain_timeout=core.settings.drain_timeout,
        )
        return {
            "maintenance": render.in_maintenance(state),
            "timestamp": render.now(),
            "handlers": [handler.name for handler in core.manager.handlers],
            "sqs": sqs,
        }

    @app.post("/messages/send")
    async def send() -> Answer:
        core.gate.knock()
        authorise(core.settings)
        if quart.request.mimetype != "application/json":
            quart.abort(415, "send the body as Content-Type: application/json")
        # Not under way yet: a client that takes its time over the body must not hold up a drain.
        wanted = outgoing.read(await quart.request.get_data(cache=False))  # type: ignore[arg-type]
        return await pass_on(wanted)

    @gated
    async def pass_on(wanted: outgoing.Outgoing) -> Answer:
        message_id = await core.queue.send(
            wanted.message,
            attributes=wanted.attributes or None,
            delay=wanted.delay_seconds,
            group_id=wanted.group_id,
            deduplication_id=wanted.deduplication_id,
        )
        return {
            "message_id": message_id,
            "message": wanted.message,
            "queue_url": queue_url,
            "timestamp": render.now(),
        }, 200

    @app.get("/messages/stats")
    async def stats() -> Answer:
        try:
            with core.gate.let_in():
                return stats_body(), 200
        except GateClosed:
            body, status, headers = _closed_answer(core.manager.state())  # type: ignore[misc]
            return body | stats_body(), status, headers

    @app.get("/queue/info")
    @gated
    async def info() -> Answer:
        attributes = await core.queue.attributes()
        return {
            "queue_url": queue_url,
            "attributes": dict(attributes),
            **await render.dead_letter_queue(core.queue.dead_letter_queue),
            "timestamp": render.now(),
        }, 200

    @app.get("/openapi.json")
    @gated
    async def describe() -> Answer:
        return DESCRIPTION, 200

    @app.get("/docs")
    async def describe_to_people() -> quart.Response:
        with core.gate.let_in():
            return api_page.docs()
