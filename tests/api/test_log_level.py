"""`GET` and `PUT /log-level`: in memory."""

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from svc.api import openapi_examples as examples
from svc.telemetry import logs
from tests.api.test_api_fleet import BEARER, running
from tests.described import Answered

pytestmark = pytest.mark.usefixtures("log_level_kept")


async def test_it_is_changed_and_shown(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with running() as held:
        status, body = await held.ask("PUT", "/log-level", json={"level": "debug"}, **BEARER)
        assert (status, {**body, "timestamp": examples.NOW}) == (200, examples.LOG_LEVEL)
        assert logging.getLogger("httpx").getEffectiveLevel() == logging.DEBUG
        assert (await held.ask("GET", "/log-level"))[1]["level"] == "debug"
        assert (await held.ask("PUT", "/log-level", json={"level": "error"}, **BEARER))[0] == 200
        assert logging.getLogger("httpx").getEffectiveLevel() == logging.WARNING
        assert (await held.ask("PUT", "/log-level", json={"level": "warning"}, **BEARER))[0] == 200
        assert logs.level() == "warning"
    told = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    changes = [
        (line["previous_log_level"], line["log_level"], line["by"])
        for line in told
        if line["event"] == "log level changed"
    ]
    assert changes == [
        ("info", "debug", "PUT /log-level"),
        ("debug", "error", "PUT /log-level"),
        ("error", "warning", "PUT /log-level"),
    ]


async def test_it_is_changed_in_maintenance(autojump_clock: MockClock) -> None:
    async with running() as held:
        held.board.switch.set("true")
        assert (await held.ask("PUT", "/log-level", json={"level": "error"}, **BEARER))[0] == 200
        assert logs.level() == "error"


async def test_who_may_not_change_it(autojump_clock: MockClock) -> None:
    async with running() as held:
        assert (await held.ask("PUT", "/log-level", json={"level": "debug"}))[0] == 401
        wrong = {"Authorization": "Bearer another"}
        assert (await held.ask("PUT", "/log-level", json={"level": "debug"}, **wrong))[0] == 403
    async with running(token=None) as held:
        status, body = await held.ask("PUT", "/log-level", json={"level": "debug"})
        assert status == 403
        assert "set API_TOKEN" in body["message"]
    assert logs.level() == "info"


@pytest.mark.parametrize(
    "document",
    [{}, {"level": "loud"}, {"level": "DEBUG"}, {"level": 10}, {"level": ["info"]}, {"level": "info", "for": 1}],
)
async def test_bad_levels(autojump_clock: MockClock, document: Any) -> None:
    async with running() as held:
        status, body = await held.ask("PUT", "/log-level", json=document, **BEARER)
        assert status == 400
        assert "one of debug, info, warning, error" in body["message"]
    assert logs.level() == "info"


async def test_bad_bodies(autojump_clock: MockClock) -> None:
    async with running() as held:
        kind = {"Content-Type": "application/json", **BEARER}
        for data, headers, status in (
            (b"{", kind, 400),
            (b"[]", kind, 400),
            (b'{"level": "debug"}', BEARER, 415),
            (b'{"level": "' + b"x" * 2000 + b'"}', kind, 413),
        ):
            answer = await held.client.put("/log-level", data=data, headers=headers)
            assert answer.status_code == status
    assert logs.level() == "info"


async def meet_every_answer() -> set[Answered]:
    """Ask for each answer that the description of these routes has, once."""
    kind = {"Content-Type": "application/json", **BEARER}
    async with running() as held:
        await held.ask("GET", "/log-level")
        for json, headers in (
            ({"level": "info"}, BEARER),
            ({"level": "loud"}, BEARER),
            ({"level": "info"}, {}),
            ({"level": "info"}, {"Authorization": "Bearer wrong-wrong"}),
        ):
            await held.ask("PUT", "/log-level", json=json, **headers)
        await held.client.put("/log-level", data=b"{}", headers=BEARER)
        await held.client.put("/log-level", data=b"x" * 2000, headers=kind)
        async with held.client.request("/log-level", method="PUT", headers=kind) as slow:
            await slow.send(b"{")
            await trio.sleep(11)
        return held.met
