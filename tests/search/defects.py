"""Parts that fail because the schedule says so, and the failures that it does not say: those are counter-examples."""

from typing import Any

import trio

from svc.core import Core
from svc.defects import Defects, Part, PartFailed
from svc.testing.faults import SimulatedDefect

from .witness import Instance, Witness

OF_THE_WORKER = ("intake", "heartbeat", "settlement")


def may_fail(core: Core, part: str, fails: trio.Event) -> None:
    """This part of it ends by a defect when `fails` is set."""
    owner: Any = getattr(core.worker if part in OF_THE_WORKER else core, part)
    run = owner.run

    async def run_until_it_fails(*args: object) -> None:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                await fails.wait()
                raise SimulatedDefect(part)

            nursery.start_soon(fail)
            await run(*args)
            if part == "manager":  # the service has ended in good order
                nursery.cancel_scope.cancel()

    owner.run = run_until_it_fails


class NotedDefects(Defects):
    """Tells the witness what is no simulated defect."""

    def __init__(self, witness: Witness, instance: Instance) -> None:
        super().__init__()
        self._witness = witness
        self._instance = instance

    def note(self, part: Part, error: BaseException, **context: object) -> None:
        self._look(part, error)
        super().note(part, error, **context)

    def crash(self, part: Part, error: BaseException) -> PartFailed:
        self._look(part, error)
        return super().crash(part, error)

    def _look(self, part: str, error: BaseException) -> None:
        for one in _single(error):
            if not isinstance(one, SimulatedDefect) and not self._instance.crashed:
                self._witness.errors.append(one)
                self._witness.violated(f"15 {self._instance}: a defect in {part}: {one!r}")


def _single(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in _single(inner)]
    return [error]
