"""Routes that answer in maintenance too: `GET /health`, `/health/live`, `/health/ready`, `/metrics`."""

from collections.abc import Awaitable, Callable

import quart
import trio
from quart_trio import QuartTrio

from svc.api import bodies
from svc.api.answers import Answer, error
from svc.core import Core
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase
from svc.telemetry.metrics import CONTENT_TYPE, Metrics


def add(app: QuartTrio, core: Core, metrics: Metrics) -> None:
    metrics.look_at(
        lambda: (
            core.worker.statistics(),
            core.gate.statistics(),
            core.manager.state(),
            bodies.switches(core.watcher.snapshot(), core.settings),
            None if core.database is None else core.database.statistics(),
        ),
        core.defects.counts,
    )

    @app.get("/health")
    async def health() -> Answer:
        working = await _handlers_health(core)
        state, worker = core.manager.state(), core.worker.statistics()
        status = _status(state, all(working.values()))
        body: dict[str, object] = {
            "status": status,
            "maintenance": bodies.in_maintenance(state),
            "handlers": working,
            **bodies.held_in(core.watcher.snapshot(), state, core.settings),
            "switch": bodies.switch(state),
            "drain": bodies.drain(state.drain),
            "queue_url": core.settings.sqs_queue_url,
            **bodies.queue_trouble(worker, core.worker.probe_trouble),
            "breaker": bodies.breaker(worker.breaker),
            "threads": bodies.threads(worker),
            **({} if core.database is None else {"database": bodies.database(core.database.statistics())}),
            "timestamp": bodies.now(),
        }
        return body, 503 if status in ("starting", "unhealthy") else 200

    @app.get("/health/live")
    async def live() -> Answer:
        return {"status": "live", "timestamp": bodies.now()}, 200

    @app.get("/health/ready")
    async def ready() -> Answer:
        state = core.manager.state()
        if state.phase in (Phase.DRAINING, Phase.MAINTENANCE) and core.settings.ready_in_maintenance == "true":
            return {"status": state.phase.value, "timestamp": bodies.now()}, 200
        if state.phase is not Phase.RUNNING:
            return error(503, f"not ready: {state.phase.value}")
        if not core.worker.statistics().received_once:
            return error(503, "not ready: no receive has been answered yet")
        return {"status": "ready", "timestamp": bodies.now()}, 200

    @app.get("/metrics")
    async def show_metrics() -> quart.Response:
        return quart.Response(metrics.text(), content_type=CONTENT_TYPE)


async def _handlers_health(core: Core) -> dict[str, bool]:
    working: dict[str, bool] = {}

    async def ask(name: str, health: Callable[[], Awaitable[bool]]) -> None:
        try:
            working[name] = await health()
        except Exception as defect:
            core.defects.note("handler", defect, handler=name)

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
