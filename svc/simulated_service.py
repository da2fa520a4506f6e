"""The service in memory and virtual time: the core that production runs, between a `SimulatedQueue` and a `SimulatedSwitch`.

    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="5s") as service:
        queue.put("hello")
        await service.idle()
        service.maintenance("true")
        report = await service.drained()

Everything is as in production except for the three edges: no AWS, no etcd, no HTTP. A process that dies is simulated too:
`crash()` cuts the instance off its queue in this very moment, and nothing that it does afterwards reaches anybody.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from svc import processors
from svc.core import Core
from svc.maintenance import DrainOutcome, DrainReport, Phase
from svc.processors import Message
from svc.queue import Queue, Received, Refusal
from svc.settings import Settings, load
from svc.simulated_queue import SimulatedQueue
from svc.testing import SimulatedSwitch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the processor."""

    message_id: str
    body: str
    group_id: str | None
    began: float
    """Trio time."""
    ended: float
    """Trio time."""
    error: BaseException | None
    """What ended it: None for success, `trio.Cancelled` for a cancellation."""


class SimulatedService:
    """One instance. An async context manager: entered, it runs; left, it is stopped as by SIGTERM, drain included.

    `settings` are the service's variables by name. The queue's name decides about FIFO; the queue URL is not to be given.
    """

    def __init__(
        self,
        queue: SimulatedQueue,
        processor: Callable[..., object] | None = None,
        *,
        switch: SimulatedSwitch | None = None,
        rng: random.Random | None = None,
        make_core: Callable[..., Core] = Core,
        **settings: str,
    ) -> None:
        """`make_core`: a subclass of `Core`, for trying out changed parts. Raises `settings.BadSettings`."""
        name = "simulated.fifo" if queue.fifo else "simulated"
        self.queue = queue
        self.switch = switch or SimulatedSwitch()
        self.settings: Settings = load({**settings, "SQS_QUEUE_URL": f"http://simulated/000000000000/{name}"})
        self.runs: list[Run] = []
        """The processor's finished runs, in the order of their ends."""
        self.running: dict[str, float] = {}
        """Messages in the processor's hands now: id → Trio time of the begin."""
        self._processor = processor or _succeed
        self._rng = rng or random.Random(0)
        self._make_core = make_core
        self._line = _Line(queue)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._core: Core | None = None
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None

    # -- the life of the instance --

    async def __aenter__(self) -> Self:
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        await self._nursery.start(self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and not self._ended.is_set():
            self.core.manager.stop()
        await self._nursery_manager.__aexit__(kind, error, traceback)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until stopped or crashed; for a nursery of your own in place of `async with`."""
        try:
            with self._scope:
                async with processors.opened(
                    processors.check(self._processor, "the processor"), self.settings, threads=10
                ) as process:
                    self._core = self._make_core(
                        self.settings, self._line, self._recorded(process), self.switch.watcher, rng=self._rng
                    )
                    await self._core.run(task_status=task_status)
        finally:
            self._ended.set()

    def crash(self) -> None:
        """The process dies now: SIGKILL, power cut. Nothing it still does reaches the queue."""
        self._line.cut()
        self._scope.cancel(reason="simulated crash")

    async def stop(self) -> DrainReport:
        """As SIGTERM: drain, then end. Returns the drain's report."""
        self.core.manager.stop()
        await self._ended.wait()
        report = self.core.manager.state().drain
        assert report is not None
        return report

    @property
    def ended(self) -> bool:
        """Stopped or crashed."""
        return self._ended.is_set()

    @property
    def core(self) -> Core:
        """The real parts: `core.worker`, `core.manager`, `core.gate`."""
        assert self._core is not None, "the service has not been started"
        return self._core

    # -- what a test does and waits for --

    def maintenance(self, value: str | bytes | None) -> None:
        """Write the maintenance key; None deletes it."""
        self.switch.set(value)

    @property
    def phase(self) -> Phase:
        return self.core.manager.state().phase

    @property
    def drain(self) -> DrainReport | None:
        """The report of the running drain, or of the last one."""
        return self.core.manager.state().drain

    async def drained(self) -> DrainReport:
        """Wait until a drain has ended that had not when this was called (or return the report, if maintenance is reached
        already and the switch is on)."""
        await self.wait_for(lambda: self.phase in (Phase.MAINTENANCE, Phase.STOPPED))
        report = self.drain
        assert report is not None
        assert report.outcome is not DrainOutcome.RUNNING
        return report

    async def idle(self) -> None:
        """Wait until the queue has nothing left to give, now or later, and nothing is in flight."""
        await self.wait_for(
            lambda: (
                not self.queue.visible()
                and not self.queue.in_flight()
                and not self.queue.delayed()
                and not self.core.worker.ledger
            )
        )

    async def wait_for(self, satisfied: Callable[[], bool], *, every: float = 0.01) -> None:
        """Wait until `satisfied()`, looking `every` so many (virtual) seconds; TooSlowError after a day."""
        with trio.fail_after(86_400):
            while not satisfied():  # noqa: ASYNC110 - a test may wait for anything; the time is virtual
                await trio.sleep(every)

    def _recorded(self, process: processors.Process) -> processors.Process:
        async def run(message: Message) -> None:
            began, error = trio.current_time(), None
            self.running[message.id] = began
            try:
                await process(message)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self.running.pop(message.id, None)
                self.runs.append(Run(message.id, message.body, message.group_id, began, trio.current_time(), error))

        return run


async def _succeed(message: Message) -> None:
    """The processor of a service that was given none."""


class _Line:
    """The queue as one instance reaches it, until the line is cut."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._is_cut = False
        self._calls: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """Calls on the wire never answer, and further ones never leave."""
        self._is_cut = True
        for call in self._calls:
            call.cancel(reason="simulated crash")

    async def _through(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._is_cut:
            with trio.CancelScope() as scope:
                self._calls.add(scope)
                try:
                    return await call()
                finally:
                    self._calls.discard(scope)
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    @property
    def max_receive_count(self) -> int | None:
        return self._queue.max_receive_count

    async def receive(self, *, limit: int, wait: int, visibility: int) -> Sequence[Received]:
        return await self._through(lambda: self._queue.receive(limit=limit, wait=wait, visibility=visibility))

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        return await self._through(lambda: self._queue.delete(receipts))

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        return await self._through(lambda: self._queue.change_visibility(timeouts))

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        return await self._through(lambda: self._queue.dead_letter(delivery, reason))

    async def send(self, body: str, **options: Any) -> str:
        return await self._through(lambda: self._queue.send(body, **options))

    async def attributes(self) -> Mapping[str, str]:
        return await self._through(self._queue.attributes)
