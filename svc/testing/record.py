"""What a simulated service writes down while it works: the processor's runs, and how each delivery ended, with Trio times."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import trio

from svc.consumer.ledger import Entry, Ledger, Listener
from svc.processors import UNMARKED, AnyProcess, Batch, Batching, Message, Reject, Retry
from svc.testing import history as happened
from svc.testing.timeline import short

What = Literal[
    "sent",
    "received",
    "began",
    "ended",
    "processed",
    "failed",
    "released",
    "rejected",
    "lost",
    "deleted",
    "dead-lettered",
]
"""What happens to a message, for `SimulatedService.when`: `began` and `ended` are its processor's, `processed` to `lost` the
outcomes that the service counts, the others what the queue did."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the processor."""

    message_id: str
    body: str
    group_id: str | None
    began: float
    """Trio time."""
    ended: float
    """Trio time."""
    error: BaseException | None
    """What ended it: None for success, `trio.Cancelled` for a cancellation."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One call of a processor of batches."""

    bodies: tuple[str, ...]
    """Of its messages, in their order."""
    began: float
    """Trio time."""
    ended: float
    """Trio time."""
    error: BaseException | None
    """What ended it, whatever was marked: None when it returned, `trio.Cancelled` for a cancellation."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How one delivery of a message ended for this instance."""

    at: float
    """Trio time."""
    message_id: str
    body: str
    outcome: str
    """processed, failed, released, rejected or lost (`svc.consumer.ledger.Outcome`)."""


class Record:
    """Filled by what `recorded` and `listen` are put around. `note` writes a line for the timeline."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self.runs: list[Run] = []
        """The processor's finished runs, in the order of their ends."""
        self.batches: list[BatchRun] = []
        """Its calls with batches; each message of them has a run as well."""
        self.running: dict[str, float] = {}
        """Messages in the processor's hands now: id → Trio time of the start."""
        self.endings: list[Ending] = []
        """How the deliveries ended, in order."""
        self.messages: dict[str, Message] = {}
        self._began: list[tuple[float, str]] = []

    def recorded(self, process: AnyProcess) -> AnyProcess:
        """The processor, with every run of it written down."""
        if isinstance(process, Batching):
            return replace(process, call=self._recorded_batches(process.call))

        async def run(message: Message) -> None:
            self._begins(message)
            error: BaseException | None = None
            try:
                await process(message)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._ends(message, error)

        run.__wrapped__ = process  # type: ignore[attr-defined]  # as functools.wraps does: for processors.threads_of()
        return run

    def _recorded_batches(
        self, call: Callable[[Batch[Any]], Awaitable[None]]
    ) -> Callable[[Batch[Any]], Awaitable[None]]:
        async def run(batch: Batch[Any]) -> None:
            began, error = trio.current_time(), None
            self._note(f"processor begins a batch of {len(batch)}")
            for item in batch:
                self._begins(item.message)
            try:
                await call(batch)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self._note(f"processor ends a batch of {len(batch)}: {how(error)}")
                for item in batch:
                    self._ends(item.message, error if item.mark is UNMARKED else item.mark)  # type: ignore[arg-type]
                bodies = tuple(item.message.raw for item in batch)
                self.batches.append(BatchRun(bodies, began, trio.current_time(), error))

        run.__wrapped__ = call  # type: ignore[attr-defined]
        return run

    def _begins(self, message: Message) -> None:
        now = trio.current_time()
        self.running[message.id] = now
        self.messages[message.id] = message
        self._began.append((now, message.id))
        self._note(f"processor begins {message.id} {short(message.raw)}")

    def _ends(self, message: Message, error: BaseException | None) -> None:
        began, now = self.running.pop(message.id, trio.current_time()), trio.current_time()
        self.runs.append(Run(message.id, message.raw, message.group_id, began, now, error))
        self._note(f"processor ends {message.id} {short(message.raw)}: {how(error)}")

    def listen(self, ledger: Ledger, *, is_dead: Callable[[], bool]) -> None:
        """Be told of every delivery's end, before the worker is."""
        ledger.listen(_Endings(self._ended, is_dead), first=True)

    def _ended(self, entry: Entry) -> None:
        assert entry.ended is not None
        message = entry.message
        self.endings.append(Ending(trio.current_time(), message.id, message.body, entry.ended.value))
        self._note(f"{entry.ended.value}: {message.id} {short(message.body)}")

    def times(self, history: Sequence[happened.Event], message_id: str, what: What) -> list[float]:
        """When this happened to the message: Trio times, in order."""
        match what:
            case "began":
                return [at for at, begun in self._began if begun == message_id]
            case "ended":
                return [run.ended for run in self.runs if run.message_id == message_id]
            case "received":
                return [e.at for e in history if isinstance(e, happened.ReceiveLanded) and message_id in e.message_ids]
            case "sent":
                return [e.at for e in history if isinstance(e, happened.Sent) and e.message_id == message_id]
            case "deleted":
                return [e.at for e in history if isinstance(e, happened.Deleted) and e.message_id == message_id]
            case "dead-lettered":
                return [e.at for e in history if isinstance(e, happened.DeadLettered) and e.message_id == message_id]
            case _:
                return [e.at for e in self.endings if e.message_id == message_id and e.outcome == what]


def how(error: BaseException | None) -> str:
    match error:
        case None:
            return "returned"
        case trio.Cancelled():
            return "cancelled"
        case Retry():
            return f"Retry after {error.after:g} s"
        case Reject():
            return f"Reject: {error.reason}"
        case _:
            return f"{type(error).__name__}: {error}"


class _Endings(Listener):
    """Notes how deliveries end, as long as the process lives."""

    def __init__(self, note: Callable[[Entry], None], is_dead: Callable[[], bool]) -> None:
        self._note = note
        self._is_dead = is_dead

    def ended(self, entry: Entry) -> None:
        if not self._is_dead():
            self._note(entry)
