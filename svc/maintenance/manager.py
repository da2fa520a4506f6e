"""The manager: moves the handlers through the phases of maintenance, as the key's value and the stop request ask for.

The value (`switch_value.py`) is level-triggered: what counts is the latest one. A wake-up makes the manager look at the whole
state (phase, wanted state, stop request, drain ended); `phases.py` says what that calls for, and the manager does it. All
handlers (`handler.py`) drain at the same time under one deadline; those that outlive others wait for these first. Nothing here
knows etcd, HTTP or SQS, or reads the wall clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
import trio

from svc.maintenance.handler import DrainOutcome, DrainReport, Handler, QuietHandler, in_order
from svc.maintenance.phases import Event, Phase, move, next_event
from svc.maintenance.switch_value import Switch, parse_switch
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

GRACE = 0.1
"""Seconds before it is told that all is quiet: mostly all is drained by then, and there is one thing to tell instead of two."""


@dataclass(frozen=True, slots=True)
class Acted:
    """The revisions of the two keys that the phase answers to. Whoever asked with a later one has no answer yet."""

    revision: int | None = None
    """Of the maintenance key; None: not acted on any."""
    own_revision: int | None = None
    """Of the key of this instance alone."""


@dataclass(frozen=True, slots=True)
class MaintenanceState:
    """A snapshot of the manager."""

    phase: Phase
    switch: Switch | None
    """What the maintenance key says, which is for all instances; None: not read yet."""
    revision: int | None
    """etcd's revision at which that value was written, or at which there was no such key."""
    unreadable: str | None
    """Why a key's latest value was ignored."""
    drain: DrainReport | None
    own_switch: Switch | None = None
    """What the key of this instance alone says; None: not read."""
    own_revision: int | None = None
    """As `revision`, of the key of this instance alone."""
    acted: Acted = Acted()
    """What `phase` is the answer to; of the same moment."""

    @property
    def quiet(self) -> bool:
        """Nothing is at work, and nothing will be begun until maintenance is switched off."""
        in_a_drain = self.phase not in (Phase.STARTING, Phase.RUNNING)
        return in_a_drain and self.drain is not None and self.drain.quiet is not None

    @property
    def in_force(self) -> Switch | None:
        """The switch that keeps this instance in maintenance; None when none does."""
        return next((held for held in (self.switch, self.own_switch) if held is not None and held.on), None)

    @property
    def keys_in_force(self) -> tuple[str, ...]:
        """Which of the two keys are on: `all`, `instance`."""
        held = (("all", self.switch), ("instance", self.own_switch))
        return tuple(name for name, switch in held if switch is not None and switch.on)


@dataclass(slots=True)
class _Key:
    """What one of the two keys said last that could be understood."""

    name: str
    switch: Switch | None = None
    revision: int | None = None
    unreadable: str | None = None


class Manager:
    """Moves the handlers through the phases, as the switch and the stop request ask for."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        drain_timeout: float,
        on_drain_ended: Callable[[DrainReport], None] = lambda report: None,
        switch_name: str = "maintenance key",
    ) -> None:
        """`switch_name`: how the log calls what holds the switch of all. Raises ValueError when handlers wait for each other."""
        self.handlers = in_order(handlers)
        self._on_drain_ended = on_drain_ended
        self.changed = WakeUp()
        """Notifies after every change of `state()`, drains' figures aside."""
        self._drain_timeout = drain_timeout
        self._wake_up = WakeUp()
        self._phase = Phase.STARTING
        self._all = _Key(switch_name)
        self._own = _Key("maintenance key of this instance")
        self._acted = Acted()
        self._stop = False
        self._report: DrainReport | None = None
        self._drain_scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    def on_value(self, value: bytes | None, revision: int) -> None:
        """The maintenance key has this value now. May be called any number of times with the same one."""
        self._told(self._all, value, revision)

    def on_own_value(self, value: bytes | None, revision: int) -> None:
        """The key of this instance alone has this value now. Maintenance is on when either key says so; at the start, and
        after a reconnection, this comes before the `on_value` that it belongs to."""
        self._told(self._own, value, revision)

    def _told(self, key: _Key, value: bytes | None, revision: int) -> None:
        try:
            switch = parse_switch(value)
        except ValueError as error:
            if key.unreadable != str(error):
                log.warning(f"the {key.name}'s value is ignored, the state stands", error=str(error), revision=revision)
            key.unreadable = str(error)
            return
        if key.unreadable is not None:
            log.info(f"the {key.name}'s value is usable again", on=switch.on, revision=revision)
        key.unreadable = None
        if switch != key.switch and (key is self._all or switch.on or key.switch is not None):
            log.info(f"{key.name} read", on=switch.on, reason=switch.reason, by=switch.by, revision=revision)
        key.switch, key.revision = switch, revision
        self._wake_up.notify()

    def stop(self) -> None:
        """Drain, then end `run`. Cannot be taken back."""
        self._stop = True
        self._wake_up.notify()

    def state(self) -> MaintenanceState:
        report = self._report
        if report is not None and report.outcome is DrainOutcome.RUNNING:
            report = replace(report, handlers=self._handlers_drains())
        return MaintenanceState(
            phase=self._phase,
            switch=self._all.switch,
            revision=self._all.revision,
            unreadable=self._all.unreadable or self._own.unreadable,
            drain=report,
            own_switch=self._own.switch,
            own_revision=self._own.revision,
            acted=self._acted,
        )

    def _wanted(self) -> bool | None:
        if self._all.switch is None:
            return None
        return self._all.switch.on or (self._own.switch is not None and self._own.switch.on)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends when a stop was asked for and everything is drained."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await self._wake_up.wait_until(self._act)

    def _act(self) -> bool:
        """Do everything that the state calls for; True when stopped."""
        while event := next_event(
            self._phase,
            wanted=self._wanted(),
            stop=self._stop,
            drain_ended=self._report is not None and self._report.ended is not None,
        ):
            before, self._phase = self._phase, move(self._phase, event)
            match event:
                case Event.RESUME:
                    self._resume(before)
                case Event.DRAIN:
                    self._begin_drain("maintenance")
                case Event.STOP if before is not Phase.DRAINING:
                    self._begin_drain("stop")
                case Event.STOP | Event.DRAIN_ENDED:
                    pass  # a drain that runs already is the last one, with the deadline it has
        asked = any(key.switch is not None and key.switch.on and key.switch.quiet for key in (self._all, self._own))
        for handler in self.handlers:
            if isinstance(handler, QuietHandler):
                handler.ask_quiet(asked)
        # Here and nowhere else, when the phase is what these values call for: an acknowledgement is of both together.
        self._acted = Acted(self._all.revision, self._own.revision)
        self.changed.notify()
        return self._phase is Phase.STOPPED

    def _resume(self, before: Phase) -> None:
        if before is Phase.DRAINING:
            self._drain_scope.cancel(reason="maintenance was switched off")
            assert self._report is not None
            if self._report.ended is None:  # else it has ended in this very moment, and its report is written
                self._end_report(DrainOutcome.REVOKED, None)
        for handler in reversed(self.handlers):  # what is used is back before its users
            handler.leave()
        log.info("running", after=before.value)

    def _begin_drain(self, cause: str) -> None:
        now = trio.current_time()
        self._report = DrainReport(cause, began=now, deadline=now + self._drain_timeout)
        for handler in self.handlers:
            if not handler.after:
                handler.enter()
            if cause == "maintenance" and isinstance(handler, QuietHandler):
                handler.land_soon()
        log.info("drain begins", cause=cause, timeout_seconds=self._drain_timeout)
        self._drain_scope = trio.CancelScope()
        assert self._nursery is not None
        self._nursery.start_soon(self._drain, self._drain_scope, self._report.deadline)

    async def _drain(self, scope: trio.CancelScope, deadline: float) -> None:
        errors: dict[str, str] = {}

        loud = {handler.name for handler in self.handlers if not handler.after}
        drained = {handler.name: trio.Event() for handler in self.handlers}

        def is_quiet(handler: Handler) -> None:
            loud.discard(handler.name)
            if not loud and not scope.cancel_called:
                assert self._report is not None
                self._report = replace(self._report, quiet=trio.current_time())
                quieting.start_soon(self._tell_quiet)

        async def drain_one(handler: Handler) -> None:
            if handler.after:
                for name in handler.after:
                    await drained[name].wait()
                handler.enter()
            error = await handler.wait_drained(deadline)
            drained[handler.name].set()
            if error is not None:
                errors[handler.name] = error
            elif not handler.after and not isinstance(handler, QuietHandler):
                is_quiet(handler)

        async def quiet_one(handler: Handler) -> None:
            if isinstance(handler, QuietHandler):
                await handler.wait_quiet()
                is_quiet(handler)

        with scope:
            async with trio.open_nursery() as quieting:
                for handler in self.handlers:
                    quieting.start_soon(quiet_one, handler)
                async with trio.open_nursery() as draining:
                    for handler in self.handlers:
                        draining.start_soon(drain_one, handler)
                quieting.cancel_scope.cancel(reason="the drain is over")
        if scope.cancel_called:
            return  # switched off: _resume has written the report
        if errors:
            told = "; ".join(f"{name}: {error}" for name, error in sorted(errors.items()))
            self._end_report(
                DrainOutcome.EXPIRED, f"not everything was finished within {self._drain_timeout:g} s: {told}"
            )
        else:
            self._end_report(DrainOutcome.DRAINED, None)
        self._wake_up.notify()

    async def _tell_quiet(self) -> None:
        await trio.sleep(GRACE)
        assert self._report is not None
        assert self._report.quiet is not None
        after = round(self._report.quiet - self._report.began, 3)
        log.info("quiet: nothing is at work, and nothing begins; receives land", after_seconds=after)
        self.changed.notify()

    def _handlers_drains(self) -> dict[str, Mapping[str, object]]:
        return {handler.name: handler.drain() for handler in self.handlers}

    def _end_report(self, outcome: DrainOutcome, error: str | None) -> None:
        assert self._report is not None
        now = trio.current_time()
        quiet = now if self._report.quiet is None and outcome is DrainOutcome.DRAINED else self._report.quiet
        report = replace(
            self._report, outcome=outcome, ended=now, quiet=quiet, error=error, handlers=self._handlers_drains()
        )
        self._report = report
        self._on_drain_ended(report)
        tell = log.error if outcome is DrainOutcome.EXPIRED else log.info
        tell(
            "drain ended",
            outcome=outcome.value,
            cause=report.cause,
            seconds=round(now - report.began, 3),
            error=error,
            **{
                name: {figure: value for figure, value in part.items() if value}
                for name, part in report.handlers.items()
            },
        )
