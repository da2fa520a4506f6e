"""The way of a delivery that has landed: to the processor, into the drain's hands, back to the queue, or deleted unseen.

Most are started at once. Three things make it longer: a drain *holds* what its receives bring until all of them have landed (else
a receive of our own would take the released ones back); a second copy of a message that is in flight, its *twin*, waits for the
first and shares its fate; and within a FIFO group nobody passes anybody.

Nothing here waits or calls the queue; what a drain waits for stands in `worker.py`.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from svc.consumer.drain import DrainTally
from svc.consumer.ledger import PROCESSED, RELEASED, Entry, Ledger, Outcome
from svc.consumer.settlement import Settlement

log = structlog.get_logger(__name__)


class Deliveries:
    """`receiving()` is whether the intake is open, `closing()` whether the worker is being cancelled; `start` gives an entry to
    the message tasks; `had_its_last_receive` tells whether the queue moves it to the dead-letter queue at the next one;
    `lose` ends it as lost, with the reason."""

    def __init__(
        self,
        ledger: Ledger,
        settlement: Settlement,
        tally: DrainTally,
        *,
        fifo: bool,
        receiving: Callable[[], bool],
        closing: Callable[[], bool],
        start: Callable[[Entry], None],
        had_its_last_receive: Callable[[Entry], bool],
        lose: Callable[[Entry, str], None],
    ) -> None:
        self._ledger = ledger
        self._settlement = settlement
        self._tally = tally
        self._fifo = fifo
        self._receiving = receiving
        self._closing = closing
        self._start = start
        self._had_its_last_receive = had_its_last_receive
        self._lose = lose
        self._holding = False  # a drain waits for receives to land
        self._held: list[Entry] = []  # landed meanwhile, to be released when all have landed
        self._twins: dict[str, list[Entry]] = {}  # further copies of messages that are being worked on, by message id

    # -- what a drain says --

    def hold(self) -> None:
        """A drain begins: what lands from now on is held."""
        self._holding = True

    def start_held(self) -> None:
        """The drain is called off: what was held is processed instead."""
        for entry in self._end_hold():
            self._start(entry)

    def release_held(self) -> None:
        """Every receive has landed, or the time is over: what was held goes back, and so does what lands later."""
        for entry in self._end_hold():
            self._settlement.settle(entry, RELEASED)

    def _end_hold(self) -> list[Entry]:
        self._holding = False
        held, self._held = self._held, []
        return [entry for entry in held if entry.is_undecided()]

    def release_undecided(self) -> list[Entry]:
        """Give back what has no fate yet, whatever its task does; returns it."""
        undecided = [entry for entry in self._ledger if entry.is_undecided()]
        for entry in undecided:
            self._settlement.settle(entry, RELEASED)
        return undecided

    # -- its landing --

    def route(self, entry: Entry, twin: Entry | None) -> None:
        """Choose the way of a delivery that has just been entered; `twin` was in flight before it. No checkpoint."""
        if self._ledger.is_finished(entry.message.id):
            log.info("a message that was finished before has come back and is deleted", message_id=entry.message.id)
            self._settlement.settle(entry, PROCESSED)
            self._keep_in_line(entry)
        elif twin is not None and twin.fate == PROCESSED:
            # Its delete is on the way, by a receipt that this copy may have superseded. Done is done: there is nothing to wait
            # for, and a drain whose time is over has none to give.
            self._ledger.remember(entry.message.id)
            self._settlement.settle(entry, PROCESSED)
            self._keep_in_line(entry)
        elif twin is not None:
            # A second copy of what is in our hands (a duplicate, or a release that is not confirmed yet) waits for the first.
            self._twins.setdefault(entry.message.id, []).append(entry)
            self._keep_in_line(entry)
            if twin.fate == RELEASED and not self._receiving() and not self._holding:
                self._release_latecomer(entry)
        elif entry.lease.until <= trio.current_time():
            # Somebody else may have it by now, and a release by this receipt could take it from him.
            self._lose(entry, "its receive took longer than its lease")
        elif self._closing():
            self._settlement.settle(entry, RELEASED)  # it may well be one that we have just released
        elif self._receiving() or (self._holding and self._release_would_dead_letter(entry)):
            self._start(entry)
        elif self._holding:
            self._held.append(entry)
        else:
            self._release_latecomer(entry)

    def _release_latecomer(self, entry: Entry) -> None:
        """It landed when the drain's time for work was over, or after the drain."""
        if self._tally.running and self._had_its_last_receive(entry):
            self._tally.note(next_receive_dead_letters=[entry])
        self._settlement.settle(entry, RELEASED)

    def _keep_in_line(self, entry: Entry) -> None:
        """It will not be processed, or not yet: within its group nobody passes it all the same."""
        if self._fifo and not self._closing():
            self._start(entry)

    def _release_would_dead_letter(self, entry: Entry) -> bool:
        if not self._had_its_last_receive(entry):
            return False
        # Within a FIFO group nothing is processed that comes after something that is released.
        group = entry.message.group_id
        return not (self._fifo and any(held.message.group_id == group for held in self._held))

    # -- its end --

    def ended(self, entry: Entry) -> None:
        """A delivery is out of our hands: its twins and, in a FIFO group, its successors follow from that."""
        if twins := self._twins.pop(entry.message.id, None):
            if entry not in twins:
                self._first_has_ended(entry, twins)
            elif len(twins) > 1:
                self._twins[entry.message.id] = [twin for twin in twins if twin is not entry]
        if self._held and self._fifo and entry.ended not in (Outcome.PROCESSED, Outcome.REJECTED):
            self._release_held_successors(entry.message.group_id)

    def _release_held_successors(self, group: str | None) -> None:
        """A message of this FIFO group was not finished: what came after it goes back too."""
        followers = [held for held in self._held if held.message.group_id == group]
        self._held = [held for held in self._held if held.message.group_id != group]
        for entry in followers:
            if entry.is_undecided():
                self._settlement.settle(entry, RELEASED)

    def _first_has_ended(self, first: Entry, twins: Sequence[Entry]) -> None:
        """The first copy of a message has ended. The next takes its place; it shares its fate, unless that was to be given back:
        then it is a delivery like any other, and one that we hold already."""
        heir, *others = twins
        self._ledger.follow(heir)
        if others:
            self._twins[heir.message.id] = others
        finished = first.ended in (Outcome.PROCESSED, Outcome.REJECTED)
        if finished:
            self._ledger.remember(first.message.id)  # there may be more copies on the way
        given_back = first.ended in (Outcome.RELEASED, Outcome.LOST) and first.fate in (None, RELEASED)
        if given_back and self._receiving() and not self._closing() and heir.is_undecided():
            if not self._fifo:
                self._start(heir)
            return
        for twin in twins:
            if not twin.is_undecided():
                continue
            if finished:
                self._settlement.settle(twin, PROCESSED)
            elif first.ended is Outcome.FAILED and first.fate is None:
                self._ledger.end(twin, Outcome.FAILED)
            else:
                self._settlement.settle(twin, first.fate or RELEASED)
