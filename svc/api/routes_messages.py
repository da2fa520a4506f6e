"""Routes behind the gate: `POST /messages/send`, `GET /messages/stats`, `/queue/info`, `/openapi.json`, `/docs`."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

import quart
import trio
from quart_trio import QuartTrio

from svc.api import bodies, request_bodies, routes_page
from svc.api.answers import Answer, authorise, error, json_body
from svc.api.errors import closed_answer
from svc.api.openapi import DESCRIPTION
from svc.core import Core
from svc.maintenance.gate import GateClosed

P = ParamSpec("P")

ANSWER_TIMEOUT = 15.0
"""Seconds after which a request that waits for SQS is answered with 504."""


def add(app: QuartTrio, core: Core) -> None:
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
        sqs = bodies.worker(
            core.worker.statistics(),
            state,
            name=core.worker.name,
            queue_url=queue_url,
            drain_timeout=core.settings.drain_timeout,
        )
        return {
            "maintenance": bodies.in_maintenance(state),
            "timestamp": bodies.now(),
            "handlers": [handler.name for handler in core.manager.handlers],
            "sqs": sqs,
            **{handler.name: handler.statistics() for handler in core.user_handlers},
            **({} if core.database is None else {"database": bodies.database(core.database.statistics())}),
        }

    @app.post("/messages/send")
    async def send() -> Answer:
        core.gate.knock()
        authorise(core.settings)
        # Not under way yet: a client that takes its time over the body must not hold up a drain.
        wanted = request_bodies.read(await json_body(request_bodies.BODY_LIMIT))
        return await pass_on(wanted)

    @gated
    async def pass_on(wanted: request_bodies.Outgoing) -> Answer:
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
            "timestamp": bodies.now(),
        }, 200

    @app.get("/messages/stats")
    async def stats() -> Answer:
        try:
            with core.gate.let_in():
                return stats_body(), 200
        except GateClosed:
            body, status, headers = closed_answer(core.manager.state())  # type: ignore[misc]
            return body | stats_body(), status, headers

    @app.get("/queue/info")
    @gated
    async def info() -> Answer:
        attributes = await core.queue.attributes()
        return {
            "queue_url": queue_url,
            "attributes": dict(attributes),
            **await bodies.dead_letter_queue(core.queue.dead_letter_queue),
            "timestamp": bodies.now(),
        }, 200

    @app.get("/openapi.json")
    @gated
    async def describe() -> Answer:
        return DESCRIPTION, 200

    @app.get("/docs")
    async def describe_to_people() -> quart.Response:
        with core.gate.let_in():
            return routes_page.docs()
