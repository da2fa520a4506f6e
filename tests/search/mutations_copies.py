"""Seeded mistakes about copies: deliveries of a message that is in flight already (`mutations.py`)."""

from collections.abc import Iterator
from typing import Any

from svc.consumer.ledger import Entry
from svc.core import Core


def copies_do_not_wait(core: Core) -> None:
    """A copy of what is in flight is routed as if it were alone."""
    deliveries = core.worker.deliveries
    route = deliveries.route
    deliveries.route = lambda entry, first: route(entry, None)  # type: ignore[method-assign]


class _Forgetful:
    """The ledger of one who does not ask whether a receipt is there."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._ledger)

    def __contains__(self, receipt: str) -> bool:
        return False


def a_receipt_is_taken_twice(core: Core) -> None:
    """A receipt that comes again while it is in flight is entered again."""
    core.worker.deliveries._ledger = _Forgetful(core.worker.ledger)  # type: ignore[assignment]


def a_closing_copy_waits_for_the_first(core: Core) -> None:
    """A copy that lands while the instance closes, or a drain's time is over, waits for the first delivery's call."""
    worker = core.worker

    async def everything_settled() -> None:
        while worker.ledger or worker.intake.outstanding:
            await worker.intake.changed.wait_until(lambda: not worker.intake.outstanding)
            await worker.ledger.changed.wait_until(lambda: not worker.ledger)

    worker._everything_settled = everything_settled  # type: ignore[method-assign]
