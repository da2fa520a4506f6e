"""The composition root: opens the world, builds the parts, starts each by name, and owns signals and the order of dying.

Read `run()` from top to bottom: what is used outlives its users, so things end in the reverse order of the lines that open them.

    signals, database, queue,          outermost: settlement needs the queue to the end, messages need the processor, which
      processor                          needs the database
      API                              answers during the drain, stops after it
        core                           worker, watcher, manager; ends when a stop was asked for and everything is drained
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import structlog
import trio

from svc import __version__, processors, signals
from svc.api import app as api
from svc.api.feed import Feed
from svc.consumer.observer import Observer, Several
from svc.consumer.worker import LAST_RELEASE
from svc.core import Core, worker_config
from svc.defects import Defects
from svc.etcd.fleet import Switchboard
from svc.etcd.registration import identity
from svc.etcd.registration_thread import RegistrarThread
from svc.etcd.watcher import KeyWatcher
from svc.maintenance import orders
from svc.maintenance.fence import STALL
from svc.maintenance.handler import in_order
from svc.maintenance.user_handler import UnusableHandler, UserHandler
from svc.settings import Settings
from svc.sqs import queue as sqs
from svc.switch_file import standalone_switch
from svc.telemetry import logs, scaling_metrics, tracing
from svc.telemetry.backlog import Backlog, instances_of
from svc.telemetry.cloudwatch import Figures, Publisher
from svc.telemetry.instance_name import instance_name
from svc.telemetry.loop_delay import measure_lag
from svc.telemetry.metrics import Metrics
from svc.telemetry.task_protection import protection
from svc.telemetry.watchdog import watched

if TYPE_CHECKING:
    from svc.database.opening import Opened

log = structlog.get_logger(__name__)

CLEAN, FAILED, UNUSABLE, DRAIN_EXPIRED = 0, 1, 2, 3
"""Exit codes (SPEC, Commands)."""

CLOSING = api.GRACE + 10.0
"""Seconds that everything after the drain may take (API, connections) before the process is ended hard."""


async def run(
    settings: Settings,
    processor: Callable[..., object],
    *,
    handlers: Mapping[str, Callable[..., object]] = MappingProxyType({}),
    on_ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Run the service until it is told to stop; returns the exit code. `handlers`: those of the user's own, by where they are.
    `on_ready` gets the API's URL.

    Raises, in groups, `defects.PartFailed` when a part has failed at run time, which is told by then and what was in flight given
    back, and `server.CannotListen` when the API has no address; `processors.UnusableProcessor`, `user_handler.UnusableHandler`.
    """
    with _signals() as told, _hard_exit() as arm_hard_exit:
        defects = Defects(on_crash=lambda: arm_hard_exit(LAST_RELEASE + CLOSING, FAILED), remedied=(api.CannotListen,))
        name = None if settings.instance_id else await instance_name()
        this = identity(settings, name)
        async with (
            tracing.opened(settings) as spans,
            _database(settings, this.id) as database,
            sqs.opened(settings, polls=settings.sqs_max_receivers) as queue,
            processors.opened(
                processor,
                settings,
                threads=settings.max_concurrency,
                runtime=settings.message_runtime,
                unit_of_work=None if database is None else database.unit_of_work,
            ) as process,
            _handlers(handlers, settings, defects) as own,
        ):
            inbox = None if database is None or processors.unit_of_work_of(process) is None else database
            if inbox is not None:
                await inbox.check_inbox()
            if spans is not None:
                spans.within_envelope = partial(processors.sender_context, process)
            metrics = Metrics(__version__)
            figures = Figures() if settings.cloudwatch_namespace else None
            observers: list[Observer] = [one for one in (metrics, spans, figures) if one is not None]
            protected = protection(settings, lambda: len(core.worker.ledger), defects)
            if protected is not None:
                observers.append(protected)
            alone = None if settings.etcd_endpoints else standalone_switch(settings, _clock)
            core = Core(
                settings,
                queue if spans is None else spans.queue(queue),
                process if database is None else database.guarded(process),
                KeyWatcher if alone is None else alone.watcher,
                observer=Several(defects, *observers),
                defects=defects,
                identity=this,
                make_registrar=RegistrarThread if alone is None else None,
                stall=STALL,
                clock=_clock,
                database=None if database is None else database.before(own),
                handlers=own,
            )
            feed = Feed(core)
            board = Switchboard(settings) if alone is None else alone.board(core.registration)
            backlog = _backlog(core, board)
            metrics.look_at_more(lambda: scaling_metrics.of_the_backlog(backlog.look()))
            if protected is not None:
                metrics.look_at_more(lambda: scaling_metrics.of_the_protection(protected.snapshot()))
            app = api.make(core, metrics, feed, board)
            if spans is not None:
                app.asgi_app = spans.within(app.asgi_app)  # type: ignore[method-assign]
            stop_api = trio.Event()
            work = trio.CancelScope()

            def on_stop_signal(count: int) -> None:
                if count == 1:
                    log.info("stop asked for: draining (a second signal ends this at once)")
                    arm_hard_exit(settings.drain_timeout + 1 + CLOSING, DRAIN_EXPIRED)
                    core.manager.stop()
                elif count == 2:
                    log.warning("second signal: what is unfinished is released now")
                    arm_hard_exit(LAST_RELEASE + CLOSING, DRAIN_EXPIRED)
                    work.cancel(reason="second signal")
                else:
                    os._exit(FAILED if defects.crashed else DRAIN_EXPIRED)

            guard = defects.guard
            asyncio_loop = processors.asyncio_loop(process)
            async with (
                watched(defects, beat=core.fence.beat, on_blocked=core.blocked),
                contextlib.nullcontext() if asyncio_loop is None else watched(defects, asyncio_loop),
                trio.open_nursery() as outermost,
            ):
                outermost.start_soon(guard, "signals", _watch, told, on_stop_signal, settings.log_level)
                outermost.start_soon(guard, "watchdog", measure_lag, metrics.lagged)
                outermost.start_soon(guard, "backlog", backlog.run)
                if inbox is not None:
                    outermost.start_soon(guard, "database", inbox.forget_old)
                async with trio.open_nursery() as serving:
                    serving.start_soon(guard, "page", feed.run, stop_api)
                    if protected is not None:
                        serving.start_soon(guard, "protection", protected.run, stop_api)
                    if figures is not None:
                        look = lambda: (core.worker.statistics(), core.manager.state())  # noqa: E731
                        publisher = Publisher(settings, figures, look, backlog=backlog.look)
                        serving.start_soon(guard, "cloudwatch", publisher.run, stop_api)
                    url = await serving.start(partial(guard, "api", api.serve, app, settings, stop_api))
                    with work:
                        async with trio.open_nursery() as working:
                            await working.start(core.run)
                            _tell_start(settings, url)
                            on_ready(url)
                    stop_api.set()
                    serving.cancel_scope.deadline = trio.current_time() + api.GRACE + 1
                outermost.cancel_scope.cancel(reason="stopped")
    log.info("stopped")
    return DRAIN_EXPIRED if work.cancel_called or core.drain_expired else CLEAN


def _backlog(core: Core, board: orders.Switchboard) -> Backlog:
    def done() -> int:
        counts = core.worker.ledger.counts()
        return counts.processed + counts.rejected

    return Backlog(core.queue.attributes, instances_of(board, core.settings.sqs_queue_url), done, core.defects)


@contextlib.asynccontextmanager
async def _handlers(
    found: Mapping[str, Callable[..., object]], settings: Settings, defects: Defects
) -> AsyncIterator[list[UserHandler]]:
    """Those of the user's own, entered in the order in which they are named."""
    # The nursery is outside: what they hold may be nurseries of their own, which Trio wants closed before it.
    async with trio.open_nursery() as nursery:
        async with contextlib.AsyncExitStack() as held:
            opened: list[UserHandler] = []
            names = ("http", "sqs", *(("database",) if settings.database_url is not None else ()))
            ours: list[Any] = [SimpleNamespace(name=name, after=()) for name in names]
            for origin, function in found.items():
                manager: Any = function(*processors.settings_arguments(function, settings))
                opened.append(UserHandler(await held.enter_async_context(manager), origin, nursery, defects))
            try:
                in_order([*ours, *opened])
            except ValueError as error:
                raise UnusableHandler(str(error)) from error
            yield opened
        nursery.cancel_scope.cancel(reason="the handlers are closed")


@contextlib.asynccontextmanager
async def _database(settings: Settings, application_name: str) -> "AsyncIterator[Opened | None]":
    """Nothing of it is loaded without `DATABASE_URL`."""
    if settings.database_url is None:
        yield None
        return
    from svc import database

    async with database.opened(settings, application_name) as opened:
        yield opened


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where there is such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _tell_start(settings: Settings, url: str) -> None:
    config = worker_config(settings)
    queue_url = settings.sqs_queue_url
    if settings.etcd_endpoints:
        log.info("started", api=url, queue_url=queue_url, maintenance_key=settings.maintenance_key)
    else:
        file = settings.maintenance_file or "none: maintenance is held in memory"
        log.info("started", api=url, queue_url=queue_url, etcd="off", maintenance_file=file)
    if config.effective_wait < config.wait:
        log.info(
            "long polls are shortened, so that they land within a drain and well within the lease",
            wait_seconds=config.effective_wait,
            configured_seconds=config.wait,
        )


class _Signals:
    """Those that came, and what SIGHUP means (`signals.py`)."""

    def __init__(self, received: AsyncIterator[int], meaning: signals.Hangup) -> None:
        self.received = received
        self.meaning = meaning


def _ignore(number: int, frame: object) -> None:
    pass


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    meaning = signals.hangup()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if meaning is not signals.Hangup.NOTHING:
        numbers.append(signals.SIGHUP)
    for number in numbers:
        # For good: what comes when the drain has ended is handed on, at the end of the block, to the handler that was here
        # before. That of the start (`__main__.py`) would end the process with its own exit code.
        # One that comes now, before there is a receiver, is kept.
        signal.signal(
            number, _ignore if number == signals.SIGHUP and meaning is signals.Hangup.LOG_LEVEL else signals.remember
        )
    with trio.open_signal_receiver(*numbers) as received:
        yield _Signals(received, meaning)


async def _watch(told: _Signals, on_stop_signal: Callable[[int], None], configured_level: str) -> None:
    count = 0
    if signals.stop_asked():  # since the process began, and something has swallowed it
        count += 1
        on_stop_signal(count)
    async for number in told.received:
        if number == signals.SIGHUP and told.meaning is signals.Hangup.LOG_LEVEL:
            logs.toggle_level(configured_level, by="SIGHUP")
            continue
        count += 1
        on_stop_signal(count)


@contextlib.contextmanager
def _hard_exit() -> Iterator[Callable[[float, int], None]]:
    """A last resort that no stuck thread, stalled reader or processor can hold up: `arm(seconds, code)` ends the process then. A
    failure stays one, whatever else is asked for."""
    timer: threading.Timer | None = None
    failed = False

    def arm(seconds: float, code: int) -> None:
        nonlocal timer, failed
        failed = failed or code == FAILED
        if timer is not None:
            timer.cancel()
        timer = threading.Timer(seconds, _end_process, (seconds, FAILED if failed else code))
        timer.daemon = True
        timer.start()

    try:
        yield arm
    finally:
        if timer is not None:
            timer.cancel()


def _end_process(seconds: float, code: int) -> None:
    log.critical("still not stopped: ending the process", after_seconds=seconds)
    os._exit(code)
