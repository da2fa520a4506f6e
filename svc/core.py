"""The core: gate, worker, watcher and manager wired together, between a queue and a switch.

`service.py` puts it between SQS, etcd and the API; `testing/service.py` between a simulated queue and a simulated switch. So
the tests run the wiring that production runs.
"""

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from svc.consumer.breaker_state import BreakerConfig
from svc.consumer.observed_queue import ObservedQueue
from svc.consumer.observer import UNOBSERVED, Observer
from svc.consumer.queue import Queue
from svc.consumer.worker import Worker, WorkerConfig
from svc.defects import Defects
from svc.maintenance.fence import Fence
from svc.maintenance.gate import Gate
from svc.maintenance.handler import DrainOutcome, Handler
from svc.maintenance.manager import Manager
from svc.maintenance.registration import Registration, described, own_key
from svc.maintenance.suspension import Suspensions
from svc.processors import AnyProcess, Now, wall_clock
from svc.settings import Settings
from svc.wakeup import WakeUp

if TYPE_CHECKING:  # it is loaded where there is a database only
    from svc.database.handler import DatabaseHandler

log = structlog.get_logger(__name__)


class WatcherSnapshot(Protocol):
    """How a watcher stands with the switch; `etcd.EtcdSnapshot` documents the fields."""

    @property
    def connected(self) -> bool: ...
    @property
    def endpoint(self) -> str | None: ...
    @property
    def revision(self) -> int | None: ...
    @property
    def since(self) -> float: ...
    @property
    def last_error(self) -> str | None: ...


class Watcher(Protocol):
    """Watches the maintenance key; `etcd.KeyWatcher` is the real one, `standalone.StandaloneSwitch` that without etcd."""

    def snapshot(self) -> WatcherSnapshot: ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...

    def look_again(self) -> None: ...


MakeWatcher = Callable[..., Watcher]
"""From what `etcd.KeyWatcher` is made of."""


class Registrar(Protocol):
    """Keeps the registration of this instance; `etcd_registrar.Registrar` is the real one."""

    def look_again(self) -> None: ...

    def blocked(self) -> None: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...


MakeRegistrar = Callable[[Settings, Callable[[], Registration], WakeUp, Callable[[float, bool], None]], Registrar]
"""From what `etcd_registrar.Registrar` is made of."""


class Core:
    """`identity` is who this instance is in the fleet; without it, it belongs to none. `stall` and `clock`: how it notices that
    it stood still (`fence.Fence`). `now`: the time that processors are told. `database`: that of `DATABASE_URL`; `handlers`:
    those of the user's own."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        process: AnyProcess,
        make_watcher: MakeWatcher,
        *,
        observer: Observer = UNOBSERVED,
        defects: Defects | None = None,
        rng: random.Random | None = None,
        identity: Registration | None = None,
        make_registrar: MakeRegistrar | None = None,
        stall: float = math.inf,
        clock: Callable[[], float] = trio.current_time,
        now: Now = wall_clock,
        database: "DatabaseHandler | None" = None,
        handlers: Sequence[Handler] = (),
    ) -> None:
        self.settings = settings
        self.defects = defects or Defects()
        self.queue = queue if observer is UNOBSERVED else ObservedQueue(queue, observer)
        self.identity = identity
        self._clock = clock
        self.fence = Fence(stall=stall, clock=clock, check=self._check, look=self._look, on_open=self._receive)
        self.worker = Worker(
            self.queue,
            process,
            worker_config(settings),
            observer=observer,
            defects=self.defects,
            may_receive=self._may_receive,
            rng=rng,
            now=now,
        )
        self.gate = Gate()
        self.database = database
        self.user_handlers = tuple(handlers)
        if database is not None:
            database.hold = self.worker.intake.hold
        self.manager = Manager(
            [self.gate, self.worker, *([] if database is None else [database]), *handlers],
            drain_timeout=settings.drain_timeout,
            on_drain_ended=observer.drain_ended,
            switch_name="maintenance key" if settings.etcd_endpoints else "maintenance switch",
        )
        self.watcher = make_watcher(
            settings,
            self.manager.on_value,
            own_key=own_key(settings.maintenance_key, identity.id) if identity else None,
            on_own_value=self.manager.on_own_value,
            on_looked=self.fence.looked,
        )
        self.registrar: Registrar | None = None
        if identity is not None and make_registrar is not None:
            self.registrar = make_registrar(settings, self.registration, self.manager.changed, self.fence.registered)

    def registration(self) -> Registration:
        """What this instance says of itself to the fleet, now."""
        assert self.identity is not None
        in_flight, receives = len(self.worker.ledger), self.worker.intake.outstanding
        return described(self.identity, self.manager.state(), in_flight=in_flight, receives=receives)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends when `manager.stop()` was called and everything is drained. Cancelled, or when one of its parts fails
        (`PartFailed`, in groups), it releases what it holds first, for 2 s at most. The registration goes last: until then
        somebody may have to wait for this instance."""
        guard = self.defects.guard
        suspensions = Suspensions(self._clock, self._slept)
        trio.lowlevel.add_instrument(suspensions)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(guard, "worker", self.worker.run))
                if self.registrar is not None:
                    nursery.start_soon(guard, "registrar", self.registrar.run)
                else:
                    self._check()
                if self.database is not None:
                    nursery.start_soon(guard, "database", self.database.run)
                nursery.start_soon(guard, "watcher", self.watcher.run)
                nursery.start_soon(guard, "fence", self.fence.run)
                task_status.started()
                await guard("manager", self.manager.run)
                nursery.cancel_scope.cancel(reason="drained, stopping")
        finally:
            with contextlib.suppress(KeyError):  # it has failed, which Trio has logged
                trio.lowlevel.remove_instrument(suspensions)
            if self.registrar is not None:
                await self._unregister(self.registrar)

    def blocked(self) -> None:
        """For another thread: the loop that runs this is blocked."""
        if self.registrar is not None:
            self.registrar.blocked()

    def _slept(self, seconds: float) -> None:
        try:
            lost = self.worker.ledger.counts().lost
            self.worker.slept(seconds)
            lost = self.worker.ledger.counts().lost - lost
            log.warning("the machine has slept, and leases ran on meanwhile", seconds=round(seconds, 1), messages=lost)
        except Exception as defect:
            self.defects.note("heartbeat", defect)

    async def _unregister(self, registrar: Registrar) -> None:
        try:
            await registrar.close()
        except Exception as defect:
            self.defects.note("registrar", defect)

    # -- what the fence asks for --

    def _check(self) -> None:
        if self.registrar is not None:
            self.registrar.look_again()
        else:
            self.fence.registered(trio.current_time(), True)  # nobody counts on it

    def _look(self) -> None:
        self.watcher.look_again()

    def _may_receive(self) -> bool:
        return self.fence.is_open

    def _receive(self) -> None:
        self.worker.intake.look_again()

    @property
    def drain_expired(self) -> bool:
        """Whether the last drain ran out of time."""
        report = self.manager.state().drain
        return report is not None and report.outcome is DrainOutcome.EXPIRED


def worker_config(settings: Settings) -> WorkerConfig:
    """What the worker needs of the settings."""
    return WorkerConfig(
        concurrency=settings.max_concurrency,
        batch=settings.sqs_max_number_of_messages,
        wait=settings.sqs_wait_time_seconds,
        visibility=settings.sqs_visibility_timeout_seconds,
        poll_interval=settings.sqs_poll_interval,
        receivers=settings.sqs_max_receivers,
        linger=settings.sqs_batch_linger,
        drain_timeout=settings.drain_timeout,
        retry_backoff=settings.retry_backoff,
        breaker=_breaker(settings),
        fifo=settings.sqs_queue_url.endswith(".fifo"),
        most_bytes=settings.max_in_flight_bytes,
        delete_rejected=settings.reject_without_dlq == "delete",
    )


def _breaker(settings: Settings) -> BreakerConfig | None:
    if settings.breaker_failures is None:
        return None
    share, least = settings.breaker_failures
    return BreakerConfig(share=share, least=least, window=settings.breaker_window, pause=settings.breaker_pause)
