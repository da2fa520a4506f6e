"""The routes of the fleet, in memory: what they show, who may change what, and how etcd's troubles look."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from svc import Message
from svc.api import app as api
from svc.api import openapi_examples as examples
from svc.api import page_content
from svc.core import Core
from svc.maintenance.fleet import Fleet, Request
from svc.maintenance.orders import CannotWrite, Order, OutOfReach
from svc.maintenance.registration import Registration
from svc.maintenance.standalone import StandaloneSwitch
from svc.settings import load
from svc.testing import SimulatedQueue, SimulatedSwitch
from tests.described import Answered, hold_to_description

TOKEN = "a-long-secret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def nothing(message: Message) -> None: ...


@dataclass
class Board:
    """The simulated switch as a switchboard that can be broken."""

    switch: SimulatedSwitch
    broken: OutOfReach | None = None
    looks: int = 0

    async def look(self) -> Fleet:
        self.looks += 1
        await trio.sleep(0.1)
        if self.broken is not None:
            raise self.broken
        return await self.switch.look()

    async def ask(self, order: Order) -> Request:
        if self.broken is not None:
            raise self.broken
        return await self.switch.ask(order)


@dataclass
class Held:
    core: Core
    client: Any
    board: Board
    met: set[Answered]

    async def ask(self, method: str, path: str, *, json: object = None, **headers: str) -> tuple[int, dict[str, Any]]:
        given = {"json": json} if json is not None else {}
        answer = await self.client.open(path, method=method, headers=headers, **given)
        return answer.status_code, await answer.get_json()


@asynccontextmanager
async def running(token: str | None = TOKEN) -> AsyncIterator[Held]:
    settings = load({"SQS_WAIT_TIME_SECONDS": "1", **({"API_TOKEN": token} if token else {})})
    switch = SimulatedSwitch()
    identity = Registration("orders-1", "orders", 1, "1.0", "2026-01-01T00:00:00Z", settings.sqs_queue_url, "t")
    core = Core(settings, SimulatedQueue(), nothing, switch.watcher, identity=identity, make_registrar=switch.registrar)
    board, met = Board(switch), set[Answered]()
    app = api.make(core, switchboard=board)
    hold_to_description(app, met.add)
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        await trio.sleep(2)
        yield Held(core, app.test_client(), board, met)
        nursery.cancel_scope.cancel()


async def test_the_fleet_in_maintenance_and_out_of_it(autojump_clock: MockClock) -> None:
    async with running() as held:
        status, body = await held.ask("GET", "/fleet")
        assert (status, body["maintenance"], body["drained"]) == (200, False, False)
        assert [(row["id"], row["phase"], row["current"]) for row in body["instances"]] == [
            ("orders-1", "running", True)
        ]
        status, body = await held.ask("PUT", "/maintenance", json=examples.ORDER, **BEARER)
        assert (status, body["maintenance"], body["revision"]) == (200, True, held.board.switch.mod_revision())
        await trio.sleep(3)
        status, body = await held.ask("GET", "/fleet")  # answers in maintenance
        assert (status, body["by"], body["reason"], body["drained"]) == (200, "ops", "database upgrade", True)
        assert [(row["phase"], row["revision"]) for row in body["instances"]] == [("drained", body["revision"])]
        status, body = await held.ask("GET", "/maintenance")
        assert (status, body["maintenance"], "instances" in body) == (200, True, False)
        status, body = await held.ask("DELETE", "/maintenance?by=ops", **BEARER)
        assert (status, body["maintenance"]) == (200, False)
        await trio.sleep(1)
        assert (await held.ask("GET", "/fleet"))[1]["instances"][0]["phase"] == "running"


async def test_one_instance(autojump_clock: MockClock) -> None:
    async with running() as held:
        assert (await held.ask("PUT", "/maintenance", json={"instance": "orders-2"}, **BEARER))[0] == 400
        status, body = await held.ask("PUT", "/maintenance", json={"instance": "orders-1", "reason": "disk"}, **BEARER)
        assert (status, body["instance"], body["key"]) == (200, "orders-1", "/maintenance/sqs-service/only/orders-1")
        await trio.sleep(3)
        _, body = await held.ask("GET", "/fleet")
        assert (body["maintenance"], body["only"], body["instances"][0]["keys"]) == (False, ["orders-1"], ["instance"])
        health = (await held.ask("GET", "/health"))[1]
        assert (health["status"], health["switch"]["keys"], health["switch"]["reason"]) == (
            "maintenance",
            ["instance"],
            "disk",
        )
        assert (await held.ask("DELETE", "/maintenance?instance=orders-1", **BEARER))[0] == 200
        await trio.sleep(1)
        assert (await held.ask("GET", "/health"))[1]["status"] == "healthy"


async def test_someone_elses_maintenance_is_a_conflict(autojump_clock: MockClock) -> None:
    async with running() as held:
        held.board.switch.set('{"enabled": true, "by": "ann", "reason": "disks"}')
        for method, path, body in (
            ("PUT", "/maintenance", {"by": "bob"}),
            ("DELETE", "/maintenance", None),
            ("DELETE", "/maintenance?by=bob&force=false", None),
        ):
            status, told = await held.ask(method, path, json=body, **BEARER)
            assert (status, told["error"]) == (409, "Conflict")
            assert "on by ann (disks)" in told["message"]
        assert b"ann" in (held.board.switch.value or b"")
        assert (await held.ask("DELETE", "/maintenance?force=true", **BEARER))[0] == 200
        assert held.board.switch.value == b"false"


async def test_nobody_changes_anything_without_the_token(autojump_clock: MockClock) -> None:
    async with running() as held:
        for method in ("PUT", "DELETE"):
            assert (await held.ask(method, "/maintenance", json={}))[0] == 401
            assert (await held.ask(method, "/maintenance", json={}, Authorization="Bearer wrong-wrong"))[0] == 403
        assert held.board.switch.value is None
    async with running(token=None) as held:
        for method in ("PUT", "DELETE"):
            status, told = await held.ask(method, "/maintenance", json={}, **BEARER)
            assert status == 403
            assert "API_TOKEN" in told["message"]
        assert held.board.switch.value is None
        assert (await held.ask("GET", "/fleet"))[0] == 200


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"reasons": "x"}, "unknown field"),
        ({"for": "soon"}, '"for"'),
        ({"by": 5}, '"by"'),
        ({"instance": "../all"}, '"instance"'),
        ([], "JSON object"),
    ],
)
async def test_bad_orders(autojump_clock: MockClock, document: object, said: str) -> None:
    async with running() as held:
        status, told = await held.ask("PUT", "/maintenance", json=document, **BEARER)
        assert status == 400
        assert said in told["message"]
        assert held.board.switch.value is None


async def test_bad_bodies_and_queries(autojump_clock: MockClock) -> None:
    async with running() as held:
        kind = {"Content-Type": "application/json", **BEARER}
        for data, headers, status in (
            (b"{", kind, 400),
            (b"\xff", kind, 400),
            (b"{}", BEARER, 415),
            (b'{"reason": "' + b"x" * 9000 + b'"}', kind, 413),
        ):
            answer = await held.client.put("/maintenance", data=data, headers=headers)
            assert answer.status_code == status
        for query in ("force=perhaps", "reason=x", "instance=a%2Fb", "by="):
            assert (await held.ask("DELETE", f"/maintenance?{query}", **BEARER))[0] == 400
        assert held.board.switch.value is None


async def test_etcd_out_of_reach(autojump_clock: MockClock) -> None:
    async with running() as held:
        for broken, status in ((OutOfReach("refused"), 502), (OutOfReach("no answer", timed_out=True), 504)):
            held.board.broken = broken
            await trio.sleep(2)
            for method, path in (
                ("GET", "/fleet"),
                ("GET", "/maintenance"),
                ("PUT", "/maintenance"),
                ("DELETE", "/maintenance"),
            ):
                json = {} if method == "PUT" else None
                assert (await held.ask(method, path, json=json, **BEARER))[0] == status
        held.board.broken = None
        await trio.sleep(2)
        assert (await held.ask("GET", "/fleet"))[0] == 200
    core = Core(load({}), SimulatedQueue(), nothing, SimulatedSwitch().watcher)
    answer = await api.make(core).test_client().get("/fleet")  # belongs to no fleet
    assert answer.status_code == 502


async def test_without_etcd_the_fleet_is_this_instance(autojump_clock: MockClock) -> None:
    settings = load({"SQS_WAIT_TIME_SECONDS": "1", "API_TOKEN": TOKEN, "ETCD_ENDPOINTS": "off"})

    class ReadOnly:
        path = "/etc/svc/maintenance"

        async def read(self) -> bytes | None:
            return b"off"

        async def write(self, value: bytes | None) -> None:
            raise CannotWrite(f"{self.path} cannot be written (Read-only file system): it is switched elsewhere")

    for file in (None, ReadOnly()):
        switch = StandaloneSwitch(file, wall=trio.current_time, date=str)
        identity = Registration("orders-1", "orders", 1, "1.0", "2026-01-01T00:00:00Z", settings.sqs_queue_url, "t")
        core = Core(settings, SimulatedQueue(), nothing, switch.watcher, identity=identity)
        app = api.make(core, switchboard=switch.board(core.registration))
        hold_to_description(app)
        held = Held(core, app.test_client(), Board(SimulatedSwitch()), set())
        async with trio.open_nursery() as nursery:
            await nursery.start(core.run)
            await trio.sleep(2)
            status, told = await held.ask("PUT", "/maintenance", json={"reason": "disk"}, **BEARER)
            if file is not None:
                assert status == 409
                assert told["message"].endswith("switched elsewhere. Nothing was changed.")
            else:
                assert (status, told["maintenance"], told["key"], told["instance"]) == (200, True, None, None)
                await trio.sleep(2)
                status, told = await held.ask("GET", "/fleet")
                assert (status, told["fleet"], told["key"], told["drained"]) == (200, False, None, True)
                assert [(one["id"], one["current"]) for one in told["instances"]] == [("orders-1", True)]
                assert (await held.ask("GET", "/maintenance"))[1]["reason"] == "disk"
                assert (await held.ask("PUT", "/maintenance", json={"instance": "b"}, **BEARER))[0] == 400
                assert (await held.ask("DELETE", "/maintenance", **BEARER))[0] == 200
            await trio.sleep(2)
            status, told = await held.ask("GET", "/health")
            assert (status, told["status"], told["etcd"]) == (200, "healthy", None)
            told = page_content.state(core, None)
            assert (told["fleet"], told["key"], told["troubles"]) == (False, None, [])
            nursery.cancel_scope.cancel()


async def test_many_who_ask_cost_etcd_one_look_a_second(autojump_clock: MockClock) -> None:
    async with running() as held:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(held.client.get, "/fleet")
        assert held.board.looks == 1
        await held.client.get("/fleet")
        assert held.board.looks == 1
        await held.ask("PUT", "/maintenance", json={}, **BEARER)
        assert (await held.ask("GET", "/maintenance"))[1]["maintenance"] is True  # not what was seen before
        assert held.board.looks == 2


async def meet_every_answer() -> set[Answered]:
    """Ask for each answer that the description of these routes has, once."""
    kind = {"Content-Type": "application/json", **BEARER}
    async with running() as held:
        for method, path in (
            ("GET", "/fleet"),
            ("GET", "/maintenance"),
            ("PUT", "/maintenance"),
            ("DELETE", "/maintenance"),
        ):
            json = {} if method == "PUT" else None
            await held.ask(method, path, json=json, **BEARER)
            await held.ask(method, path, json=json)
            await held.ask(method, path, json=json, Authorization="Bearer wrong-wrong")
            held.board.switch.set('{"enabled": true, "by": "ann"}')
            await held.ask(method, path, json=json, **BEARER)
            await held.ask(
                method, f"{path}?force=perhaps", json={"force": "perhaps"} if json is not None else None, **BEARER
            )
            for broken in (OutOfReach("refused"), OutOfReach("no answer", timed_out=True)):
                held.board.broken = broken
                await trio.sleep(2)
                await held.ask(method, path, json=json, **BEARER)
            held.board.broken = None
            held.board.switch.set("off")
            await trio.sleep(2)
        await held.client.put("/maintenance", data=b"{}", headers=BEARER)
        await held.client.put("/maintenance", data=b"x" * 9000, headers=kind)
        async with held.client.request("/maintenance", method="PUT", headers=kind) as slow:
            await slow.send(b"{")
            await trio.sleep(11)
        return held.met
