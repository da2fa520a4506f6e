"""Processors that misbehave as their message tells them to, and write down what they do (tests/recording.py).

A body is JSON: `{"raise": "SystemExit"}`, `{"ignore": 6}`, `{"block": 3}`, `{"leak": true}`, `{"change": true}`. What is told
holds for the first delivery; the second is processed as it should be.
"""

import asyncio
import threading
import time
from contextlib import suppress

import trio

from svc import Message
from tests import recording


class Odd(BaseException):
    """Neither an Exception nor a cancellation."""


RAISED = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "BaseException": Odd,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError("one"), KeyError("other")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("three", [SystemExit(1), Odd(), ValueError()]),
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "StopAsyncIteration": StopAsyncIteration,
}


async def handle(message: Message) -> object:
    told = message.json() if message.receive_count == 1 else {}
    if "raise" in told:
        recording.note("began", message)
        recording.note("broke off", message)
        raise RAISED[told["raise"]]()
    if "scope" in told:
        # A cancelled scope of the processor's own leaks out: its Cancelled is nobody's but its own.
        recording.note("began", message)
        recording.note("broke off", message)
        with trio.CancelScope() as scope:
            scope.cancel()
            with suppress(trio.Cancelled):
                await trio.sleep(1)
        raise ValueError("after a cancellation of its own")
    if "ignore" in told:
        recording.note("began", message)
        with trio.CancelScope(shield=True):
            await trio.sleep(told["ignore"])
        recording.note("broke off", message)
        await trio.lowlevel.checkpoint()
        raise ValueError("ignored its cancellation for a while")
    if "block" in told:
        time.sleep(told["block"])  # noqa: ASYNC251 - that is the trouble
    if "leak" in told:
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
    if "change" in told:
        for attribute in ("body", "id", "receive_count"):
            with suppress(AttributeError, TypeError):
                setattr(message, attribute, "changed")
    await recording.handle(message)
    return [object(), message] if "garbage" in told else None


def in_thread(message: Message) -> None:
    """A plain function; `{"stuck": true}` never comes back."""
    told = message.json()
    recording.note("began", message)
    if told.get("stuck") and message.receive_count == 1:
        recording.note("broke off", message)  # as far as anybody can tell
        time.sleep(3600)
    time.sleep(0.1)
    recording.note("succeeded", message)
