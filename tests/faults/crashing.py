"""A processor in whose process one part of the service crashes, when a message says so: `{"crash": true}`.

`CRASH` names the part. Its `run` is watched over from outside: when the message comes, the part ends by an exception that nobody
expects, as a defect of its own would end it. Everything else is as in any process.
"""

import functools
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from svc import Message, service
from svc.api import connection_limit, feed
from svc.consumer.intake import Intake
from svc.consumer.leases import Heartbeat
from svc.consumer.probe import Probe
from svc.consumer.settlement import Settlement
from svc.etcd.registration import Registrar
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.fence import Fence
from svc.maintenance.manager import Manager
from svc.telemetry.cloudwatch import Publisher
from tests import recording

PARTS: dict[str, tuple[Any, str]] = {
    "intake": (Intake, "run"),
    "heartbeat": (Heartbeat, "run"),
    "settlement": (Settlement, "run"),
    "queue_attributes": (Probe, "keep_policy_known"),
    "watcher": (KeyWatcher, "run"),
    "registrar": (Registrar, "run"),
    "fence": (Fence, "run"),
    "manager": (Manager, "run"),
    "api": (connection_limit.ConnectionLimit, "accept"),
    "page": (feed.Feed, "run"),
    "cloudwatch": (Publisher, "run"),
    "watchdog": (service, "measure_lag"),
}
"""Part, as the log names it → what runs it."""

told = threading.Event()
"""Looked at again and again: the registration runs in a thread and a Trio loop of its own, which no event of ours would wake."""


class Defect(Exception):
    """Nobody expects it."""


def crashes(run: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(run)
    async def until_told(*args: Any, **options: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def crash() -> None:
                while not told.is_set():
                    await trio.sleep(0.05)
                raise Defect("found by nobody")

            nursery.start_soon(crash)
            await run(*args, **options)
            nursery.cancel_scope.cancel(reason="the part has ended in good order")

    return until_told


if part := os.environ.get("CRASH"):
    owner, name = PARTS[part]
    setattr(owner, name, crashes(getattr(owner, name)))


async def handle(message: Message) -> None:
    if message.json().get("crash") and message.receive_count == 1:
        recording.note("began", message)
        recording.note("broke off", message)
        told.set()
        await trio.sleep_forever()
    await recording.handle(message)
