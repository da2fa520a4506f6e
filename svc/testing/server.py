"""The server behind a simulated queue: its messages and what SQS does with them, each step at one instant of Trio's
time.

Synchronous throughout: no network, no waiting, no faults (`queue.py` has those). The texts and codes of
refusals are those that AWS uses. Where AWS's documentation leaves it open what happens, probabilities decide
(`Chances`).
"""

import dataclasses
import hashlib
import heapq
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import trio

from svc.consumer.queue import MAX_BATCH, MAX_VISIBILITY, Received, Refusal
from svc.processors import received_message
from svc.sqs import wire
from svc.testing import refusals
from svc.testing.attempts import NOT_VALID, Attempts
from svc.testing.faults import Call, Fault
from svc.testing.history import (
    Assigned,
    AssignedAgain,
    DeadLettered,
    Deduplicated,
    Deleted,
    DeleteIgnored,
    Event,
    Refused,
    Sent,
    Suspended,
    VisibilityChanged,
)
from svc.testing.stored import DEDUPLICATION_SECONDS, Chances, Stored, in_order, moment, values


class Server:
    """One queue at the server. For the arguments see `SimulatedQueue`."""

    fifo: bool

    def __init__(
        self,
        name: str,
        *,
        fifo: bool,
        content_deduplication: bool,
        dead_letters: "Server | None",
        max_receive_count: int | None,
        delay: float,
        chances: Chances,
        in_flight_limit: int,
        max_message_bytes: int,
        rng: random.Random,
        history: list[Event],
    ) -> None:
        if (dead_letters is None) != (max_receive_count is None):
            raise ValueError("a redrive policy is both: dead_letters and max_receive_count")
        if dead_letters is not None and dead_letters.fifo != fifo:
            raise ValueError("a FIFO queue's dead-letter queue is a FIFO queue, and a standard queue's a standard one")
        if fifo and chances != Chances():
            raise ValueError("a FIFO queue neither duplicates, resurrects, misorders nor overlooks messages")
        self.name = name
        self.fifo = fifo
        self.dead_letters = dead_letters
        self.history = history
        self.deleted: dict[str, Stored] = {}
        self.changed = trio.Event()
        """Replaced, and the old one set, whenever a long poll has reason to look again."""
        self._content_deduplication = content_deduplication
        self._limit_receives = max_receive_count
        self._delay = delay
        self._chances = chances
        self._in_flight_limit = in_flight_limit
        self._max_message_bytes = max_message_bytes
        self._rng = rng
        # A message that is not deleted is in exactly one of these two; times and ids in `_due`, perhaps outdated, say
        # when it leaves the second. In flight is what is hidden and has a receipt; hidden without one is delayed.
        self._waiting: dict[str, Stored] = {}
        self._hidden: dict[str, Stored] = {}
        self._due: list[tuple[float, str]] = []
        self._copies: dict[str, Stored] = {}  # in flight, and will be delivered once more all the same
        self._receipts: dict[str, str] = {}
        self._deduplicated: dict[str, tuple[float, str]] = {}
        self._sequence = 0
        self._attempts = Attempts()

    def visible(self) -> list[str]:
        self._wake()
        return [stored.id for stored in in_order(self._waiting)]

    def in_flight(self) -> list[str]:
        self._wake()
        return [stored.id for stored in in_order(self._hidden) if stored.receipt is not None]

    def delayed(self) -> list[str]:
        self._wake()
        return [stored.id for stored in in_order(self._hidden) if stored.receipt is None]

    def stranded(self) -> list[str]:
        self._wake()
        return [stored.id for stored in in_order(self._hidden) if stored.lost_answer]

    def bodies(self) -> list[str]:
        return [stored.body for stored in in_order({**self._waiting, **self._hidden})]

    def known(self, message_id: str) -> Stored:
        """A message, which may be deleted. Raises KeyError."""
        for place in (self._hidden, self._waiting, self.deleted):
            if message_id in place:
                return place[message_id]
        raise KeyError(f"queue {self.name} knows no message {message_id!r}")

    def answer_lost(self, deliveries: Sequence[Received]) -> None:
        """Remember that these deliveries never reached a client."""
        for delivery in deliveries:
            stored = self._hidden.get(delivery.message.id)
            if stored is not None and stored.receipt == delivery.receipt:
                stored.lost_answer = True

    def take(self, call: Call, limit: int, visibility: int, *, short: bool) -> list[Received]:
        self._wake()
        if call.attempt is not None and call.attempt in self._attempts:
            return self._repeat(call, visibility)
        room = self._in_flight_limit - sum(stored.receipt is not None for stored in self._hidden.values())
        if room <= 0:
            if self.fifo:
                return []  # "If you reach this limit, Amazon SQS returns no error messages" (ChangeMessageVisibility)
            raise wire.service_error(call.kind, "OverLimit", "Too many messages in flight.", 403)
        taken: list[Received] = []
        for stored in self._candidates(short):
            if len(taken) == min(limit, room):
                break
            if self.dead_letters is not None and stored.receives >= (self._limit_receives or 0):
                self._redrive(call, stored, self.dead_letters)
            else:
                taken.append(self._assign(call, stored, visibility))
        if call.attempt is not None and taken:
            self._attempts.put(call.attempt, taken)
        return taken

    def _repeat(self, call: Call, visibility: int) -> list[Received]:
        """The same messages by the same receipts, for a receive that is asked for again. While the first has brought nothing it
        is a receive like any other beside it, which waits on: AWS does not say what it does then."""
        assert call.attempt is not None
        deliveries = self._attempts.get(call.attempt) or ()
        held = [self._hidden.get(delivery.message.id) for delivery in deliveries]
        again = [
            stored for stored, one in zip(held, deliveries, strict=True) if stored and stored.receipt == one.receipt
        ]
        if not deliveries or len(again) < len(deliveries):
            raise wire.service_error(call.kind, "InvalidParameterValue", NOT_VALID.format(call.attempt), 400)
        now = trio.current_time()
        for stored, delivery in zip(again, deliveries, strict=True):
            stored.lost_answer = False
            self._hide_until(stored, now + visibility)
            self.history.append(AssignedAgain(now, call.number, stored.id, delivery.receipt, stored.hidden_until))
        return list(deliveries)

    def _candidates(self, short: bool) -> list[Stored]:
        if self.fifo:
            locked = {stored.group_id for stored in self._hidden.values() if stored.receipt is not None}
            return [stored for stored in in_order(self._waiting) if stored.group_id not in locked]
        found = [*self._waiting.values(), *self._copies.values()]
        if short and self._chances.miss:
            found = [stored for stored in found if self._rng.random() >= self._chances.miss]
        if self._chances.disorder and self._rng.random() < self._chances.disorder:
            self._rng.shuffle(found)
        return found

    def _assign(self, call: Call, stored: Stored, visibility: int) -> Received:
        now = trio.current_time()
        stored.receives += 1
        stored.receipt = f"{stored.id}#{stored.receives}"
        stored.received_at = now
        stored.first_received_at = stored.first_received_at or moment(now)
        stored.lost_answer = False
        self._receipts[stored.receipt] = stored.id
        self._waiting.pop(stored.id, None)
        self._copies.pop(stored.id, None)
        self._hide_until(stored, now + visibility)
        if self._chances.duplicate and self._rng.random() < self._chances.duplicate:
            self._copies[stored.id] = stored
            self._ring()
        until = stored.hidden_until
        self.history.append(Assigned(now, call.number, stored.id, stored.receipt, stored.receives, until))
        message = received_message(
            id=stored.id,
            body=stored.body,
            attributes=MappingProxyType(values(stored.native)),
            receive_count=stored.receives,
            sent_at=stored.sent_at,
            group_id=stored.group_id,
            packed_system=stored.system(),
        )
        return Received(message, stored.receipt, stored.native)

    def _redrive(self, call: Call, stored: Stored, target: "Server") -> None:
        self._forget(stored)
        # It keeps its id, its age and its receive count, which counts "across all queues" (API reference,
        # ReceiveMessage).
        target._sequence += 1
        moved = dataclasses.replace(
            stored, receipt=None, hidden_until=-math.inf, sequence=target._sequence, moved_from=self.arn
        )
        target._waiting[stored.id] = moved
        target._ring()
        self.history.append(DeadLettered(trio.current_time(), call.number, stored.id, stored.id, None))

    def each(
        self, call: Call, fault: Fault | None, receipts: tuple[str, ...], one: Callable[[str], Refusal | None]
    ) -> dict[str, Refusal]:
        if not receipts:
            raise wire.service_error(call.kind, "EmptyBatchRequest", "The batch request holds no entries.", 400)
        if len(receipts) > MAX_BATCH:
            text = f"Maximum number of entries per request are {MAX_BATCH}. You have sent {len(receipts)}."
            raise wire.service_error(call.kind, "TooManyEntriesInBatchRequest", text, 400)
        what, hit = (fault.what, fault.entries) if fault is not None else ("", ())
        self._wake()
        refused = {}
        for position, receipt in enumerate(receipts):
            here = what if position in hit else ""
            if here == "partial":
                why: Refusal | None = wire.refusal("InternalError", "An internal error occurred.")
            else:
                why = one(receipt) if here != "unnamed" else None
            if here in ("unnamed", "unnamed-after"):
                refused[receipt] = refusals.UNNAMED
            elif why is not None:
                refused[receipt] = why
                self.history.append(Refused(trio.current_time(), call.number, receipt, why.code))
        return refused

    def delete(self, call: Call, receipt: str) -> Refusal | None:
        message_id = self._receipts.get(receipt)
        if message_id is None:
            return refusals.unknown_handle()
        now = trio.current_time()
        stored = self._hidden.get(message_id) or self._waiting.get(message_id)
        current = stored is not None and stored.receipt == receipt
        if self.fifo and stored is not None and not (current and message_id in self._hidden):
            # FIFO queues refuse the handle as soon as the lease is over (aws-sdk-js#1279 and #1750, localstack#12442).
            return refusals.bad_handle("The receipt handle has expired.")
        if stored is None or not current:
            # "If you use an old ReceiptHandle, the request will succeed, but the message might not be deleted"
            # (API reference, DeleteMessage). One that is deleted already is deleted again.
            self.history.append(DeleteIgnored(now, call.number, message_id, receipt))
            return None
        self._forget(stored)
        self._attempts.changed(receipt)
        self.deleted[message_id] = stored
        self.history.append(Deleted(now, call.number, message_id, receipt))
        if self._chances.resurrect and self._rng.random() < self._chances.resurrect:
            # "it is possible to receive a message even after you delete it" (API reference, DeleteMessage)
            self._waiting[message_id] = stored
        self._ring()
        return None

    def hide(self, call: Call, receipt: str, timeout: int) -> Refusal | None:
        now = trio.current_time()
        message_id = self._receipts.get(receipt)
        if message_id is None:
            return refusals.unknown_handle()
        stored = self._hidden.get(message_id) or self._waiting.get(message_id)
        if stored is None or stored.receipt != receipt:
            return refusals.bad_handle("Message does not exist or is not available for visibility timeout change.")
        if message_id in self._waiting:
            return wire.refusal("MessageNotInflight", "The specified message isn't in flight.")
        if not 0 <= timeout <= MAX_VISIBILITY:
            return refusals.bad_timeout(timeout, f"Must be between 0 and {MAX_VISIBILITY}.")
        if now + timeout > stored.received_at + MAX_VISIBILITY:
            return refusals.bad_timeout(
                timeout, f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY} seconds]"
            )
        self._hide_until(stored, now + timeout)
        self._attempts.changed(receipt)
        self.history.append(VisibilityChanged(now, call.number, message_id, receipt, now + timeout))
        self._ring()
        return None

    def attributes(self) -> dict[str, str]:
        found = {
            "QueueArn": self.arn,
            "ApproximateNumberOfMessages": str(len(self.visible())),
            "ApproximateNumberOfMessagesNotVisible": str(len(self.in_flight())),
            "ApproximateNumberOfMessagesDelayed": str(len(self.delayed())),
            "DelaySeconds": f"{self._delay:g}",
            "MaximumMessageSize": str(self._max_message_bytes),
        }
        if self.dead_letters is not None:
            policy = {"deadLetterTargetArn": self.dead_letters.arn, "maxReceiveCount": self._limit_receives}
            found["RedrivePolicy"] = json.dumps(policy)
        if self.fifo:
            found |= {"FifoQueue": "true", "ContentBasedDeduplication": str(self._content_deduplication).lower()}
        return found

    @property
    def arn(self) -> str:
        return f"arn:aws:sqs:us-east-1:000000000000:{self.name}{'.fifo' if self.fifo else ''}"

    def check(
        self,
        body: str,
        native: Mapping[str, Any],
        delay: float | None,
        group_id: str | None,
        deduplication_id: str | None,
    ) -> None:
        """Raise `MessageRefused` for a message that this queue does not take."""
        wire.check(body, native, delay)
        if wire.size(body, native) > self._max_message_bytes:
            raise refusals.too_long(self._max_message_bytes)
        deduplicated = deduplication_id is not None or self._content_deduplication
        refusals.check_fifo(self.fifo, delay, group_id, deduplication_id, deduplicated=deduplicated)

    def store(
        self,
        call: int,
        body: str,
        native: Mapping[str, Any],
        delay: float | None,
        group_id: str | None,
        deduplication_id: str | None,
    ) -> str:
        now = trio.current_time()
        if self.fifo:
            key = deduplication_id or hashlib.sha256(body.encode()).hexdigest()
            sent_at, message_id = self._deduplicated.get(key, (-math.inf, ""))
            if now < sent_at + DEDUPLICATION_SECONDS:
                self.history.append(Deduplicated(now, call, message_id))
                return message_id
        self._sequence += 1
        message_id = f"{self.name}-{self._sequence}"
        stored = Stored(message_id, body, dict(native), group_id, moment(now), self._sequence)
        self.history.append(Sent(now, call, message_id, body, group_id))
        if self.fifo:
            stored.deduplication_id = key
            self._deduplicated[key] = (now, message_id)
        seconds = self._delay if delay is None else delay
        if seconds:
            self._hide_until(stored, now + seconds)
        else:
            self._waiting[message_id] = stored
        self._ring()
        return message_id

    def _hide_until(self, stored: Stored, when: float) -> None:
        stored.hidden_until = when
        self._hidden[stored.id] = stored
        heapq.heappush(self._due, (when, stored.id))

    def _forget(self, stored: Stored) -> None:
        for place in (self._hidden, self._waiting, self._copies):
            place.pop(stored.id, None)
        stored.lost_answer = False

    def _wake(self) -> None:
        """Make visible what is due by now."""
        now = trio.current_time()
        while self._due and self._due[0][0] <= now:
            when, message_id = heapq.heappop(self._due)
            stored = self._hidden.get(message_id)
            if stored is not None and stored.hidden_until == when:
                del self._hidden[message_id]
                self._copies.pop(message_id, None)
                stored.lost_answer = False
                self._waiting[message_id] = stored

    def go_on_alone(self, seconds: float) -> None:
        """Time goes on here, and not for those who have slept."""
        for stored in {id(stored): stored for stored in (*self._waiting.values(), *self._hidden.values())}.values():
            stored.hidden_until -= seconds
            stored.received_at -= seconds
        self._due = [(when - seconds, message_id) for when, message_id in self._due]  # still a heap
        self._deduplicated = {key: (sent_at - seconds, id_) for key, (sent_at, id_) in self._deduplicated.items()}
        self.history.append(Suspended(trio.current_time(), 0, seconds))
        self._ring()

    def next_due(self) -> float:
        """When the next hidden message becomes visible."""
        while self._due:
            when, message_id = self._due[0]
            stored = self._hidden.get(message_id)
            if stored is not None and stored.hidden_until == when:
                return when
            heapq.heappop(self._due)
        return math.inf

    def _ring(self) -> None:
        """Make every long poll look again."""
        self.changed.set()
        self.changed = trio.Event()
