"""Threads in virtual time: a processor that goes on after its message was given back, as one in a thread does."""

from collections.abc import Callable

import trio

from svc.processors import Message, Process, ThreadRun, Threads


class VirtualThreads:
    """Makes of an async processor one that cannot be stopped: its calls run as tasks of their own, in the place of threads."""

    def __init__(
        self, process: Process, places: int, on_left: Callable[[Message], None] = lambda message: None
    ) -> None:
        """`on_left` is called when a message's run goes on although its task was cancelled."""
        self._process = process
        self._on_left = on_left
        self._scopes: set[trio.CancelScope] = set()
        self.threads = Threads(places)
        """As that of a plain `def`."""

    def die(self) -> None:
        """The process has ended, and its threads with it."""
        for scope in self._scopes:
            scope.cancel(reason="simulated end of the process")

    async def __call__(self, message: Message) -> None:
        run = ThreadRun(self.threads, message.id)
        ended = trio.Event()
        errors: list[BaseException] = []

        async def go_on() -> None:
            try:
                with trio.CancelScope() as scope:
                    self._scopes.add(scope)
                    if run.begin("a task in the place of a thread"):
                        await self._process(message)
                        run.finished = [message.id]
            except trio.Cancelled:
                raise
            except BaseException as error:
                errors.append(error)
            finally:
                self._scopes.discard(scope)
                run.release_on_behalf_of(run)
                ended.set()

        try:
            await run.acquire_on_behalf_of(run)
            trio.lowlevel.spawn_system_task(go_on)
            await ended.wait()
        except trio.Cancelled:
            run.give_back()
            if not ended.is_set():
                self._on_left(message)
            raise
        finally:
            run.task_ends()
        for error in errors:
            raise error
