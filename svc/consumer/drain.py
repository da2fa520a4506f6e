"""The worker's drain report: what was there when the drain began, what became of it, and the sentence when not all went well.

Pure bookkeeping over the ledger's counts; `worker.py` does the draining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import trio

from svc.consumer.ledger import Entry, Ledger
from svc.processors import Threads


@dataclass(frozen=True, slots=True)
class Drain:
    """How a drain of the worker goes, or went."""

    in_flight: int = 0
    """At its begin."""
    receives_outstanding: int = 0
    """At its begin: receives on the wire."""
    receives_brought: int = 0
    """Messages that those brought."""
    receives_unlanded: int = 0
    """Receives on the wire now; at its end, those that still had no answer. What they bring is released when they land."""
    completed: int = 0
    failed: int = 0
    released: int = 0
    rejected: int = 0
    lost: int = 0
    lost_ids: tuple[str, ...] = ()
    timed_out: tuple[str, ...] = ()
    """Ids of the messages whose work was cancelled because the time was over."""
    stubborn: tuple[str, ...] = ()
    """Ids of the messages whose processor goes on although it was cancelled, now or before this drain; they were released all the
    same."""
    threads: Mapping[str, str] = field(default_factory=dict)
    """Of those of them that a plain `def` works on in a thread, which cannot be stopped: message id → thread, at the end."""
    next_receive_dead_letters: tuple[str, ...] = ()
    """Ids of those of them that had their last receive: the queue moves them to the dead-letter queue at the next one."""
    last_receives_returned: tuple[str, ...] = ()
    """Ids of messages that landed in their last receive after the instance had become quiet, and were given back all the same, as
    was asked for: the queue moves them to the dead-letter queue at the next one."""
    unsettled: tuple[str, ...] = ()
    """At its end: ids of the messages whose delete or release the queue has not confirmed. It is tried further."""
    deferred: Mapping[str, float] = field(default_factory=dict)
    """Failed, to be retried later, or lost: message id → seconds from this snapshot until it is visible again, at the latest. The
    soonest hundred."""
    deferred_count: int = 0
    """How many they are in all."""

    def error(self) -> str | None:
        """What was not finished, with the ids of the messages; None when everything was."""
        parts = [
            f"{_messages(ids)} {what}: {', '.join(ids)}"
            for ids, what in (
                (self.timed_out, "unfinished, cancelled and given back"),
                (self.stubborn, "still running after the cancellation"),
                (self.next_receive_dead_letters, "given back after the last receive that the redrive policy grants"),
                (self.unsettled, "not confirmed by the queue"),
                (self.lost_ids, "lost"),
            )
            if ids
        ]
        if self.receives_unlanded:
            parts.append(f"{self.receives_unlanded} receive(s) without an answer; what they bring will be given back")
        return "; ".join(parts) or None


def _messages(ids: Sequence[str]) -> str:
    return "1 message" if len(ids) == 1 else f"{len(ids)} messages"


class DrainTally:
    """Keeps the report of the running drain, and that of the last one."""

    def __init__(self, ledger: Ledger, threads: Threads) -> None:
        self._ledger = ledger
        self._threads = threads
        self._at_begin = ledger.counts()
        self._drain = Drain()
        self._lost: list[str] = []
        self.running = False

    def begin(self, *, receives_outstanding: int) -> None:
        self.running = True
        self._at_begin = self._ledger.counts()
        self._lost = []
        self._drain = Drain(in_flight=len(self._ledger), receives_outstanding=receives_outstanding)

    def note_lost(self, entry: Entry) -> None:
        if self.running:
            self._lost.append(entry.message.id)

    def note(
        self,
        *,
        timed_out: Sequence[Entry] = (),
        stubborn: Sequence[Entry] = (),
        next_receive_dead_letters: Sequence[Entry] = (),
        last_receives_returned: Sequence[Entry] = (),
    ) -> None:
        self._drain = replace(
            self._drain,
            timed_out=self._drain.timed_out + _ids(timed_out),
            stubborn=self._drain.stubborn + _ids(stubborn),
            next_receive_dead_letters=tuple(
                dict.fromkeys(self._drain.next_receive_dead_letters + _ids(next_receive_dead_letters))
            ),
            last_receives_returned=self._drain.last_receives_returned + _ids(last_receives_returned),
        )

    def end(self, *, receives_unlanded: int) -> Drain:
        """The drain is over; what is in flight now is unsettled."""
        if self.running:
            unsettled = _ids(list(self._ledger))
            self._drain = replace(self.so_far(), receives_unlanded=receives_unlanded, unsettled=unsettled)
            self.running = False
        return self._drain

    def so_far(self, *, receives_unlanded: int = 0) -> Drain:
        """The running drain, or the last one."""
        if not self.running:
            return self._drain
        since, now = self._ledger.counts() - self._at_begin, trio.current_time()
        threads = self._threads.left_behind
        return replace(
            self._drain,
            stubborn=tuple(dict.fromkeys([*self._drain.stubborn, *threads])),
            threads=threads,
            completed=since.processed,
            failed=since.failed,
            released=since.released,
            rejected=since.rejected,
            lost=since.lost,
            lost_ids=tuple(self._lost),
            receives_brought=since.received,
            receives_unlanded=receives_unlanded,
            deferred={id_: round(at - now, 3) for id_, at in self._ledger.deferred(now).items()},
            deferred_count=self._ledger.deferred_count(now),
        )


def _ids(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(entry.message.id for entry in entries)
