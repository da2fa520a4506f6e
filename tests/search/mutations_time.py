"""Seeded mistakes about what outlasts its lease: threads that go on, a machine that sleeps, old receipts (`mutations.py`)."""

from svc.consumer.ledger import Entry
from svc.core import Core
from svc.processors import Threads


def leases_do_not_count_sleep(core: Core) -> None:
    """Leases are counted by a clock that stands still while the machine sleeps."""
    core.worker.slept = lambda seconds: None  # type: ignore[method-assign]


def begun_beside_its_thread(core: Core) -> None:
    """A message that comes back is begun, although a thread that was left behind is at work on it."""

    async def at_once(entry: Entry) -> None:
        return

    core.worker.tasks._apart_from_its_thread = at_once  # type: ignore[method-assign]


def begun_beside_its_call(core: Core) -> None:
    """A message that comes back is begun, although a call that ignores its cancellation is at work on it."""

    async def at_once(entry: Entry) -> None:
        return

    core.worker.tasks._apart_from_its_call = at_once  # type: ignore[method-assign]


def threads_are_forgotten(core: Core) -> None:
    """A drain asks only for what is in flight: threads that an earlier one left behind are in no report."""
    core.worker.tally._threads = core.worker.threads = Threads(1)


def what_a_thread_finished_is_forgotten(core: Core) -> None:
    """Nobody learns that a thread which was left behind has finished its message."""
    core.worker.threads.on_finished = lambda message_id: None


def releases_without_answer_are_repeated(core: Core) -> None:
    """A release that may have acted is sent again until the lease of its receipt is over."""
    core.worker.settlement._may_be_visible = lambda entry, sent: None  # type: ignore[method-assign]
