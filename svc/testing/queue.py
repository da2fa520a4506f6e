"""A queue in memory that behaves as AWS documents SQS, in Trio's time, with every fault one can think of.

Each call has three stages, as a real one has: the request travels, the server acts, the answer travels. The server's
side runs on its own (in a Trio system task), whatever becomes of the client: a receive that is cancelled goes on
waiting at the server and takes messages that nobody will see, a delete that timed out may have deleted. Messages are
assigned *before* the answer travels. What happened stands in `history`, so that a test can check afterwards what may
never happen.

Time is Trio's: use it with `autojump_clock` and a twenty-second poll takes no time at all. There is no wall clock and
no global randomness here: the same `rng`, faults and schedule give the same history. What the simulation says is held
against a real endpoint by `tests/testing/test_queue_contract.py`.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from svc.consumer.queue import MAX_BATCH, MAX_VISIBILITY, DeadLetterQueue, Received, Refusal
from svc.sqs import answers, wire
from svc.sqs.dead_letters import look
from svc.testing.faults import Call, CallKind, Fault, Faults, error_of, fault_for, timed_out
from svc.testing.history import AnswerLost, CallFailed, DeadLettered, Event, ReceiveBegan, ReceiveLanded
from svc.testing.server import Server
from svc.testing.stored import IN_FLIGHT_LIMIT, Chances, values

Latency = tuple[float, float]
"""Seconds, from-to; each journey draws its own."""

_Act = Callable[[Call, Fault | None], Awaitable[Any]]
"""What the server does in one call."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a call ends with: an error, or else a value."""

    value: Any = None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _Exchange:
    """What passes between the client's side of a call and the server's."""

    arrived: trio.Event = field(default_factory=trio.Event)
    answer: _Answer | None = None
    abandoned: bool = False


class SimulatedQueue:
    """An SQS queue in memory; implements `svc.consumer.queue.Queue`, whose documentation says what the methods do.

    - `fifo`, `content_deduplication`: as the queue attributes FifoQueue and ContentBasedDeduplication.
    - `dead_letters`, `max_receive_count`: the redrive policy; both or neither.
    - `delay`: seconds (0-900) before a sent message can be received.
    - `request_seconds`, `answer_seconds`: how long the two journeys of a call take, from-to.
    - `duplicates`, `resurrections`, `disorder`, `missed`: probabilities, for standard queues, of what AWS reserves the
      right to do: that a message in flight is delivered once more; that a deleted one comes back; that a receive takes
      messages out of order; that a short poll (`wait=0`) overlooks a message.
    - `attempts`: whether a FIFO queue knows receives by their attempt id, as AWS does and emulators do not.
    - `faults`: what goes wrong when, as a list of `Fault` or a function from a `Call` to one (or None).
    - `rng`: the source of all randomness; seeded with 0 when not given.
    """

    _server: Server

    def __init__(
        self,
        name: str = "simulated",
        *,
        fifo: bool = False,
        content_deduplication: bool = False,
        dead_letters: "SimulatedQueue | None" = None,
        max_receive_count: int | None = None,
        delay: float = 0,
        request_seconds: Latency = (0.0, 0.0),
        answer_seconds: Latency = (0.0, 0.0),
        duplicates: float = 0.0,
        resurrections: float = 0.0,
        disorder: float = 0.0,
        missed: float = 0.0,
        in_flight_limit: int = IN_FLIGHT_LIMIT,
        max_message_bytes: int = wire.MAX_MESSAGE_BYTES,
        attempts: bool = True,
        faults: Faults = (),
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.faults = faults
        self.history: list[Event] = []
        """Everything that happened, in order, with Trio times."""
        self.calls: Counter[str] = Counter()
        """How many calls of each kind were begun: receive, delete, change_visibility, dead_letter, send, attributes."""
        self._rng = rng if rng is not None else random.Random(0)
        self._request_seconds, self._answer_seconds = request_seconds, answer_seconds
        self._max_receive_count: int | None = None  # as last *read*
        self._calls_made = 0
        self._attempts = attempts
        self._dead_letters = dead_letters
        self._server = Server(
            name,
            fifo=fifo,
            content_deduplication=content_deduplication,
            dead_letters=None if dead_letters is None else dead_letters._server,
            max_receive_count=max_receive_count,
            delay=delay,
            chances=Chances(duplicates, resurrections, disorder, missed),
            in_flight_limit=in_flight_limit,
            max_message_bytes=max_message_bytes,
            rng=self._rng,
            history=self.history,
        )

    @property
    def fifo(self) -> bool:
        return self._server.fifo

    # What a test looks at

    def visible(self) -> list[str]:
        """Ids of the messages that a receive could bring now (of a locked FIFO group too), in the order of sending."""
        return self._server.visible()

    def in_flight(self) -> list[str]:
        """Ids of the messages that were received and neither deleted nor visible again."""
        return self._server.in_flight()

    def delayed(self) -> list[str]:
        """Ids of the messages that were sent with a delay which is not over."""
        return self._server.delayed()

    @property
    def stranded(self) -> list[str]:
        """Ids of the messages in flight whose answer never reached a client: nobody can settle them."""
        return self._server.stranded()

    @property
    def bodies(self) -> list[str]:
        """The bodies of all messages that are not deleted, in the order of sending."""
        return self._server.bodies()

    @property
    def deleted(self) -> list[str]:
        """Ids of the deleted messages, in the order of deletion."""
        return list(self._server.deleted)

    def receive_count(self, message_id: str) -> int:
        """How often the message was received so far; it may be deleted."""
        return self._server.known(message_id).receives

    def attributes_of(self, message_id: str) -> Mapping[str, str | bytes]:
        """The message attributes of a message that may be deleted: of a dead letter, `RejectReason` among them."""
        return values(self._server.known(message_id).native)

    def put(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: float | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        """Send without a call: the message is there at once. Returns its id; raises `MessageRefused` as SQS would."""
        native = wire.outgoing(attributes)
        self._server.check(body, native, delay, group_id, deduplication_id)
        return self._server.store(0, body, native, delay, group_id, deduplication_id)

    def suspended(self, seconds: float) -> None:
        """The machine has slept for so many seconds, in which Trio's clock stood still and this queue went on: whatever it had to
        do later comes as much earlier."""
        self._server.go_on_alone(seconds)

    # The client's side: svc.consumer.queue.Queue

    @property
    def max_receive_count(self) -> int | None:
        return self._max_receive_count

    @property
    def repeats_receives(self) -> bool:
        return self.fifo and self._attempts

    async def receive(
        self, *, limit: int, wait: int, visibility: int, attempt: str | None = None
    ) -> Sequence[Received]:
        async def act(call: Call, fault: Fault | None) -> list[Received]:
            _in_range("MaxNumberOfMessages", limit, 1, MAX_BATCH)
            _in_range("WaitTimeSeconds", wait, 0, 20)
            _in_range("VisibilityTimeout", visibility, 0, MAX_VISIBILITY)
            return await self._take_within(call, limit, wait, visibility)

        known = attempt if self.repeats_receives else None
        deliveries: list[Received] = await self._exchange(
            "receive", act, limit=limit, wait=wait, visibility=visibility, attempt=known
        )
        return deliveries

    async def delete(self, receipts: Sequence[str]) -> Mapping[str, Refusal]:
        receipts = tuple(receipts)

        async def act(call: Call, fault: Fault | None) -> dict[str, Refusal]:
            return self._server.each(call, fault, receipts, lambda receipt: self._server.delete(call, receipt))

        refused: dict[str, Refusal] = await self._exchange("delete", act, receipts=receipts)
        return refused

    async def change_visibility(self, timeouts: Mapping[str, int]) -> Mapping[str, Refusal]:
        asked = dict(timeouts)

        async def act(call: Call, fault: Fault | None) -> dict[str, Refusal]:
            return self._server.each(
                call, fault, tuple(asked), lambda receipt: self._server.hide(call, receipt, asked[receipt])
            )

        refused: dict[str, Refusal] = await self._exchange(
            "change_visibility", act, receipts=tuple(asked), timeouts=asked
        )
        return refused

    async def dead_letter(self, delivery: Received, reason: str) -> bool:
        async def act(call: Call, fault: Fault | None) -> bool:
            target = self._server.dead_letters
            if target is None:
                return False
            message = delivery.message
            native = wire.dead_letter_attributes(delivery, reason)
            deduplication_id = message.id if self.fifo else None
            copy = target.store(0, message.body, native, None, message.group_id, deduplication_id)
            self.history.append(DeadLettered(trio.current_time(), call.number, message.id, copy, reason))
            return True

        done: bool = await self._exchange("dead_letter", act, receipts=(delivery.receipt,))
        return done

    async def send(
        self,
        body: str,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: int | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        native = wire.outgoing(attributes)
        wire.check(body, native, delay)

        async def act(call: Call, fault: Fault | None) -> str:
            self._server.check(body, native, delay, group_id, deduplication_id)
            return self._server.store(call.number, body, native, delay, group_id, deduplication_id)

        message_id: str = await self._exchange("send", act, body=body)
        return message_id

    async def attributes(self) -> Mapping[str, str]:
        async def act(call: Call, fault: Fault | None) -> dict[str, str]:
            return self._server.attributes()

        found: dict[str, str] = await self._exchange("attributes", act)
        policy = answers.redrive_policy(found)
        self._max_receive_count = policy[1] if policy else None
        return found

    async def dead_letter_queue(self) -> DeadLetterQueue | None:
        async def act(call: Call, fault: Fault | None) -> DeadLetterQueue | None:
            dead = self._server.dead_letters
            return None if dead is None else DeadLetterQueue(f"simulated:{dead.name}", dead.arn, dead.attributes())

        found: DeadLetterQueue | None = await self._exchange("attributes", act)
        return found

    async def look_at_dead_letters(self, most: int, *, seconds: float) -> Sequence[Received] | None:
        if self._dead_letters is None:
            return None
        return await look(self._dead_letters, most, seconds=seconds)

    async def take_back(self, delivery: Received) -> None:
        """As `SqsQueue.take_back`."""
        message, native = delivery.message, delivery.native
        assert isinstance(native, Mapping)
        kept = {name: value for name, value in native.items() if name not in wire.OF_A_COPY}

        async def act(call: Call, fault: Fault | None) -> str:
            return self._server.store(
                call.number, message.body, kept, None, message.group_id, message.id if self.fifo else None
            )

        await self._exchange("send", act, body=message.body)

    # The network

    async def _exchange(self, kind: CallKind, act: _Act, **request: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()  # a call that is cancelled before it begins sends nothing
        self._calls_made += 1
        self.calls[kind] += 1
        call = Call(self._calls_made, kind, self.calls[kind], trio.current_time(), **request)
        if kind == "receive":
            self.history.append(ReceiveBegan(call.at, call.number, call.limit, call.wait, call.visibility))
        fault = fault_for(self.faults, call)
        exchange = _Exchange()
        trio.lowlevel.spawn_system_task(self._serve, exchange, call, fault, act, name=f"{self.name} call {call.number}")
        with trio.move_on_at(call.at + call.patience):
            try:
                await exchange.arrived.wait()
            except trio.Cancelled:
                exchange.abandoned = True
                if exchange.answer is not None:  # it arrived in the very tick of the cancellation
                    self._answer_lost(call, exchange.answer)
                    exchange.answer = None
                raise
        # No checkpoint from here on, as in the real queue.
        answer = exchange.answer or _Answer(error=timed_out(call))
        now = trio.current_time()
        if answer.error is not None:
            self.history.append(CallFailed(now, call.number, kind, str(answer.error)))
            raise answer.error
        if kind == "receive":
            ids = tuple(delivery.message.id for delivery in answer.value)
            self.history.append(ReceiveLanded(now, call.number, ids))
        return answer.value

    async def _serve(self, exchange: _Exchange, call: Call, fault: Fault | None, act: _Act) -> None:
        """The journey to the server, what it does, and the journey back. As a system task it must not raise."""
        what = fault.what if fault else None
        if what == "timeout-before":
            return
        await self._travel(self._request_seconds, fault.seconds if fault and what == "delay" else 0.0)
        error = error_of(fault, call)
        if error is not None and what not in ("error-after", "defect-after"):
            answer = _Answer(error=error)
        else:
            try:
                answer = _Answer(await act(call, fault))
            except Exception as refused:
                answer = _Answer(error=refused)
            if what in ("error-after", "defect-after", "timeout-after"):
                self._answer_lost(call, answer)
                if what == "timeout-after":
                    return
                answer = _Answer(error=error)
        await self._travel(self._answer_seconds, fault.seconds if fault and what == "delay-after" else 0.0)
        if exchange.abandoned:
            self._answer_lost(call, answer)
        else:
            exchange.answer = answer
            exchange.arrived.set()

    async def _travel(self, seconds: Latency, more: float) -> None:
        least, most = seconds
        duration = (least if least == most else self._rng.uniform(least, most)) + more
        if duration > 0:
            await trio.sleep(duration)

    def _answer_lost(self, call: Call, answer: _Answer) -> None:
        if answer.error is None:
            deliveries: list[Received] = answer.value if call.kind == "receive" else []
            self._server.answer_lost(deliveries)
            ids = tuple(delivery.message.id for delivery in deliveries)
            self.history.append(AnswerLost(trio.current_time(), call.number, call.kind, ids))

    async def _take_within(self, call: Call, limit: int, wait: int, visibility: int) -> list[Received]:
        end = trio.current_time() + wait
        while True:
            taken = self._server.take(call, limit, visibility, short=wait == 0)
            now = trio.current_time()
            if taken or now >= end:
                return taken
            # No checkpoint since the look, so that no change between the two is missed.
            changed = self._server.changed
            with trio.move_on_at(min(end, self._server.next_due())):
                await changed.wait()


def _in_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        text = (
            f"Value {value} for parameter {name} is invalid. Reason: Must be between {least} and {most}, if provided."
        )
        raise wire.service_error("receive", "InvalidParameterValue", text, 400)
