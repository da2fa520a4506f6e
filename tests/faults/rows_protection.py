"""The agent of ECS in trouble, while the task is protected from scale-in (`ECS_TASK_PROTECTION=on`). Its half hour
is twelve seconds here (`hurried.py`), and it is renewed at half of them."""

import signal
from collections.abc import Awaitable, Callable
from functools import wraps

import trio

from svc.api.app import GRACE
from svc.telemetry.task_protection import LAST
from tests.faults.proxy import Proxy
from tests.faults.rows import scenario
from tests.faults.trial import Trial
from tests.telemetry.small_agent import SmallAgent, small_agent

NAMED = "the ECS agent does not set the task's protection; tried again"
OVER = "the ECS agent sets the task's protection again"
SECONDS = 12.0
"""Of protection."""

SERVING = 40.0
"""Calls of SQS per second where work goes on: this is no outage of SQS."""

AT_ONCE = 2.0
"""Seconds in which a message is done that takes 0.2 s, on a busy machine."""

HURRIED = {
    "ECS_TASK_PROTECTION": "on", "MESSAGE_PROCESSOR": "tests.faults.hurried:handle", "PROTECTION_SECONDS": f"{SECONDS:g}",
}  # fmt: skip

DRAINS = AT_ONCE + 1
"""Seconds: a poll on the wire takes one."""

Run = Callable[[Trial, SmallAgent, Proxy], Awaitable[None]]


def beside_an_agent(name: str, fault: str, sees: str, *, by_default: bool = False) -> Callable[[Run], Run]:
    """The service is under load and protected, then the function has its way with the agent and the line to it. At the end the
    service stops, and the protection is off."""

    def add(run: Run) -> Run:
        @wraps(run)
        async def with_agent(t: Trial) -> None:
            with small_agent() as agent:
                line = Proxy(agent.url.rpartition("/")[2])
                async with line.running():
                    t.environ["ECS_AGENT_URI"] = f"http://{line.endpoint}/api"
                    await t.start()
                    await t.until(lambda: agent.protected)
                    await run(t, agent, line)
                    if not t.settled:
                        await t.settle()
                        assert not agent.protected

        scenario(name, fault, sees, by_default=by_default, **HURRIED)(with_agent)
        return run

    return add


async def works_on(t: Trial, seconds: float) -> None:
    """Nothing waits for the agent."""
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        assert await t.processes() < AT_ONCE
        status, body = await t.health()
        assert (status, body["status"]) == (200, "healthy"), body
        await trio.sleep(0.5)


def told_once(t: Trial, event: str = NAMED) -> None:
    assert [line["event"] for line in t.service.logs].count(event) == 1


def refuses(agent: SmallAgent, status: int, answer: bytes) -> None:
    agent.heeds, agent.status, agent.answer = False, status, answer


def well(agent: SmallAgent) -> None:
    agent.heeds, agent.status, agent.answer, agent.slow, agent.drip = True, 200, None, 0.0, 0.0


TROUBLE: list[tuple[str, str, str, Callable[[SmallAgent, Proxy], None]]] = [
    (
        "agent-refuses",
        "ECS's agent refuses to protect the task",
        "DEPLOYMENT_BLOCKED",
        lambda agent, line: refuses(agent, 200, b'{"failure": {"Arn": "x", "Reason": "DEPLOYMENT_BLOCKED"}}'),
    ),
    (
        "agent-breaks-down",
        "ECS's agent answers HTTP 500",
        "InternalServerException",
        lambda agent, line: refuses(agent, 500, b'{"error": {"Code": "InternalServerException", "Message": "x"}}'),
    ),
    ("agent-hangs", "ECS's agent accepts connections and answers nothing", "no answer within", lambda agent, line: line.hang()),
    (
        "agent-dies",
        "ECS's agent dies when it has protected the task, before the protection is renewed, and comes back",
        "refused",
        lambda agent, line: line.refuse(),
    ),
]  # fmt: skip
"""Name, fault, what the log says, and how the agent is broken."""

for name, fault, says, break_it in TROUBLE:

    @beside_an_agent(
        name,
        fault,
        "work goes on; `/health` 200; one warning; protected again when the agent is well, and not after the drain",
        by_default=name == "agent-dies",
    )
    async def _(
        t: Trial,
        agent: SmallAgent,
        line: Proxy,
        break_it: Callable[[SmallAgent, Proxy], None] = break_it,
        says: str = says,
    ) -> None:
        async with t.outage(named=NAMED, over=OVER, recovers=lambda: protected(t, agent), calls_limit=SERVING):
            break_it(agent, line)
            await works_on(t, SECONDS / 2)  # its half is over
            told = await t.logged(NAMED)
            assert says in told["error"]
            await works_on(t, 3)
            well(agent)
            await line.heal()
        told_once(t)


async def protected(t: Trial, agent: SmallAgent) -> None:
    await t.logged(OVER)
    assert agent.protected


GARBAGE = [
    b"", b"<html>Sign in</html>", b"null", b"[]", b'{"protection": true}', b'{"protection": {"ProtectionEnabled": "yes"}}',
    b"[" * 9_000, b'{"protection": \xff\xfe}', b"x" * 2**20, b'{"failure": {"Reason": ["\\u001b[31m"]}}', b'{"error": 7}',
]  # fmt: skip


@beside_an_agent(
    "agent-garbage",
    "ECS's agent answers garbage: pages, other JSON, nested, a megabyte, bytes that are no text; a byte a second",
    "work goes on; `/health` 200; one warning; protected again when the agent is well, and not after the drain",
)
async def _(t: Trial, agent: SmallAgent, line: Proxy) -> None:
    async with t.outage(named=NAMED, over=OVER, recovers=lambda: protected(t, agent), calls_limit=SERVING):
        refuses(agent, 200, GARBAGE[0])
        await t.logged(NAMED)
        for number, answer in enumerate(GARBAGE):
            refuses(agent, (200, 400, 500)[number % 3], answer)
            asked = len(agent.put)
            await t.until(lambda: len(agent.put) > asked)  # noqa: B023 - waited for here
        agent.drip = 1.0
        await works_on(t, 6)
        well(agent)
    told_once(t)


@beside_an_agent(
    "agent-refuses-renewals",
    "a message takes longer than the protection of its task, whose renewals are all refused: the protection ends by itself",
    "work goes on, the long message too; `/health` 200; one warning; protected again when the agent is well",
)
async def _(t: Trial, agent: SmallAgent, line: Proxy) -> None:
    body = await t.send(seconds=SECONDS + 8)
    await t.until(lambda: any(event["body"] == body for event in t.record.events))
    async with t.outage(named=NAMED, over=OVER, recovers=lambda: protected(t, agent), calls_limit=SERVING):
        refuses(agent, 200, b'{"failure": {"Reason": "DEPLOYMENT_BLOCKED"}}')
        await t.until(lambda: not agent.protected, within=SECONDS + 10)
        await works_on(t, 1)
        assert not t.record.succeeded[body]
        well(agent)
    told_once(t)
    await t.until(lambda: t.record.succeeded[body])


@beside_an_agent(
    "agent-slow-in-a-drain",
    "ECS's agent takes 4 s for each answer while a maintenance begins and ends",
    "the drain takes as long as its messages; the task is not protected when it has ended",
)
async def _(t: Trial, agent: SmallAgent, line: Proxy) -> None:
    async with t.outage(named="drain ended", over="running", calls_limit=SERVING):
        agent.slow = 4.0
        await t.switch("on")
        body = await t.healthy(lambda body: body["status"] == "maintenance")
        assert body["drain"]["seconds"] < DRAINS, body["drain"]
        await t.until(lambda: not agent.protected, within=10)
        agent.slow = 0.0
        await t.switch("off")
    await t.until(lambda: agent.protected)


@beside_an_agent(
    "agent-mute-at-the-stop",
    "SIGTERM under load, and ECS's agent answers nothing from then on",
    "drained in time, exit code 0; the stop waits for the agent for 2 s; the protection ends by itself",
)
async def _(t: Trial, agent: SmallAgent, line: Proxy) -> None:
    line.hang()
    first, began = t.service, trio.current_time()
    first.signal(signal.SIGTERM)
    await t.told("stop asked for: draining (a second signal ends this at once)", "stopped")
    assert await first.exit_code() == 0
    t.row.recovery = round(trio.current_time() - began, 1)
    drained, stopped = [
        next(line for line in first.logs if line["event"] == event) for event in ("drain ended", "stopped")
    ]
    assert drained["seconds"] < DRAINS, drained
    assert t.row.recovery < DRAINS + LAST + GRACE, stopped
    await t.until(lambda: not agent.protected, within=SECONDS)
    await line.heal()
    await t.start(load=False)
