"""The service in memory and virtual time: the core that production runs, between a `SimulatedQueue` and a `SimulatedSwitch`.

    async with SimulatedService(queue, handle, DRAIN_TIMEOUT="5s") as service:
        queue.put("hello")
        await service.at_work("hello", seconds=3)
        service.maintenance("on")
        report = await service.drained()
        assert service.processed == ["hello"]

Everything is as in production except for the three edges: no AWS, no etcd, no HTTP. A process that dies is simulated too:
`crash()` cuts the instance off its queue in this very moment, and nothing that it does afterwards reaches anybody.

What a test waits for is noticed in the very step in which it comes true, so that times are exact.
"""

import random
import zlib
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, get_args

import trio

from svc import __version__, processors
from svc.consumer.ledger import Outcome
from svc.core import Core
from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.phases import Phase
from svc.maintenance.registration import Registration
from svc.processors import Message, UnitOfWork
from svc.testing import history as happened
from svc.testing.arguments import checked_processor, checked_settings
from svc.testing.asyncio_loop import VirtualAsyncio
from svc.testing.inbox import SimulatedInbox
from svc.testing.inbox_line import InboxLine
from svc.testing.instance_queue import Line
from svc.testing.queue import SimulatedQueue
from svc.testing.record import Ending, Record, What, how
from svc.testing.stored import moment
from svc.testing.switch import SimulatedSwitch
from svc.testing.timeline import MessageName, Note, Timeline, bodies_of, find, name
from svc.testing.waiting import holds

WITHIN = 3600.0
"""Virtual seconds after which a wait for something that a test expects is given up."""


class SimulatedService:
    """One instance. An async context manager: entered, it runs; left, it is stopped as by SIGTERM, drain included.

    `settings` are the service's variables by name, as text or numbers. The queue decides about FIFO; its URL is not to be
    given. A message is named by its id or its body; `processed` and the like are lists of bodies.
    """

    def __init__(
        self,
        queue: SimulatedQueue,
        processor: Callable[..., object] | str | None = None,
        *,
        switch: SimulatedSwitch | None = None,
        inbox: SimulatedInbox | None = None,
        rng: random.Random | None = None,
        make_core: Callable[..., Core] = Core,
        notes: list[Note] | None = None,
        label: str = "",
        **settings: object,
    ) -> None:
        """`processor`: the function itself, or `module:attribute`; None succeeds at once. `make_core`: a subclass of `Core`,
        for trying out changed parts. `notes`, `label`: where it writes down what it does, shared with other instances, and its
        name there. Raises `settings.BadSettings` and `processors.UnusableProcessor`."""
        self.queue = queue
        self.switch = switch or SimulatedSwitch()
        self.inbox = inbox or SimulatedInbox()
        """The database of a processor that says `exactly_once`."""
        self.settings = checked_settings(settings, fifo=queue.fifo)
        self._record = Record(self._note)
        self.runs = self._record.runs
        """The processor's finished runs, in the order of their ends; of a batch, one for each message."""
        self.batches = self._record.batches
        """The calls of a processor of batches that have ended: `bodies`, `began`, `ended`, `error`."""
        self.running = self._record.running
        """Messages in the processor's hands now: id → Trio time of the start."""
        self.endings = self._record.endings
        """How the deliveries ended, in order."""
        self._processor = checked_processor(processor)
        self._rng = rng or random.Random(0)
        self._make_core = make_core
        self._notes = [] if notes is None else notes
        self._label = label
        self._line = Line(queue)
        self._inbox_line = InboxLine(self.inbox)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._core: Core | None = None
        self._nursery_manager: Any = None
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = "not started" if self._core is None else "crashed" if self._line.is_cut else self.phase.value
        return f"<SimulatedService{self._label and ' ' + self._label}, {state}>"

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
        clock = trio.lowlevel.current_clock()
        try:
            with self._scope:
                async with processors.opened(
                    self._processor,
                    self.settings,
                    threads=10,
                    runtime=self.settings.message_runtime,
                    unit_of_work=UnitOfWork(self._inbox_line, patience=self.settings.sqs_visibility_timeout_seconds),
                    open_asyncio=VirtualAsyncio.opened,
                ) as process:
                    self._core = self._make_core(
                        self.settings,
                        self._line,
                        self._record.recorded(process),
                        self.switch.watcher,
                        rng=self._rng,
                        now=lambda: moment(clock.current_time()),
                        identity=self._identity(),
                        make_registrar=partial(self.switch.registrar, is_dead=lambda: self._line.is_cut),
                    )
                    self._record.listen(self._core.worker.ledger, is_dead=lambda: self._line.is_cut)
                    self._note("service starts")
                    await self._core.run(task_status=task_status)
        finally:
            self._ended.set()
            if not self._line.is_cut:
                self._note("service ends")

    def crash(self) -> None:
        """The process dies now: SIGKILL, power cut. Nothing it still does reaches the queue."""
        self._note("service crashes")
        self._line.cut()
        self._inbox_line.cut()
        self._scope.cancel(reason="simulated crash")

    async def stop(self) -> DrainReport:
        """As SIGTERM: drain, then end. Returns the drain's report."""
        if self._line.is_cut:
            raise AssertionError("the service has crashed: it cannot be stopped any more")
        if not self.ended:
            self._note("SIGTERM")
            self.core.manager.stop()
        await self._ended.wait()
        report = self.core.manager.state().drain
        assert report is not None
        return report

    def _identity(self) -> Registration:
        id = self.settings.instance_id or self._label.replace(" ", "-") or "service"
        token = f"{zlib.crc32(self._label.encode()):08x}" if self._label else id  # another's, if the id is given twice
        return Registration(id, "simulated", 1, __version__, "2026-01-01T00:00:00Z", self.settings.sqs_queue_url, token)

    @property
    def ended(self) -> bool:
        """Stopped or crashed."""
        return self._ended.is_set()

    @property
    def core(self) -> Core:
        """The real parts: `core.worker`, `core.manager`, `core.gate`."""
        assert self._core is not None, "the service has not been started"
        return self._core

    # -- what a test does --

    def maintenance(self, value: str | bytes | bool | None) -> None:
        """Write the maintenance key: "on", "off", JSON, or any other value; None deletes it."""
        self._note("the maintenance key is deleted" if value is None else f"the maintenance key is set to {value!r}")
        self.switch.set(str(value).lower() if isinstance(value, bool) else value)

    # -- what a test waits for --

    async def at_work(
        self, message: MessageName | None = None, *, seconds: float = 0.0, within: float = WITHIN
    ) -> Message:
        """Wait until the processor has been at work on this message (None: on any) for so many seconds.

        AssertionError when its run ends before, or does not begin `within` so many virtual seconds.
        """
        wanted = None if message is None else find(self.queue.history, message)

        def begun() -> bool:
            return bool(self.running) if wanted is None else wanted in self.running

        await self._expect(begun, f"the processor to begin {self._name(wanted) if wanted else 'any message'}", within)
        message_id = wanted if wanted is not None else next(iter(self.running))
        began = self.running[message_id]
        with trio.move_on_at(began + seconds) as waiting:
            await holds(lambda: self.running.get(message_id) != began)
        if not waiting.cancelled_caught:
            run = next(run for run in reversed(self.runs) if run.message_id == message_id)
            raise AssertionError(
                f"the processor was at work on {self._name(message_id)} from {run.began:g} to {run.ended:g} "
                f"({how(run.error)}), so never for {seconds:g} s:\n{self.timeline()}"
            )
        return self._record.messages[message_id]

    async def outcome(self, message: MessageName, *, nth: int = 1, within: float = WITHIN) -> str:
        """Wait for the end of the message's `nth` delivery to this instance, and say how it ended: "processed", "failed",
        "released", "rejected" or "lost"."""
        wanted = find(self.queue.history, message)

        def endings() -> list[Ending]:
            return [ending for ending in self.endings if ending.message_id == wanted]

        what = f"the end of {self._name(wanted)}" + (f", for the {nth}. time" if nth > 1 else "")
        await self._expect(lambda: len(endings()) >= nth, what, within)
        return endings()[nth - 1].outcome

    async def drained(self, *, within: float = 86_400) -> DrainReport:
        """Wait until the service is in maintenance, or stopped, and return the report of its drain. Switched on right before,
        the drain that is waited for is that one."""
        await self._expect(lambda: self.phase in (Phase.MAINTENANCE, Phase.STOPPED), "the end of a drain", within)
        report = self.drain
        assert report is not None
        assert report.outcome is not DrainOutcome.RUNNING
        return report

    async def idle(self, *, within: float = 86_400) -> None:
        """Wait until the queue has nothing left to give, now or later, and nothing is in flight."""
        queue = self.queue
        await self._expect(
            lambda: (
                not self.core.worker.ledger and not queue.visible() and not queue.in_flight() and not queue.delayed()
            ),
            "nothing to be left to do",
            within,
        )

    async def wait_for(self, satisfied: Callable[[], bool], *, every: float = 0.01) -> None:
        """Wait until `satisfied()`; TooSlowError after a day. It is looked at after every step of any task, and besides
        `every` so many (virtual) seconds, for what only time brings about."""
        with trio.fail_after(86_400):
            await holds(satisfied, every=every)

    async def _expect(self, satisfied: Callable[[], bool], what: str, within: float) -> None:
        with trio.move_on_after(within) as bound:
            await holds(lambda: satisfied() or self.ended)
        if bound.cancelled_caught:
            raise AssertionError(f"waited {within:g} s in vain for {what}:\n{self.timeline()}")
        if not satisfied():
            raise AssertionError(f"waited for {what}, but the service has ended:\n{self.timeline()}")

    # -- what a test looks at --

    @property
    def phase(self) -> Phase:
        return self.core.manager.state().phase

    @property
    def drain(self) -> DrainReport | None:
        """The report of the running drain, or of the last one."""
        return self.core.manager.state().drain

    @property
    def processed(self) -> list[str]:
        """Bodies of the messages that this instance processed, their deletes confirmed; in that order."""
        return self._bodies(Outcome.PROCESSED)

    @property
    def failed(self) -> list[str]:
        """Bodies of the messages whose processor raised; they come back after their back-off (`RETRY_BACKOFF`)."""
        return self._bodies(Outcome.FAILED)

    @property
    def released(self) -> list[str]:
        """Bodies of the messages that were given back: by a drain, or by `Retry`."""
        return self._bodies(Outcome.RELEASED)

    @property
    def rejected(self) -> list[str]:
        """Bodies of the messages whose processor raised `Reject`."""
        return self._bodies(Outcome.REJECTED)

    @property
    def lost(self) -> list[str]:
        """Bodies of the messages whose lease ran out, or was taken, before their end was confirmed."""
        return self._bodies(Outcome.LOST)

    @property
    def duplicates(self) -> int:
        """How many of those processed were deleted without a call of the processor, because what it does had been committed
        before (`exactly_once`)."""
        return self.core.worker.statistics().duplicates

    @property
    def dead_lettered(self) -> list[str]:
        """Bodies of the messages that reached the dead-letter queue, whoever brought them there."""
        bodies = bodies_of(self.queue.history)
        return [bodies[event.message_id] for event in self.queue.history if isinstance(event, happened.DeadLettered)]

    def when(self, message: MessageName, what: What, *, nth: int = 1) -> float:
        """At which Trio time (under a `MockClock`: seconds since the test began) this happened to the message, for the `nth`
        time. AssertionError when it has not."""
        if what not in get_args(What):
            raise ValueError(f"nothing is called {what!r}; there are {', '.join(get_args(What))}")
        message_id = find(self.queue.history, message)
        times = self._record.times(self.queue.history, message_id, what)
        if len(times) < nth:
            so_far = f"only at {', '.join(f'{at:g}' for at in times)}" if times else "never"
            raise AssertionError(f"{self._name(message_id)}: {what} {so_far}:\n{self.timeline()}")
        return times[nth - 1]

    def timeline(self) -> Timeline:
        """What happened so far, at the queue and here, as a table to print."""
        notes = list(self._notes)
        report = self.drain if self._core is not None else None
        if report is not None and report.ended is not None:
            ended = report.ended
            after = sum(event.at <= ended for event in self.queue.history)
            error = f": {report.error}" if report.error else ""
            notes.append(Note(ended, self._labelled(f"drain ended, {report.outcome.value}{error}"), after))
        return Timeline(self.queue.history, notes)

    def _bodies(self, outcome: Outcome) -> list[str]:
        return [ending.body for ending in self.endings if ending.outcome == outcome.value]

    # -- how it is written down --

    def _note(self, what: str) -> None:
        self._notes.append(Note(trio.current_time(), self._labelled(what), len(self.queue.history)))

    def _labelled(self, what: str) -> str:
        return f"{self._label}: {what}" if self._label else what

    def _name(self, message_id: str) -> str:
        return name(message_id, bodies_of(self.queue.history))
