"""Scale-in protection of the ECS task: on while messages are in flight, so that ECS stops another one, or none.

    idle ──a message lands──▶ busy          protection is asked for
    busy ──nothing for IDLE seconds──▶ idle protection is given back; at once after a drain, and at the stop

It is asked for on these two transitions, and again at half of its time. ECS ends it by itself after `MINUTES`, whatever becomes
of us. It is never in the way: the work does not wait for it, each question has a bound, one that fails is tried again after a
back-off, told once and counted. Whether a question that got no answer was heeded is not known: the protection is given back then,
too.

The agent asks AWS in the task's name: the task's role needs ecs:UpdateTaskProtection.
"""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import trio

from svc.backoff import backoff
from svc.consumer.ledger import Entry
from svc.consumer.observer import Unobserved
from svc.defects import Defects
from svc.maintenance.handler import DrainReport
from svc.settings import Settings, printable
from svc.telemetry.ecs_agent import Agent, AgentError
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

MINUTES = 30
"""How long ECS protects the task when it hears nothing more; the agent takes 1 to 2880 (ECS developer guide, "Task scale-in
protection endpoint")."""

IDLE = 30.0
"""Seconds without a message after which the protection is given back: a queue with a message now and then is not worth a call to
ECS for each."""

PATIENCE = 5.0
"""Seconds that the agent may take: it asks AWS."""

LAST = 2.0
"""The same at the stop."""

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 120.0
"""Seconds between attempts that fail: doubled from the first up to the second, and of that a random half to whole."""

PATH = "/task-protection/v1/state"


@dataclass(slots=True)
class Plan:
    """What is known, and what follows from it. Pure; times are Trio's."""

    renew_at: float | None = None
    """When it is to be asked for again; None: it is not on, as far as we know."""
    uncertain: bool = False
    """A question got no answer: it may be on."""
    idle_since: float | None = None
    retry_at: float = float("-inf")

    @property
    def is_on(self) -> bool:
        return self.renew_at is not None

    def next(self, now: float, *, busy: bool, drained: bool) -> tuple[bool | None, float | None]:
        """What to ask for now (on, off or nothing), and when to look again; None: when something has changed."""
        if busy:
            self.idle_since = None
            due = self.retry_at if self.renew_at is None else max(self.retry_at, self.renew_at)
            return (True, None) if now >= due else (None, due)
        if not (self.is_on or self.uncertain):
            return None, None
        self.idle_since = now if self.idle_since is None else self.idle_since
        # Meanwhile nothing new is asked for, and half of its time is longer than IDLE.
        due = max(self.retry_at, self.idle_since + (0.0 if drained else IDLE))
        return (False, None) if now >= due else (None, due)

    def answered(self, now: float, *, on: bool) -> None:
        self.renew_at = now + MINUTES * 60 / 2 if on else None
        self.uncertain = False
        self.retry_at = float("-inf")

    def failed(self, now: float, pause: float) -> None:
        self.uncertain = True
        self.retry_at = now + pause


@dataclass(frozen=True, slots=True)
class ProtectionSnapshot:
    is_on: bool
    """As far as is known."""
    failures: int
    """Questions that failed, since the start."""


class Asks(Protocol):
    """`agent.Agent` is the real one."""

    async def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, seconds: float
    ) -> tuple[int, dict[str, Any]]: ...


class Protection(Unobserved):
    """An `observer.Observer`. `in_flight`: how many messages are."""

    def __init__(
        self, agent: Asks, in_flight: Callable[[], int], defects: Defects, *, rng: random.Random | None = None
    ) -> None:
        self._agent = agent
        self._in_flight = in_flight
        self._defects = defects
        self._rng = rng or random.Random()
        self._plan = Plan()
        self._wake_up = WakeUp()
        self._was_busy = False
        self._drained = False
        self._failures = self._in_a_row = 0
        self._failing_since: float | None = None

    def snapshot(self) -> ProtectionSnapshot:
        return ProtectionSnapshot(self._plan.is_on, self._failures)

    # -- the observer's side: a comparison for each message --

    def landed(self, entry: Entry) -> None:
        if not self._was_busy:
            self._was_busy, self._drained = True, False
            self._wake_up.notify()

    def ended(self, entry: Entry) -> None:
        if self._was_busy and not self._in_flight():
            self._was_busy = False
            self._wake_up.notify()

    def drain_ended(self, report: DrainReport) -> None:
        self._drained = True
        self._wake_up.notify()

    # -- the part --

    async def run(self, stop: trio.Event) -> None:
        """Ends at most `LAST` seconds after `stop`. Raises nothing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the service stops")
        if self._plan.is_on or self._plan.uncertain:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST):
                await self._ask(False, LAST)

    async def _keep(self) -> None:
        while True:
            await self._wake_up.wait(self._look_later)
            action, _ = self._next()
            if action is not None:
                await self._ask(action, PATIENCE)

    def _next(self) -> tuple[bool | None, float | None]:
        return self._plan.next(trio.current_time(), busy=self._in_flight() > 0, drained=self._drained)

    def _look_later(self) -> float | None:
        action, at = self._next()
        return trio.current_time() if action is not None else at

    async def _ask(self, on: bool, seconds: float) -> None:
        body: dict[str, object] = {"ProtectionEnabled": on}
        if on:
            body["ExpiresInMinutes"] = MINUTES
        try:
            self._plan.uncertain = True  # whatever cuts us off from here on
            status, told = await self._agent.ask("PUT", PATH, body, seconds=seconds)
            _check(on, status, told)
        except AgentError as error:
            self._failed(str(error))
            return
        except Exception as defect:
            self._defects.note("protection", defect)
            self._failed(f"internal error ({type(defect).__name__})")
            return
        was_on = self._plan.is_on
        self._plan.answered(trio.current_time(), on=on)
        self._in_a_row = 0
        if self._failing_since is not None:
            after = round(trio.current_time() - self._failing_since, 1)
            log.info("the ECS agent sets the task's protection again", after_seconds=after)
            self._failing_since = None
        if was_on != on:
            log.debug("the task is protected from scale-in" if on else "the task is no longer protected from scale-in")

    def _failed(self, error: str) -> None:
        self._failures += 1
        self._in_a_row += 1
        now = trio.current_time()
        self._plan.failed(now, backoff(self._in_a_row, first=FIRST_PAUSE, cap=LONGEST_PAUSE, rng=self._rng))
        if self._failing_since is None:
            self._failing_since = now
            log.warning("the ECS agent does not set the task's protection; tried again", error=error)


def _check(on: bool, status: int, told: dict[str, Any]) -> None:
    """Raises `AgentError` unless the answer says that it is so."""
    held = told.get("protection")
    if status < 300 and isinstance(held, dict) and held.get("ProtectionEnabled") is on:
        return
    for name, fields in (("failure", ("Reason", "Detail")), ("error", ("Code", "Message"))):
        if isinstance(found := told.get(name), dict):
            words = [text for field in fields if isinstance(text := found.get(field), str) and text]
            raise AgentError(printable(": ".join(words))[:400] or f"{name} without a reason (HTTP {status})")
    raise AgentError(f"its answer (HTTP {status}) does not say that the protection is {'on' if on else 'off'}")


def protection(settings: Settings, in_flight: Callable[[], int], defects: Defects) -> Protection | None:
    """None where it is not asked for, or there is no agent of ECS."""
    if settings.ecs_task_protection == "off":
        return None
    url = os.environ.get("ECS_AGENT_URI")
    if not url:
        log.warning(
            "ECS_TASK_PROTECTION is on, and there is no agent of ECS here (no ECS_AGENT_URI): nothing is protected"
        )
        return None
    return Protection(Agent(url), in_flight, defects)
