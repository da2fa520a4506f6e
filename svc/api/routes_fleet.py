"""Routes of the fleet: `GET /fleet`, and `GET`, `PUT`, `DELETE /maintenance`, which do what the command does.

Without etcd the fleet is this instance, and what is switched is its own (`maintenance/standalone.py`).

They answer in maintenance too: it is then that they are needed. Who wants to change something needs the token, and a service that
was given none changes nothing: anybody who reaches its port could stop the fleet.
"""

from collections.abc import Mapping

import quart
import trio

from svc.api import bodies
from svc.api.answers import Answer, authorise, error, json_body
from svc.api.request_bodies import Unacceptable, json_object
from svc.maintenance import fleet_table
from svc.maintenance.fleet import Fleet
from svc.maintenance.orders import CannotWrite, NoSuchInstance, NotYours, Order, OutOfReach, Switchboard, read_order
from svc.settings import Settings

EVERY = 1.0
"""Seconds between two questions to etcd, however many ask us."""

BODY_LIMIT = 8192
"""Bytes of an order."""


class _Shared:
    """One look at the fleet for all who ask at the same time."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._one_at_a_time = trio.Lock()
        self._asked_at = self._answered_at = float("-inf")
        self._found: Fleet | OutOfReach | None = None

    def forget(self) -> None:
        """What was seen is no longer so."""
        self._asked_at = float("-inf")

    async def look(self) -> Fleet:
        came = trio.current_time()
        async with self._one_at_a_time:
            # Who waited for the look of another has its answer.
            if self._found is None or (self._asked_at < came and self._asked_at + EVERY <= trio.current_time()):
                self._asked_at = trio.current_time()
                try:
                    self._found = await self._switchboard.look()
                except OutOfReach as error:
                    self._found = error
            found = self._found
        if isinstance(found, OutOfReach):
            raise OutOfReach(str(found), timed_out=found.timed_out)
        return found


def add(app: quart.Quart, settings: Settings, switchboard: Switchboard) -> None:
    """Add the routes."""
    shared = _Shared(switchboard)
    fleet_or_not = bodies.fleet_or_not(settings)

    @app.errorhandler(OutOfReach)
    async def out_of_reach(raised: OutOfReach) -> Answer:
        return error(504 if raised.timed_out else 502, str(raised))

    @app.errorhandler(NotYours)
    async def not_yours(raised: NotYours) -> Answer:
        return error(409, f'{raised}. Give their name as "by", or insist with "force".')

    @app.errorhandler(NoSuchInstance)
    async def no_such_instance(raised: NoSuchInstance) -> Answer:
        return error(400, str(raised))

    @app.errorhandler(CannotWrite)
    async def cannot_write(raised: CannotWrite) -> Answer:
        return error(409, f"{raised}. Nothing was changed.")

    @app.get("/fleet")
    async def fleet() -> Answer:
        shown = fleet_table.fleet(await shared.look())
        return {**fleet_or_not, **shown, "timestamp": bodies.now()}, 200

    @app.get("/maintenance")
    async def held() -> Answer:
        shown = fleet_table.fleet(await shared.look())
        for name in ("instances", "quiet", "drained", "vanished"):
            del shown[name]
        return {**fleet_or_not, **shown, "timestamp": bodies.now()}, 200

    @app.put("/maintenance")
    async def on() -> Answer:
        authorise(settings, token_needed=True)
        body = await json_body(BODY_LIMIT)
        return await obey(json_object(body, such_as='{"reason": "text", "by": "name", "for": "30m"}'), on=True)

    @app.delete("/maintenance")
    async def off() -> Answer:
        authorise(settings, token_needed=True)
        told: dict[str, object] = {name: value for name, value in quart.request.args.items() if name != "force"}
        if "force" in quart.request.args:
            told["force"] = {"true": True, "false": False}.get(quart.request.args["force"], "neither")
        return await obey(told, on=False)

    async def obey(document: Mapping[str, object], *, on: bool) -> Answer:
        try:
            order: Order = read_order(document, on=on)
        except ValueError as fault:
            raise Unacceptable(str(fault)) from None
        request = await switchboard.ask(order)
        shared.forget()
        return {
            "maintenance": request.on,
            "key": order.key(settings.maintenance_key) if settings.etcd_endpoints else None,
            "instance": request.instance,
            "revision": request.revision or None,
            "timestamp": bodies.now(),
        }, 200
