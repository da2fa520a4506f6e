"""Seeded mistakes of the batches, and of what runs on asyncio; as in `mutations.py`."""

from collections.abc import Sequence
from typing import Any

import trio

from svc.consumer.batches import Batches
from svc.consumer.gathering import Portion
from svc.consumer.group_line import Line
from svc.consumer.ledger import PROCESSED, Entry, Outcome
from svc.core import Core
from svc.processors import Message


def _batches(core: Core) -> Batches | None:
    """None: this schedule has none."""
    return core.worker.tasks._batches


def marks_are_forgotten(core: Core) -> None:
    """What was marked ends as the function does."""
    if (batches := _batches(core)) is not None:
        batches._result = lambda entry, of_the_call: of_the_call  # type: ignore[method-assign]


def items_share_one_outcome(core: Core) -> None:
    """The first item decides for all."""
    if (batches := _batches(core)) is not None:
        result = batches._result

        def of_the_first(entry: Entry, of_the_call: Any) -> Any:
            first = batches._calls[entry.scope][0] if entry.scope in batches._calls else entry
            return result(first, of_the_call)

        batches._result = of_the_first  # type: ignore[method-assign]


def the_rest_of_the_group_passes(core: Core) -> None:
    """What is done is deleted, whatever stands before it in its group."""
    if (batches := _batches(core)) is not None:

        def settle(part: Sequence[Entry], of_the_call: Any) -> None:
            for entry in part:
                batches._conclude(entry, batches._result(entry, of_the_call))

        batches._settle = settle  # type: ignore[method-assign]


def one_lost_lease_cancels_all(core: Core) -> None:
    """A lease that is lost ends the work on the whole batch."""
    if (batches := _batches(core)) is not None:

        def lost(entry: Entry) -> None:
            if entry.scope in batches._calls:
                batches._items[entry].lost = True
                entry.scope.cancel()  # type: ignore[union-attr]

        batches.lost = lost  # type: ignore[method-assign]


def a_lost_item_is_begun_again_beside_its_batch(core: Core) -> None:
    """A message that was lost is not waited for when it comes again."""
    if (batches := _batches(core)) is not None:

        def start(entry: Entry) -> None:
            if entry.is_undecided and batches._may_be_called_with(entry):
                batches._put(Portion((entry,)))

        batches.start = start  # type: ignore[method-assign]


def a_drain_lets_linger(core: Core) -> None:
    """What has gathered when a drain begins goes on waiting for company."""
    if (batches := _batches(core)) is not None:
        batches.flush = lambda flushing: None  # type: ignore[method-assign]


def batches_without_a_size(core: Core) -> None:
    """Whatever has gathered leaves together."""
    if (batches := _batches(core)) is not None:
        gathering = batches._gathering
        gathering._first = lambda: (len(gathering._waiting), None)  # type: ignore[method-assign]


def a_group_is_gathered_out_of_order(core: Core) -> None:
    """A portion of a FIFO group is taken from the end of its line."""
    if (batches := _batches(core)) is not None:
        portion = batches._portion

        def backwards(line: Line) -> Portion:
            found = portion(line)
            return Portion(list(reversed(found.entries)))

        batches._portion = backwards  # type: ignore[method-assign, assignment]


def cancelled_is_taken_for_returned(core: Core) -> None:
    """As asyncio reports it: a function that was cancelled has ended, and nobody asks how."""
    tasks = core.worker.tasks
    if _batches(core) is None:
        process = tasks._process

        async def swallowing(message: Message) -> None:
            try:
                await process(message)
            except trio.Cancelled:
                entry = core.worker.ledger.at_work_on(message.id)
                if entry is not None and entry.is_undecided:
                    core.worker.settlement.settle(entry, PROCESSED)
                raise

        tasks._process = swallowing


def items_are_dropped_at_the_deadline(core: Core) -> None:
    """A batch that is cancelled settles nobody: its messages stay invisible until their leases end."""
    if (batches := _batches(core)) is not None:
        conclude = batches._conclude

        def drop(entry: Entry, result: Any) -> None:
            if result[1] and entry.is_undecided:
                core.worker.ledger.end(entry, Outcome.RELEASED)
            else:
                conclude(entry, result)

        batches._conclude = drop  # type: ignore[method-assign]
