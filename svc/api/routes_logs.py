"""`GET` and `PUT /log-level`: the least level that is logged, looked at and changed while the service runs.

They answer in maintenance too. Who wants to change it needs the token, and a service that was given none does not let it be
changed: at `debug` a log may grow a hundredfold.
"""

import quart

from svc.api import bodies
from svc.api.answers import Answer, authorise, json_body
from svc.api.request_bodies import Unacceptable, json_object
from svc.settings import Settings
from svc.telemetry import logs

BODY_LIMIT = 1024
"""Bytes."""


def add(app: quart.Quart, settings: Settings) -> None:
    """Add the routes."""

    def answer() -> Answer:
        return {"level": logs.level(), "configured": settings.log_level, "timestamp": bodies.now()}, 200

    @app.get("/log-level")
    async def log_level() -> Answer:
        return answer()

    @app.put("/log-level")
    async def change_log_level() -> Answer:
        authorise(settings, token_needed=True)
        body = await json_body(BODY_LIMIT)
        told = json_object(body, such_as='{"level": "debug"}')
        if set(told) != {"level"} or told["level"] not in logs.LEVELS:
            raise Unacceptable(f'"level", and nothing else, has to be one of {", ".join(logs.LEVELS)}')
        logs.change_level(told["level"], by="PUT /log-level")
        return answer()
