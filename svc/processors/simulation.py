"""The default processor, `svc.processors:simulated`: sleeps for a while, and succeeds."""

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Protocol

import structlog
import trio

from svc.processors.message import Message, Process

log = structlog.get_logger(__name__)


class _SimulatedWork(Protocol):
    simulated_work_seconds: tuple[float, float]


@contextlib.asynccontextmanager
async def simulated(settings: _SimulatedWork) -> AsyncIterator[Process]:
    """The default processor: sleeps for a random time within `SIMULATED_WORK_SECONDS`, then succeeds."""
    least, most = settings.simulated_work_seconds

    async def handle(message: Message) -> None:
        took = random.uniform(least, most)
        await trio.sleep(took)
        log.info("simulated work done", seconds=round(took, 2), body=message.body[:60])

    yield handle
