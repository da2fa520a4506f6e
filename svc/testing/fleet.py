"""Instances of the service on one simulated queue and under one maintenance key: what the fixture `svc_service` is.

    async with SimulatedFleet(queue) as start:
        service = await start(handle, DRAIN_TIMEOUT="5s")
        second = await start(handle)
        service.maintenance("on")     # for both

While a thread of a processor works, virtual time stands still.
"""

import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import trio
import trio.testing

from svc.testing.inbox import SimulatedInbox
from svc.testing.queue import SimulatedQueue
from svc.testing.service import SimulatedService
from svc.testing.switch import SimulatedSwitch
from svc.testing.timeline import Note, Timeline
from svc.testing.waiting import ThreadsHoldTheClock


class SimulatedFleet:
    """Call it to start an instance. An async context manager: left, it stops those that run still, as by SIGTERM. What an
    instance raises comes out of it."""

    def __init__(
        self,
        queue: SimulatedQueue,
        switch: SimulatedSwitch | None = None,
        *,
        inbox: SimulatedInbox | None = None,
        seed: int = 0,
    ) -> None:
        self.queue = queue
        self.inbox = inbox or SimulatedInbox()
        """The database of processors that say `exactly_once`, which all instances share."""
        self.switch = switch or SimulatedSwitch()
        """The maintenance key, which all instances watch."""
        self.services: list[SimulatedService] = []
        """All that were started."""
        self.notes: list[Note] = []
        self._seed = seed
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._instrument: ThreadsHoldTheClock | None = None

    async def __call__(self, processor: Callable[..., object] | str, /, **settings: str | float) -> SimulatedService:
        """Start one more instance with this processor (the function itself, or `module:attribute`) and these settings, by the
        names that they have in the environment. Returns when it has started.

        Raises `settings.BadSettings` and `processors.UnusableProcessor`.
        """
        assert self._nursery is not None, "use it within `async with`"
        number = len(self.services) + 1
        service = SimulatedService(
            self.queue,
            processor,
            switch=self.switch,
            inbox=self.inbox,
            rng=random.Random(self._seed + number),
            notes=self.notes,
            label=f"service {number}",
            **settings,  # type: ignore[arg-type]  # the named parameters are lower-case, settings are not
        )
        self.services.append(service)
        await self._nursery.start(service.run)
        return service

    def timeline(self) -> Timeline:
        """What happened so far, at the queue and in all instances."""
        return self.services[-1].timeline() if self.services else Timeline(self.queue.history)

    async def __aenter__(self) -> Self:
        clock = trio.lowlevel.current_clock()
        if isinstance(clock, trio.testing.MockClock):
            self._instrument = ThreadsHoldTheClock(clock)
            trio.lowlevel.add_instrument(self._instrument)
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for service in self.services:
                    if not service.ended:
                        service.core.manager.stop()
            await self._nursery_manager.__aexit__(kind, error, traceback)
        finally:
            if self._instrument is not None:
                trio.lowlevel.remove_instrument(self._instrument)
