"""A processor whose module is told to stop while it is imported, in a place that swallows every exception."""

import os
import signal
import weakref

from svc import Message


class _Thing:
    pass


_thing = _Thing()
_watched = weakref.ref(_thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
del _thing


async def handle(message: Message) -> None:
    raise AssertionError("the service was told to stop before it took anything")
