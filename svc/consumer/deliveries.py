"""The way of a delivery that has landed: to the message tasks, held for a drain, back to the queue, or deleted without work.

What is done in which state stands as a table in `delivery_states.py`; this file looks at the ledger and at what the worker is
doing, takes the move, and does what it says. Nothing here waits or calls the queue; what a drain waits for stands in `worker.py`.
"""

from collections.abc import Iterable, Sequence

import structlog
import trio

from svc.consumer.delivery_states import Action, Event, First, Mode, State, first_ended, landing, move
from svc.consumer.drain import DrainTally
from svc.consumer.fates import Fates
from svc.consumer.holder import WorkerHolder
from svc.consumer.leases import Heartbeat
from svc.consumer.ledger import PROCESSED, RELEASED, Entry, Ledger, Listener, Outcome
from svc.consumer.queue import Received, RedrivePolicy, had_last_receive, is_fifo
from svc.consumer.settlement import Settlement
from svc.consumer.tasks import MessageTasks
from svc.defects import Defects
from svc.processors import hold

log = structlog.get_logger(__name__)

# Of every message. Python 3.11 looks an Enum's member up in Python, each time.
_DECIDED, _ENDED, _LOST, _RECEIVING = Event.DECIDED, Event.ENDED, Outcome.LOST, Mode.RECEIVING


class Deliveries(Listener):
    """Listens to the ledger for fates and ends, from which those of copies and of successors follow."""

    def __init__(
        self,
        ledger: Ledger,
        heartbeat: Heartbeat,
        tasks: MessageTasks,
        fates: Fates,
        settlement: Settlement,
        tally: DrainTally,
        policy: RedrivePolicy,
        holder: WorkerHolder,
        *,
        visibility: int,
        fifo: bool,
        defects: Defects,
    ) -> None:
        self._ledger = ledger
        self._heartbeat = heartbeat
        self._tasks = tasks
        self._fates = fates
        self._settlement = settlement
        self._tally = tally
        self._policy = policy
        self._holder = holder
        self._visibility = visibility
        self._fifo_by_name = fifo
        self._defects = defects
        self._held: dict[Entry, None] = {}  # in the order of landing
        self._copies: dict[str, list[Entry]] = {}  # by message id: deliveries of it that landed after one in flight
        self.mode = Mode.REFUSING
        self.is_quiet = False
        """Nothing will be begun before `resume()`."""

    @property
    def held(self) -> int:
        """How many are held for a drain."""
        return len(self._held)

    @property
    def _fifo(self) -> bool:
        return is_fifo(self._policy, self._fifo_by_name)

    # -- what the worker is doing --

    def hold(self) -> None:
        """A drain begins: what lands from now on is held."""
        if self.mode is not Mode.CLOSING:
            self.mode = Mode.HOLDING

    def resume(self) -> None:
        """Receiving begins, or the drain is called off: what was held is processed instead."""
        self.is_quiet = False
        if self.mode is not Mode.CLOSING:
            self.mode = Mode.RECEIVING
            self._end_hold(Event.DRAIN_REVOKED)

    def release_held(self) -> None:
        """Every receive has landed, or the time is over: what was held goes back, and so does what lands later."""
        if self.mode is not Mode.CLOSING:
            self.mode = Mode.REFUSING
        self._end_hold(Event.DRAIN_LANDED)

    def become_quiet(self) -> None:
        """In a drain, nothing is at work: what lands goes back from now on, even in its last receive."""
        self.is_quiet = True

    def close(self) -> None:
        """The worker is being cancelled, for good."""
        self.mode = Mode.CLOSING

    def _end_hold(self, event: Event) -> None:
        for entry in list(self._held):
            # The end of one may have led to the release of others of its group, which are looked for among the held.
            if entry.state is not State.HELD:
                continue
            if (
                entry.lease.until <= trio.current_time()
            ):  # the process stood still, and the heartbeat's turn comes after this
                self._ledger.lose(entry, "its lease ran out while it was held")
            else:
                del self._held[entry]
                self._take(entry, event)

    def release_undecided(self) -> list[Entry]:
        """Give back what has no fate yet, whatever its task does; returns it."""
        undecided = [entry for entry in self._ledger if entry.is_undecided]
        for entry in undecided:
            self._take(entry, Event.WORK_ENDS)
            self._tasks.note_outlived(entry)
        return undecided

    # -- a landing --

    def land(self, deliveries: Sequence[Received], sent: float) -> None:
        """A receive has landed: enter what it brought, and choose the way of each. No checkpoint."""
        landed: list[Entry] = []
        now, lease_until = trio.current_time(), sent + self._visibility
        receipts: set[str] = set()
        spoilt: set[str | None] = set()  # FIFO groups of which one could not be routed: nobody passes it
        for delivery in deliveries:
            if delivery.receipt in self._ledger or delivery.receipt in receipts:
                log.warning("the queue handed out one receipt handle twice", message_id=delivery.message.id)
                continue
            receipts.add(delivery.receipt)
            first = self._ledger.at_work_on(delivery.message.id)
            entry = self._ledger.add(delivery, received_at=sent, lease_until=lease_until, landed_at=now, receive=landed)
            hold(delivery.message, self._holder)
            landed.append(entry)
            if spoilt and self._fifo and delivery.message.group_id in spoilt:
                self._settlement.settle(entry, RELEASED)
                continue
            try:
                self.route(entry, first)
            except Exception as defect:
                spoilt.add(delivery.message.group_id)
                self._defects.note("receive", defect)
                if entry.is_undecided:
                    self._fates.fail(entry, defect)
        self._heartbeat.cover(landed)

    def route(self, entry: Entry, first: Entry | None) -> None:
        """Choose the way of a delivery that has just been entered; `first` was in flight before it, with the same message. No
        checkpoint."""
        if first is not None:
            self._copies.setdefault(entry.message.id, []).append(entry)
        must_run = self.mode is not _RECEIVING and self._release_would_dead_letter(entry)
        event = landing(
            self.mode,
            finished=self._ledger.is_finished(entry.message.id),
            first=_standing(first),
            late=entry.lease.until <= entry.landed_at,
            must_run=must_run,
        )
        if event is Event.COMES_BACK:
            log.info("a message that was finished before has come back and is deleted", message_id=entry.message.id)
        self._take(entry, event)
        if must_run and first is not None and first in self._held:
            del self._held[first]
            self._take(first, Event.COPY_MUST_RUN)

    def _release_would_dead_letter(self, entry: Entry) -> bool:
        if self.is_quiet or not had_last_receive(self._policy, entry.message):
            return False
        # Within a FIFO group nothing is processed that comes after something that is released.
        group = entry.message.group_id
        return not (self._fifo and any(held.message.group_id == group for held in self._held))

    # -- a fate, and an end --

    def decided(self, entry: Entry) -> None:
        entry.state = move(entry.state, _DECIDED).state

    def ended(self, entry: Entry) -> None:
        """A delivery is out of our hands: its copies and, in a FIFO group, its successors follow from that."""
        if entry.ended is _LOST:
            self._tally.note_lost(entry)
        entry.state = move(entry.state, _ENDED).state
        self._held.pop(entry, None)
        if copies := self._copies.pop(entry.message.id, None):
            if entry not in copies:
                self._first_has_ended(entry, copies)
            elif len(copies) > 1:
                self._copies[entry.message.id] = [copy for copy in copies if copy is not entry]
        if self._held and self._fifo:
            self._release_held_behind(entry)

    def _release_held_behind(self, unfinished: Entry) -> None:
        for entry in [held for held in self._held if held.message.group_id == unfinished.message.group_id]:
            if unfinished.lets_pass(entry):
                break
            del self._held[entry]
            self._take(entry, Event.PREDECESSOR_UNFINISHED)

    def _first_has_ended(self, first: Entry, copies: list[Entry]) -> None:
        """The next copy takes the place of the first; the others wait for it, or share the fate of the first with it."""
        following, *others = copies
        self._ledger.follow(following)
        if others:
            self._copies[following.message.id] = others
        if first.is_finished:
            self._ledger.remember(first.message.id)  # there may be more copies on the way
        event = first_ended(
            self.mode,
            finished=first.is_finished,
            failed=first.ended is Outcome.FAILED and first.fate is None,
            given_back=(
                first.fate.allows_work(trio.current_time())
                if first.fate is not None
                else first.ended in (Outcome.RELEASED, Outcome.LOST)
            )
            and following.is_undecided,
        )
        concerned: Iterable[Entry] = (following,) if event is Event.FIRST_GIVEN_BACK else copies
        for copy in concerned:
            if copy.state is State.COPY:
                self._take(copy, event, first)

    # -- moves --

    def _take(self, entry: Entry, event: Event, first: Entry | None = None) -> None:
        """Make the move, and do what it says."""
        took = move(entry.state, event)
        entry.state = took.state
        match took.action:
            case Action.START:
                pass  # in line
            case Action.HOLD:
                self._held[entry] = None
            case Action.DELETE:
                self._ledger.remember(entry.message.id)
                self._settlement.settle(entry, PROCESSED)
            case Action.RELEASE:
                self._note_dead_letter(entry)
                self._settlement.settle(entry, RELEASED)
            case Action.SHARE:
                assert first is not None
                fate = (first.fate or RELEASED).of_a_copy(trio.current_time())
                if fate.allows_work(trio.current_time()):
                    self._note_dead_letter(entry)
                self._settlement.settle(entry, fate)
            case Action.FAIL:
                self._ledger.end(entry, Outcome.FAILED)
            case Action.LOSE:
                self._ledger.lose(entry, "its receive took longer than its lease")
            case Action.WAIT | Action.NONE:
                pass
        if entry.message.group_id is None or not self._fifo:
            starts = took.action is Action.START
        else:
            starts = took.in_line and self.mode is not Mode.CLOSING
        if starts:
            self._tasks.start(entry)

    def _note_dead_letter(self, entry: Entry) -> None:
        """Given back after its last receive, because it landed when the drain's time for work was over, or when all was quiet,
        or behind what goes back too: the report names it."""
        if not had_last_receive(self._policy, entry.message):
            return
        if self.is_quiet:
            log.warning(
                "a message landed in its last receive and goes back, for quiet was asked for: the next receive moves it to the "
                "dead-letter queue",
                message_id=entry.message.id,
            )
            if self._tally.running:
                self._tally.note(last_receives_returned=[entry])
        elif self._tally.running:
            self._tally.note(next_receive_dead_letters=[entry])


def _standing(first: Entry | None) -> First:
    if first is None:
        return First.NONE
    if first.fate == PROCESSED:
        return First.DONE
    return First.GOES_BACK if first.fate == RELEASED else First.UNDECIDED
