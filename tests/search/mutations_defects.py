"""Seeded mistakes in what is done about defects, crashes of parts, and answers that confirm nothing (`mutations.py`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from svc.consumer.ledger import Entry
from svc.consumer.queue import QueueError, Refusal
from svc.core import Core
from svc.defects import Defects, Part


def settlement_dies_with_the_work(core: Core) -> None:
    """Settlement runs where a failure, or a second signal, cancels it with the work: nothing is given back."""
    worker = core.worker
    run = worker.settlement.run

    async def run_until_the_end(wire: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await worker._closing.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await run(wire)

    worker.settlement.run = run_until_the_end  # type: ignore[method-assign]


def no_release_without_settlement(core: Core) -> None:
    """When the loop of the settlement has failed, what is decided is not sent."""
    core.worker.settlement.run_out = lambda wire: None  # type: ignore[method-assign]


def _named(refused: Mapping[str, Refusal]) -> Mapping[str, Refusal]:
    return {receipt: refusal for receipt, refusal in refused.items() if not refusal.unconfirmed}


def unconfirmed_is_confirmed(core: Core) -> None:
    """What an answer does not name is taken for done."""
    settlement = core.worker.settlement
    call = settlement._call

    async def trusting(action: Any, batch: Sequence[Entry]) -> Mapping[str, Refusal]:
        return _named(await call(action, batch))

    settlement._call = trusting  # type: ignore[method-assign]


class _Trusting:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        return _named(await self._queue.change_visibility(timeouts))


def unconfirmed_extends_the_lease(core: Core) -> None:
    """A heartbeat whose answer does not name a message is taken for a lease."""
    heartbeat = core.worker.heartbeat
    send = heartbeat._send

    async def trusting(batch: Sequence[Entry], timeouts: dict[str, int]) -> None:
        if not isinstance(heartbeat._queue, _Trusting):
            heartbeat._queue = _Trusting(heartbeat._queue)  # type: ignore[assignment]
        await send(batch, timeouts)

    heartbeat._send = trusting  # type: ignore[method-assign]


class _Thrown(Defects):
    def note(self, part: Part, error: BaseException, **context: object) -> None:
        raise error


def a_failed_call_is_a_crash(core: Core) -> None:
    """An exception that is no `QueueError` is not caught where the receive is made."""
    core.worker.intake._defects = _Thrown()


def defects_are_not_backed_off(core: Core) -> None:
    """A receive that broke is followed by the next at once."""
    intake = core.worker.intake
    failed = intake._failed

    def at_once(error: QueueError) -> None:
        failed(error)
        if "internal error" in str(error):
            intake._pause_until = -math.inf

    intake._failed = at_once  # type: ignore[method-assign]
