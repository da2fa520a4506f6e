"""Threads in virtual time: a processor that goes on after its message was given back, as one in a thread does."""

import trio

from svc.processors import Message, Process, ThreadRun, Threads


class VirtualThreads:
    """Makes of an async processor one that cannot be stopped: its calls run as tasks of their own, in the place of threads."""

    def __init__(self, process: Process, places: int) -> None:
        self._process = process
        self.threads = Threads(places)
        """As that of a plain `def`."""

    async def __call__(self, message: Message) -> None:
        run = ThreadRun(self.threads, message.id)
        ended = trio.Event()
        errors: list[Exception] = []

        async def go_on() -> None:
            try:
                if run.begin("a task in the place of a thread"):
                    await self._process(message)
                    run.finished = [message.id]
            except Exception as error:
                errors.append(error)
            finally:
                run.release_on_behalf_of(run)
                ended.set()

        try:
            await run.acquire_on_behalf_of(run)
            trio.lowlevel.spawn_system_task(go_on)
            await ended.wait()
        except trio.Cancelled:
            run.give_back()
            raise
        for error in errors:
            raise error
