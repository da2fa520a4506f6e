"""Scale-in protection: exact in virtual time, then a real service and a real agent on loopback."""

import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from svc.api.app import GRACE
from svc.core import Core
from svc.defects import Defects
from svc.devstack.stack import Etcd, Moto
from svc.settings import load
from svc.telemetry import scaling_metrics
from svc.telemetry import task_protection as module
from svc.telemetry.ecs_agent import AgentError
from svc.telemetry.task_protection import IDLE, LAST, MINUTES, PATIENCE, Protection, protection
from svc.testing import SimulatedQueue
from svc.testing.service import SimulatedService
from tests.live import stand
from tests.telemetry.small_agent import small_agent

HALF = MINUTES * 60 / 2


class Agent:
    """In memory: what was asked, by second. `trouble` is raised instead; `says` is answered; `takes` seconds."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, bool]] = []
        self.trouble: Exception | None = None
        self.says: object = None
        self.takes = 0.0

    async def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, seconds: float
    ) -> tuple[int, dict[str, Any]]:
        assert (method, path) == ("PUT", "/task-protection/v1/state")
        assert body is not None
        on = body["ProtectionEnabled"]
        assert body.get("ExpiresInMinutes") == (MINUTES if on else None)
        self.asked.append((round(trio.current_time(), 3), bool(on)))
        with trio.move_on_after(seconds):
            await trio.sleep(self.takes)
            if self.trouble is not None:
                raise self.trouble
            return 200, self.says or {"protection": {"ProtectionEnabled": on}}  # type: ignore[return-value]
        raise AgentError("no answer")


@asynccontextmanager
async def protected(
    agent: Agent, work: Callable[..., Any], **settings: str
) -> AsyncIterator[tuple[SimulatedService, SimulatedQueue, Protection, trio.Event]]:
    queue, stop, held = SimulatedQueue(), trio.Event(), SimpleNamespace()
    one = Protection(agent, lambda: len(held.core.worker.ledger), Defects())
    async with (
        SimulatedService(queue, work, make_core=partial(Core, observer=one), **settings) as service,
        trio.open_nursery() as nursery,
    ):
        held.core = service.core
        nursery.start_soon(one.run, stop)
        yield service, queue, one, stop
        stop.set()


async def sleep(message: Any) -> None:
    await trio.sleep(float(message.body))


async def test_it_is_on_while_messages_are_in_flight_and_a_little_longer(autojump_clock) -> None:
    agent = Agent()
    async with protected(agent, sleep) as (_, queue, one, _):
        await trio.sleep(100)
        assert agent.asked == []  # idle from the start: nothing to say
        queue.put("10")
        await trio.sleep(1)
        assert agent.asked == [(100, True)]
        assert one.snapshot().is_on
        await trio.sleep(20)  # until 121: it has ended at 110
        queue.put("5")
        await trio.sleep(IDLE)  # 151: idle since 126
        assert agent.asked == [(100, True)]
        await trio.sleep(IDLE)
        (_, off) = agent.asked
        assert off[1] is False
        assert 126 + IDLE <= off[0] < 127 + IDLE
        assert not one.snapshot().is_on
        await trio.sleep(10_000)
        assert len(agent.asked) == 2


async def test_it_is_renewed_at_half_of_its_time(autojump_clock) -> None:
    agent = Agent()
    async with protected(agent, sleep, SQS_VISIBILITY_TIMEOUT_SECONDS="600") as (_, queue, _, _):
        queue.put(str(3 * HALF - 10))
        await trio.sleep(3 * HALF + 100)
        assert agent.asked[:3] == [(0, True), (HALF, True), (2 * HALF, True)]
        [(at, on)] = agent.asked[3:]  # and not once more while it is idle, at 3 * HALF
        assert on is False
        assert 0 <= at - (3 * HALF - 10 + IDLE) < 1


async def test_it_is_off_as_soon_as_a_drain_has_ended_and_not_before(autojump_clock) -> None:
    agent = Agent()
    async with protected(agent, sleep) as (service, queue, _, _):
        queue.put("10")
        await trio.sleep(1)
        service.switch.set("on")
        await trio.sleep(5)
        assert agent.asked == [(0, True)]
        with trio.fail_after(60):
            while len(agent.asked) == 1:
                await trio.sleep(0.1)
        at, on = agent.asked[1]
        assert on is False
        assert 10 <= at < 10 + IDLE
        report = service.core.manager.state().drain
        assert report is not None
        assert report.ended is not None
        assert at - report.ended < 0.1


@pytest.mark.expects_errors
async def test_it_is_given_back_at_the_stop(autojump_clock) -> None:
    agent = Agent()
    async with protected(agent, sleep) as (_, queue, _, stop):
        queue.put("1000")
        await trio.sleep(5)
        stop.set()
        await trio.sleep(0.1)
        assert agent.asked == [(0, True), (5, False)]


@pytest.mark.expects_errors
async def test_a_stop_waits_for_a_mute_agent_for_a_moment_only(autojump_clock) -> None:
    agent = Agent()
    agent.takes = 1000
    async with protected(agent, sleep) as (_, queue, _, stop):
        queue.put("1000")
        await trio.sleep(1)
        began = trio.current_time()
        stop.set()
    assert agent.asked == [(0, True), (began, False)]  # the first may have been heeded
    assert trio.current_time() - began < LAST + 60  # the simulated service's own stop


@pytest.mark.expects_errors  # the message has not ended at the end
@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"failure": {"Arn": "x", "Detail": None, "Reason": "DEPLOYMENT_BLOCKED"}}, "DEPLOYMENT_BLOCKED"),
        (
            {"error": {"Code": "AccessDeniedException", "Message": "not\x1b[31m allowed"}},
            "AccessDeniedException: not\\x1b",
        ),
        ({"error": {}}, "error without a reason (HTTP 200)"),
        ({"protection": {"ProtectionEnabled": False}}, "does not say that the protection is on"),
        ({"protection": {"ProtectionEnabled": "true"}}, "does not say"),
        ({"protection": []}, "does not say"),
        ({"failure": "x"}, "does not say"),
    ],
)
async def test_a_refusal_is_told_once_counted_and_tried_again(
    autojump_clock, caplog: pytest.LogCaptureFixture, says: object, told: str
) -> None:
    agent = Agent()
    caplog.set_level(logging.INFO)
    agent.says = says
    async with protected(agent, sleep) as (_, queue, one, _):
        queue.put("600")
        await trio.sleep(300)
        tries = [at for at, _ in agent.asked]
        assert 4 < len(tries) < 12
        pauses = [after - before for before, after in pairwise(tries)]
        assert 1 <= pauses[0] <= 2
        assert max(pauses) <= module.LONGEST_PAUSE
        assert one.snapshot().failures == len(tries)
        assert not one.snapshot().is_on
        agent.says = None
        await trio.sleep(150)
        assert one.snapshot().is_on
    lines = [record.msg for record in caplog.records if "ECS agent" in str(record.msg)]
    assert [line["level"] for line in lines] == ["warning", "info"]
    assert told in lines[0]["error"]


@pytest.mark.expects_errors
async def test_what_nobody_foresaw_is_that_question_s_failure(autojump_clock, caplog) -> None:
    agent = Agent()
    agent.trouble = RuntimeError("can't start new thread")
    async with protected(agent, sleep) as (_, queue, one, _):
        queue.put("10")
        await trio.sleep(5)
        assert one.snapshot().failures > 1
        agent.trouble = None
        await trio.sleep(60)
        assert [on for _, on in agent.asked][-1] is False
    caplog.clear()


async def test_a_mute_agent_is_asked_to_take_back_what_it_may_have_given(autojump_clock) -> None:
    agent = Agent()
    agent.takes = PATIENCE * 2
    async with protected(agent, sleep) as (_, queue, one, _):
        queue.put("3")
        await trio.sleep(10)
        agent.takes = 0
        await trio.sleep(60)
        assert [on for _, on in agent.asked][-1] is False
        assert not one.snapshot().is_on


async def test_no_agent_is_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    assert protection(load({}), int, Defects()) is None
    assert caplog.records == []
    assert protection(load({"ECS_TASK_PROTECTION": "on"}), int, Defects()) is None
    assert "there is no agent of ECS here" in caplog.text


def test_the_metrics() -> None:
    shown = {
        one.name: one.samples[0].value for one in scaling_metrics.of_the_protection(module.ProtectionSnapshot(True, 3))
    }
    assert shown == {"svc_task_protected": 1, "svc_task_protection_failures": 3}


@pytest.mark.slow
async def test_a_real_service_beside_a_real_agent(
    moto: Moto, etcd: Etcd, tmp_path: Path, queue_name: str, key_prefix: str
) -> None:
    with small_agent() as agent:
        environ = {
            "ECS_TASK_PROTECTION": "on",
            "ECS_AGENT_URI": f"{agent.url}/api",
            "ECS_CONTAINER_METADATA_URI_V4": f"{agent.url}/v4/container",
            "WORK_SECONDS": "1",
        }
        async with stand(moto, etcd.endpoint, queue_name, key_prefix, tmp_path / "record", **environ) as place:
            await place.send(["a", "b"])
            service = await place.start()
            await service.figure("messages_processed", 2)
            [instance] = (await service.get("/fleet")).json()["instances"]
            assert instance["id"] == "158d1c8083dd49d6b527399fd6414f5c"
            shown = (await service.get("/metrics")).text
            assert "svc_task_protected 1.0" in shown
            service.signal(signal.SIGTERM)
            assert await service.exit_code() == 0
            drained, stopped = [(await service.logged(event))["timestamp"] for event in ("drain ended", "stopped")]
            # No part of it has to be cut off after the API's grace.
            assert (datetime.fromisoformat(stopped) - datetime.fromisoformat(drained)).total_seconds() < GRACE
    assert agent.put == [{"ProtectionEnabled": True, "ExpiresInMinutes": MINUTES}, {"ProtectionEnabled": False}]
    assert not agent.protected
