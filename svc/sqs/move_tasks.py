"""SQS's own way to move dead letters: a task of AWS's that runs there, and is asked how far it is.

It moves everything, keeps `RejectReason`, and goes on when nobody watches. Emulators may not have it. The destination is always
named: what `Reject` has put into the dead-letter queue did not come by its redrive policy, and AWS does not know where from.

One call each; what comes back is read here, at the border. Never loops.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svc.settings import printable
from svc.sqs import answers
from svc.sqs.calls import Call, ask

RUNNING = frozenset({"RUNNING", "CANCELLING"})


@dataclass(frozen=True, slots=True)
class MoveTask:
    """What SQS says of a task; figures are approximate, as it says itself."""

    status: str
    """RUNNING, COMPLETED, CANCELLING, CANCELLED or FAILED."""
    moved: int
    total: int | None
    """To be moved when it began; None until SQS has counted."""
    failure: str | None
    started: float
    """As SQS tells it: Unix time in milliseconds; 0 where it does not."""

    @property
    def is_running(self) -> bool:
        return self.status in RUNNING


class MoveTasks:
    """Of one dead-letter queue. Methods raise `QueueError`."""

    def __init__(self, call: Call, source: str, destination: str) -> None:
        """`source`, `destination`: the ARNs of the dead-letter queue and of the queue."""
        self._call = call
        self._source = source
        self._destination = destination

    async def start(self, per_second: int | None = None) -> str:
        """Start one; returns its handle. `per_second`: messages, 1-500; None: as fast as AWS can. Raises `QueueError` when one
        runs already."""
        doing = "starting a move task"
        rate: dict[str, Any] = {} if per_second is None else {"MaxNumberOfMessagesPerSecond": per_second}
        answer = await ask(
            self._call,
            doing,
            "start_message_move_task",
            SourceArn=self._source,
            DestinationArn=self._destination,
            **rate,
        )
        handle = answer.get("TaskHandle")
        if not isinstance(handle, str) or not handle:
            raise answers.not_sqs(doing, "it has no TaskHandle")
        return handle

    async def last(self) -> MoveTask | None:
        """The one that began last."""
        doing = "asking for the move tasks"
        answer = await ask(self._call, doing, "list_message_move_tasks", SourceArn=self._source, MaxResults=10)
        _hold_to(doing, answer, "Results")
        found = [_task(entry) for entry in answers.listed(doing, answer, "Results") if isinstance(entry, Mapping)]
        return max(found, key=lambda task: task.started, default=None)

    async def stop(self, handle: str) -> None:
        """Let it stop where it is: what it has moved stays moved."""
        doing = "cancelling the move task"
        answer = await ask(self._call, doing, "cancel_message_move_task", TaskHandle=handle)
        _hold_to(doing, answer, "ApproximateNumberOfMessagesMoved")


def _hold_to(doing: str, answer: Mapping[str, Any], field: str) -> None:
    """An answer that holds something else and not this is not SQS's; what is 0 or empty may be left out."""
    if field not in answer and answer.keys() - answers.OF_ANY_ANSWER:
        raise answers.not_sqs(doing, f"it has no {field}")


def _task(entry: Mapping[str, Any]) -> MoveTask:
    status, failure = entry.get("Status"), entry.get("FailureReason")
    started = entry.get("StartedTimestamp")
    return MoveTask(
        printable(status)[:40] if isinstance(status, str) and status else "UNKNOWN",
        answers.whole(entry.get("ApproximateNumberOfMessagesMoved")) or 0,
        answers.whole(entry.get("ApproximateNumberOfMessagesToMove")),
        printable(failure)[:300] if isinstance(failure, str) and failure else None,
        float(answers.whole(started) or 0),
    )
