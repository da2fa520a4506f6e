"""What a simulated FIFO queue remembers of receives, so that they can be asked for again by their attempt id."""

from collections.abc import Sequence

import trio

from svc.consumer.queue import Received

REMEMBERED = 300.0
"""Seconds (API reference, ReceiveMessage, ReceiveRequestAttemptId)."""

NOT_VALID = (
    "Value {} for parameter ReceiveRequestAttemptId is invalid. Reason: The receiveRequestAttemptId is not valid anymore since "
    "the receive call is not retryable."
)
"""What AWS says then (amazon-sqs-java-messaging-lib, issue 213)."""


class Attempts:
    """Receives that have brought something, by their attempt id."""

    def __init__(self) -> None:
        self._brought: dict[str, tuple[float, Sequence[Received]]] = {}
        self._of: dict[str, str] = {}  # receipt → attempt

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._brought

    def put(self, attempt: str, deliveries: Sequence[Received]) -> None:
        """This is what it has brought, first."""
        self._brought[attempt] = trio.current_time(), deliveries
        self._of.update({delivery.receipt: attempt for delivery in deliveries})

    def changed(self, receipt: str) -> None:
        """It was deleted, or its visibility was changed: its receive cannot be asked for again."""
        if (attempt := self._of.get(receipt)) is not None:
            self._brought[attempt] = float("-inf"), self._brought[attempt][1]

    def get(self, attempt: str) -> Sequence[Received] | None:
        """What it has brought; None when it cannot be asked for again."""
        first_at, deliveries = self._brought[attempt]
        return deliveries if trio.current_time() < first_at + REMEMBERED else None
