"""The HTTP API put together: errors (`errors.py`), routes (`routes_*.py`), and the server that carries it (`server.py`).

A route looks at snapshots and renders them, or passes a checked request to the queue. What may be asked in maintenance is not
gated; everything else goes through the `Gate`, which counts it as under way until it is answered. No route starts a task,
decides about a message or changes a phase.

One quirk of the libraries is met here (STACK 1.2): QuartTrio loses hypercorn's idle timer unless `send` is shielded.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import quart
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.json.provider import DefaultJSONProvider
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from svc import __version__
from svc.api import (
    errors,
    request_bodies,
    routes_dead_letters,
    routes_fleet,
    routes_health,
    routes_logs,
    routes_messages,
    routes_page,
    server,
)
from svc.api.feed import Feed
from svc.core import Core
from svc.defects import Defects
from svc.maintenance.orders import NoFleet, Switchboard
from svc.settings import Settings
from svc.telemetry.metrics import Metrics

BODY_TIMEOUT = 10
"""Seconds that a client may take to send a body."""

CannotListen = server.CannotListen

GRACE = server.GRACE
"""Seconds that requests under way get when the server stops."""


class _Connection(TrioASGIHTTPConnection):
    """Shields `send`: hypercorn restarts a connection's idle timer within the last one, and QuartTrio cancels it there. The bound
    is a backstop: the server gives up a client that does not read its answer."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def shielded(event: ASGISendEvent) -> None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + server.SEND_TIMEOUT + 1):
                await send(event)

        await super().__call__(receive, shielded)


class _Request(TrioRequest):
    async def get_data(self, *args: Any, **options: Any) -> Any:
        # Not for a body that is too long: that is known without it.
        if self.content_length is None or self.content_length <= (self.max_content_length or 0):
            state: Mapping[str, Any] = self.scope.get("state") or {}
            want_body = state.get(server.WANT_BODY)
            if want_body is not None:
                await want_body()
        return await super().get_data(*args, **options)


class _InOrder(DefaultJSONProvider):
    """Answers keep the order in which they are written here: what people look for comes first."""

    sort_keys = False


_HANDS_CONTEXT_ON = len(inspect.signature(QuartTrio.handle_exception).parameters) == 3
"""quart 0.23 (on Python 3.13 and later) hands a request's context from method to method, 0.22 keeps it to itself."""


class _App(QuartTrio):
    asgi_http_class = _Connection
    json_provider_class = _InOrder
    request_class = _Request
    defects: Defects

    async def full_dispatch_request(self, *context: Any) -> ResponseTypes:
        try:
            return await super().full_dispatch_request(*context)
        except BaseExceptionGroup as group:
            # A route with a nursery in it: QuartTrio would raise the group on, and the client have no answer.
            _, others = group.split(trio.Cancelled)
            if not isinstance(others, ExceptionGroup):
                raise
            answer: ResponseTypes = await self._handle(*(context if _HANDS_CONTEXT_ON else ()), others)
            return answer

    @property
    def _handle(self) -> Any:
        return self.handle_exception

    def log_exception(self, *told: object) -> None:
        """What no error handler knows is a defect, and the request's answer is a 500."""
        error = sys.exception()
        if error is not None:
            self.defects.note("request", error, request=f"{quart.request.method} {quart.request.path}")


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
    app.defects = core.defects
    app.config.update(
        MAX_CONTENT_LENGTH=request_bodies.BODY_LIMIT, BODY_TIMEOUT=body_timeout, PROVIDE_AUTOMATIC_OPTIONS=False
    )
    errors.add(app, core)
    routes_health.add(app, core, metrics or Metrics(__version__))
    routes_messages.add(app, core)
    routes_dead_letters.add(app, core)
    routes_page.add(app, feed or Feed(core))
    routes_logs.add(app, core.settings)
    routes_fleet.add(app, core.settings, switchboard or NoFleet())
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
