"""A processor that writes down when each run of it began and ended, for tests that look at real processes from outside.

`RECORD_FILE` names the file (a line per event, appended atomically), `WORK_SECONDS` how long a message takes; a body that is a
JSON object may say otherwise: `{"seconds": 1e6}`, `{"fail": true}`, `{"reject": "why"}`; with `"first": true` it says so for the
first delivery only.
"""

import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

import structlog
import trio

from svc import Message, Reject

log = structlog.get_logger(__name__)

MOST = 200
"""Characters of a body that are written down: a line has to go into the file in one piece."""


def note(event: str, message: Message) -> None:
    """Write down one event, in one piece."""
    body = message.body[:MOST]
    line = json.dumps({"event": event, "id": message.id, "body": body, "pid": os.getpid(), "at": time.time()})
    os.write(_file(os.environ["RECORD_FILE"]), line.encode() + b"\n")


@cache
def _file(path: str) -> int:
    """Opened once: it has to be there when the process has no descriptors left."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


async def handle(message: Message) -> None:
    told = message.json() if message.body.startswith("{") else {}
    if told.get("first") and message.receive_count > 1:
        told = {}
    note("began", message)
    try:
        await trio.sleep(told.get("seconds", float(os.environ["WORK_SECONDS"])))
        if told.get("fail"):
            raise ValueError("told to fail")
        if "reject" in told:
            raise Reject(told["reject"])
    except BaseException:
        note("broke off", message)
        raise
    note("succeeded", message)


def stuck(message: Message) -> None:
    """In a thread, which nobody can stop."""
    note("began", message)
    time.sleep(message.json()["seconds"])
    note("succeeded", message)


async def blocking(message: Message) -> None:
    """Stops the event loop."""
    time.sleep(message.json()["seconds"])  # noqa: ASYNC251 - this is what it is about
    note("succeeded", message)


@asynccontextmanager
async def slow_to_close() -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    """`handle`, with connections that take two seconds to close."""
    yield handle
    log.info("closing")
    with trio.CancelScope(shield=True):
        await trio.sleep(2)
