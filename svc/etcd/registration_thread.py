"""The registration in a thread and an event loop of its own: it does not stand behind what blocks the service's loop.

A processor that computes for a minute on the loop would let the lease lapse, and whoever waits for the fleet would count without
it. Here the service's loop hands over what there is to say. When it is blocked, as the watchdog finds out (`blocked`), the thread
says so itself: phase `blocked`, with the messages in flight as they are, and keeps the lease alive. (What holds Python's
interpreter lock all the while stops this thread too; then the membership remains.)

Only for real time: both loops have one clock.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

from svc.etcd.registration import Registrar, RegistrarSnapshot
from svc.maintenance.registration import Registration
from svc.settings import Settings
from svc.wakeup import REST, WakeUp, next_tick

log = structlog.get_logger(__name__)

FIGURES = {"draining": 1.0}
"""Seconds between two looks of the service's loop whether the messages in flight alone are news, by phase; else `REST`. All other
news is handed over at once."""

ENDING = 2.0
"""Seconds that the thread may take to end."""


class RegistrarThread:
    """A `Registrar` in a thread: made of the same, and used in the same way, from the service's loop."""

    def __init__(
        self,
        settings: Settings,
        describe: Callable[[], Registration],
        changed: WakeUp,
        on_settled: Callable[[float, bool], None],
    ) -> None:
        self._describe = describe
        self._changed = changed
        self._on_settled = on_settled
        self._told = describe()
        self._is_blocked = False
        self._theirs = WakeUp()  # of the thread's loop
        self._registrar = Registrar(settings, self._now, self._theirs, self._settled)
        self._ours: trio.lowlevel.TrioToken | None = None
        self._thread: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._over = False
        self._failure: BaseException | None = None

    def snapshot(self) -> RegistrarSnapshot:
        """How things stand now."""
        return self._registrar.snapshot()

    def look_again(self) -> None:
        """Confirm the registration now: this process may have been given up. Does not wait."""
        self._in_thread(self._registrar.look_again)

    def blocked(self) -> None:
        """For another thread: the service's loop is blocked. It says itself when it goes on."""
        self._in_thread(self._blocked)

    async def run(self) -> None:
        """Keep the registration until cancelled."""
        self._ours = trio.lowlevel.current_trio_token()
        ended = trio.Event()
        self._hand_over()
        thread = threading.Thread(
            target=self._run_thread, args=(trio.lowlevel.current_clock(), ended), name="registration", daemon=True
        )
        thread.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_news)
                await ended.wait()
                nursery.cancel_scope.cancel(reason="the thread has ended")
        finally:
            self._over = True
            self._in_thread(lambda: self._scope.cancel(reason="the service has ended"))
            with trio.move_on_after(ENDING, shield=True):
                await ended.wait()
            self._thread = None
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Say the last word and take the registration away, when `run` has ended."""
        self._hand_over()
        self._is_blocked = False
        await self._registrar.close()

    # -- in the service's loop --

    def _hand_over(self) -> bool:
        """Whether that is news to the thread."""
        before, was_blocked = self._told, self._is_blocked
        self._told = self._describe()
        return was_blocked or self._told != before

    async def _give_news(self) -> None:
        while True:
            if self._hand_over():
                self._in_thread(self._news)
            await self._changed.wait(lambda: next_tick(FIGURES.get(self._told.acknowledgement.phase, REST)))

    def _in_thread(self, do: Callable[[], object]) -> None:
        if self._thread is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._thread.run_sync_soon(do)

    # -- in the thread's loop --

    def _run_thread(self, clock: trio.abc.Clock, ended: trio.Event) -> None:
        try:
            trio.run(self._keep, clock=clock)
        except BaseException as failure:
            self._failure = failure
        assert self._ours is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._ours.run_sync_soon(ended.set)

    async def _keep(self) -> None:
        self._thread = trio.lowlevel.current_trio_token()
        if self._over:
            return
        with self._scope:
            await self._registrar.run()

    def _blocked(self) -> None:
        self._is_blocked = True
        self._theirs.notify()
        assert self._ours is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._ours.run_sync_soon(self._changed.notify)  # as soon as it goes on

    def _news(self) -> None:
        """The service's loop lives, and may have said something."""
        self._is_blocked = False
        self._theirs.notify()

    def _now(self) -> Registration:
        if not self._is_blocked:
            return self._told
        with contextlib.suppress(Exception):
            # Of the service's own state: while its loop stands still nothing changes there; and should it go on in this moment,
            # what was handed over last will do.
            self._told = self._describe()
        return replace(self._told, acknowledgement=replace(self._told.acknowledgement, phase="blocked"))

    def _settled(self, began: float, answered: bool) -> None:
        assert self._ours is not None
        with contextlib.suppress(trio.RunFinishedError):
            self._ours.run_sync_soon(self._on_settled, began, answered)
