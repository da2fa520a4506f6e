"""The core: gate, worker, watcher and manager wired together, between a queue and a switch.

`service.py` puts it between SQS, etcd and the API; `simulated_service.py` between a simulated queue and a simulated switch. So
the tests run the wiring that production runs.
"""

import random
from collections.abc import Callable
from typing import Protocol

import trio

from svc.gate import Gate
from svc.maintenance import DrainOutcome, Manager
from svc.observed_queue import ObservedQueue
from svc.observer import UNOBSERVED, Observer
from svc.processors import Process
from svc.queue import Queue
from svc.settings import Settings
from svc.worker import Worker, WorkerConfig


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
    """Watches the maintenance key; `etcd.KeyWatcher` is the real one."""

    def snapshot(self) -> WatcherSnapshot: ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...


MakeWatcher = Callable[[Settings, Callable[[bytes | None, int], None]], Watcher]
"""From the settings and what is to be called with each value of the key and its revision."""


class Core:
    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        process: Process,
        make_watcher: MakeWatcher,
        *,
        observer: Observer = UNOBSERVED,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.queue = queue if observer is UNOBSERVED else ObservedQueue(queue, observer)
        self.worker = Worker(self.queue, process, worker_config(settings), observer=observer, rng=rng)
        self.gate = Gate()
        self.manager = Manager(
            [self.gate, self.worker], drain_timeout=settings.drain_timeout, on_drain_ended=observer.drain_ended
        )
        self.watcher = make_watcher(settings, self.manager.on_value)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends when `manager.stop()` was called and everything is drained. Cancelled, it releases what it holds first, for
        2 s at most."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.worker.run)
            nursery.start_soon(self.watcher.run)
            task_status.started()
            await self.manager.run()
            nursery.cancel_scope.cancel(reason="drained, stopping")

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
        drain_timeout=settings.drain_timeout,
        fifo=settings.sqs_queue_url.endswith(".fifo"),
    )
