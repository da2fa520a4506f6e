"""The processors that the bench gives to `svc run`, chosen by `MESSAGE_PROCESSOR=tests.bench.processors:NAME`."""

import os
import random
import time

import trio

from svc import Message


async def nothing(message: Message) -> None:
    """No work at all: what is left is the consumer's own cost."""


async def sleep(message: Message) -> None:
    """Waits for BENCH_WORK_SECONDS."""
    await trio.sleep(_WORK)


async def varied(message: Message) -> None:
    """Waits for half to one and a half of BENCH_WORK_SECONDS: a steady flow, where equal times would make waves."""
    await trio.sleep(_WORK * random.uniform(0.5, 1.5))


async def stamp(message: Message) -> None:
    """Appends the moment at which it starts to BENCH_STAMPS."""
    os.write(_stamps(), f"{time.monotonic():.6f}\n".encode())


_WORK = float(os.environ.get("BENCH_WORK_SECONDS", "0"))
_file = -1


def _stamps() -> int:
    global _file
    if _file < 0:
        _file = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return _file
