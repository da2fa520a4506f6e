"""The tasks of a processor of batches: messages are gathered, and the processor is called with several at once.

Gathering keeps the promises that are made for single messages. What cannot be read ends alone. Each message is extended from its
receive on, while it waits too. What a batch has begun with is finished by a drain, and what has not begun is given back. A lease
that is lost marks its item; only when all of them are lost is the work cancelled. However a batch ends, each of its messages has
a fate of its own afterwards.

On a FIFO queue a group has a task that keeps its order, as in `tasks.py`, and hands over what is next of it as one portion. When
the processor has ended, the group is settled in its order, up to the first message that is not simply done; the rest follows
when that one has left the queue, and else goes back. What becomes of one group is nothing to the others.

Which portions leave together, and when, is decided in `gathering.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import structlog
import trio

from svc.consumer.fates import Fates
from svc.consumer.gathering import Gathering, Leaving, Portion
from svc.consumer.group_line import Line
from svc.consumer.ledger import PROCESSED, RELEASED, Entry, Ledger
from svc.consumer.observer import Observer
from svc.consumer.running import close_what_was_left_open
from svc.consumer.settlement import Settlement
from svc.defects import Defects, its_own
from svc.processors import UNMARKED, Batch, Batching, Item, Threads
from svc.wakeup import WakeUp


class Order(Protocol):
    """Who keeps the order of FIFO groups: `tasks.py`."""

    async def end_of_earlier(self, entry: Entry) -> None: ...

    async def end_of(self, entry: Entry) -> None: ...

    async def wait_for_receives(self, group: str) -> None: ...


Result = tuple[BaseException | None, bool]
"""What the processor did with one message: the error, if there was one, and whether it was cancelled by us."""

DONE: Result = (None, False)


class Batches:
    def __init__(
        self,
        batching: Batching,
        ledger: Ledger,
        settlement: Settlement,
        fates: Fates,
        running: dict[Entry, None],
        *,
        places: int,
        observer: Observer,
        defects: Defects,
        threads: Threads,
        restart: Callable[[Entry], None],
    ) -> None:
        """`running`: calls of the processor that have not ended. `places`: how many messages may be in flight. `restart` starts
        one that waited for the end of a call, which may have left a thread behind."""
        self._batching = batching
        self._ledger = ledger
        self._settlement = settlement
        self._fates = fates
        self._running = running
        self._places = places
        self._observer = observer
        self._defects = defects
        self._threads = threads
        self._restart = restart
        self._wake_up = WakeUp()
        self._gathering = Gathering(size=batching.size, linger=batching.linger)
        self._items: dict[Entry, Item[Any]] = {}
        """Of what is gathered, or at work."""
        self._results: dict[Entry, Result] = {}
        """Known already, of messages of FIFO groups whose turn to be settled has not come."""
        self._calls: dict[trio.CancelScope, Sequence[Entry]] = {}
        self._behind: dict[str, list[Entry]] = {}
        """By the ids of the messages at work: later deliveries of those that were lost, which wait for the end of the call."""
        self._is_over = False

    def flush(self, flushing: bool) -> None:
        """A drain begins: what has gathered leaves at once, and what comes later does not linger; or it is over."""
        self._gathering.flushing = flushing
        self._wake_up.notify()

    def look_again(self, entry: Entry) -> None:
        """This one has a fate, or has ended."""
        if entry in self._items:
            self._gathering.look_again()
            self._wake_up.notify()

    def lost(self, entry: Entry) -> None:
        """Its lease was lost while the processor is at work on its batch."""
        if entry.scope in self._calls:
            self._items[entry].lost = True
            if all(one.ended is not None for one in self._calls[entry.scope]):
                entry.scope.cancel(reason="all leases lost")

    async def run(self, nursery: trio.Nursery) -> None:
        """Call the processor in tasks of this nursery. Ends only by cancellation."""
        try:
            while True:
                await self._wake_up.wait(lambda: self._look(nursery))
        finally:
            self._is_over = True
            waiting = [Portion([entry]) for behind in self._behind.values() for entry in behind]
            for portion in (*self._gathering.take_all(), *waiting):
                self._let_go(portion)

    def _look(self, nursery: trio.Nursery) -> float:
        """Call the processor with what has a reason to leave; returns when to look again."""
        company = self._ledger.undecided < self._places
        leaving, gone, next_look = self._gathering.take(trio.current_time(), company=company)
        for portion in gone:
            self._let_go(portion)
        for batch in leaving:
            nursery.start_soon(self._work_on, batch)
        return next_look

    def _let_go(self, portion: Portion) -> None:
        """The processor has ended, or will not be called with it. What has no result by then goes back."""
        for entry in portion.entries:
            self._items.pop(entry, None)
            if portion.ran is None:
                self._results.pop(entry, None)  # nobody waits for its turn any more
            if entry.is_undecided and entry not in self._results:
                self._settlement.settle(entry, RELEASED)
        if portion.ran is not None:
            portion.ran.set()

    # -- before the processor is called --

    def start(self, entry: Entry) -> None:
        """Let it wait for company. Does not wait."""
        if not entry.is_undecided:
            return
        if entry.message.id in self._behind:
            self._behind[entry.message.id].append(entry)
        elif self._may_be_called_with(entry):
            self._put(Portion((entry,)))
        else:
            self._conclude(entry, self._results.pop(entry))

    def _put(self, portion: Portion) -> None:
        if self._is_over:  # it landed in this very moment
            self._let_go(portion)
            return
        self._gathering.put(portion, trio.current_time())
        self._wake_up.notify()

    def _may_be_called_with(self, entry: Entry) -> bool:
        """Whether it may enter a batch. Then it has an item, else its result: it cannot be read, holds nothing to be processed,
        or was finished before."""
        if entry in self._results:
            return False
        if self._ledger.is_finished(entry.message.id):
            # While it waited, an earlier delivery was finished, by a processor that ignored that its lease was lost.
            self._results[entry] = DONE
            return False
        try:
            item = self._batching.read(entry.message)
        except BaseException as raised:  # a validator of the user's may raise anything
            self._results[entry] = (raised, False)
            return False
        if item is None:
            self._results[entry] = DONE
            return False
        self._items[entry] = item
        return True

    async def work_on_group(self, group: str, line: Line, order: Order) -> None:
        """Portion after portion of a FIFO group. Those that are done with are taken from the line. What is not finished lets none
        of its successors pass: whoever calls this gives back what is left then."""
        while line:
            await order.end_of_earlier(line.first)
            portion = self._portion(line)
            if portion.entries:
                await self._ran(portion)
            for entry in portion.entries or (line.first,):
                if entry in self._results:
                    self._conclude(entry, self._results.pop(entry))
                await order.end_of(entry)
                if not line.next_may_follow():
                    await order.wait_for_receives(group)
                    return

    def _portion(self, line: Iterable[Entry]) -> Portion:
        """What may go together, from the front of the line."""
        entries: list[Entry] = []
        for entry in line:
            first = self._ledger.at_work_on(entry.message.id)
            if len(entries) == self._batching.size or not entry.is_undecided or first not in (None, entry):
                break  # decided, or a copy: when its turn comes
            if entries and self._threads.at_work_on(entry.message.id) is not None:
                break
            if not self._may_be_called_with(entry):
                break
            entries.append(entry)
        return Portion(entries)

    async def _ran(self, portion: Portion) -> None:
        portion.ran = trio.Event()
        self._put(portion)
        try:
            await portion.ran.wait()
        except trio.Cancelled:
            portion.ran = (
                None  # nobody settles it in its order: the processor, which may be at work, is waited for elsewhere
            )
            raise

    def give_back(self, entry: Entry) -> None:
        """The task of its group has ended, and has left it."""
        self._results.pop(entry, None)
        if entry.is_undecided and entry not in self._items:
            self._settlement.settle(entry, RELEASED)

    # -- the call --

    def _lose_late(self, batch: Leaving) -> None:
        """The process stood still (another processor has blocked it), and the heartbeat's turn comes after this."""
        for entry in [entry for portion in batch.portions for entry in portion.undecided()]:
            if entry.lease.until <= trio.current_time():
                self._ledger.lose(entry, "its lease ran out before its turn came")

    async def _work_on(self, batch: Leaving) -> None:
        self._lose_late(batch)
        scope = trio.CancelScope()
        parts = [(portion, portion.undecided()) for portion in batch.portions]
        self._calls[scope] = entries = [entry for _, part in parts for entry in part]
        for entry in entries:
            entry.scope = scope
            self._behind[entry.message.id] = []
        error: BaseException | None = None
        result: Result = (None, True)  # when the whole worker is cancelled
        try:
            try:
                with scope:
                    if entries:
                        await self._run_processor(entries, batch)
            except BaseException as raised:  # as for single messages
                error = its_own(raised)
            result = (error, scope.cancelled_caught)
        finally:
            # From the processor's end to here there is no checkpoint: what is finished cannot be released by a cancellation.
            for _, part in parts:
                self._settle(part, result)
            del self._calls[scope]
            for portion in batch.portions:
                self._let_go(portion)
            for entry in entries:
                for later in self._behind.pop(entry.message.id, ()):
                    self._restart(later)

    async def _run_processor(self, entries: Sequence[Entry], batch: Leaving) -> None:
        now = trio.current_time()
        for entry in entries:
            entry.began_at = now
            self._running[entry] = None
        ended: BaseException | None = None
        try:
            self._observer.batch_begins(len(entries), batch.reason)
            for entry in reversed(entries):  # the first one's trace is the one that the processor finds
                self._observer.begins(entry)
            await self._batching.call(Batch([self._items[entry] for entry in entries]))
            close_what_was_left_open()
        except BaseException as error:
            ended = error
            close_what_was_left_open(error)
            raise
        finally:
            now = trio.current_time()
            for entry in entries:
                entry.worked_until = now
                del self._running[entry]
                self._observer.worked(entry, self._result(entry, (ended, False))[0])
            if not all(entry.is_undecided for entry in entries):  # nothing that follows tells who waits for its end
                self._ledger.changed.notify()

    def _result(self, entry: Entry, of_the_call: Result) -> Result:
        mark = self._items[entry].mark
        return of_the_call if mark is UNMARKED else (mark, False)  # type: ignore[return-value]

    def _settle(self, part: Sequence[Entry], of_the_call: Result) -> None:
        """Decide what is done with each, up to the first that is not simply done: it has to leave the queue before those of its
        group that come after it. On a standard queue there is one of each."""
        waits, done = False, True
        for entry in part:
            result = self._result(entry, of_the_call)
            if waits:
                if done or entry.is_undecided:  # else it was given back, behind one that will come again before it
                    self._results[entry] = result
                entry.scope = None  # nothing of it is at work
            else:
                self._conclude(entry, result)
                waits = entry.fate != PROCESSED
            done = done and result == DONE

    def _conclude(self, entry: Entry, result: Result) -> None:
        error, cancelled = result
        try:
            if error is None:
                self._fates.conclude(entry, None, cancelled=cancelled)
            else:
                with structlog.contextvars.bound_contextvars(message_id=entry.message.id):  # for what is logged of it
                    self._fates.conclude(entry, error, cancelled=cancelled)
        except Exception as defect:
            self._defects.note("message", defect)
            if entry.is_undecided:
                self._fates.fail(entry, defect)
