"""A simulated queue that takes a test's orders: what is to fail, next or for a while, and whose lease is to run out.

    queue = ScriptedQueue()
    queue.put({"order": 7})
    queue.fail("delete")                       # the next delete
    queue.fail("receive", seconds=60)          # SQS is out of reach for a minute
    queue.let_lease_run_out("slow")
    assert queue.dead_letters.bodies == ["bad"]

The orders are faults like those of `faults.py`, which can be given as well (`faults=`); an order goes first.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import trio

from svc.testing import envelopes
from svc.testing.faults import Call, CallKind, Fault, Faults, What, fault_for
from svc.testing.queue import SimulatedQueue
from svc.testing.timeline import MessageName, Timeline, body_of, find


@dataclass(slots=True)
class _Order:
    what: What
    kind: CallKind
    left: float
    """How many calls it still hits."""
    until: float
    """Trio time."""
    message_id: str | None
    receipt: str | None
    """Only this delivery of the message."""
    seconds: float

    def fault(self, call: Call) -> Fault | None:
        if call.kind != self.kind or self.left <= 0 or call.at >= self.until:
            return None
        entries = [position for position, receipt in enumerate(call.receipts) if self._is_about(receipt)]
        if (self.message_id or self.receipt) and not entries:
            return None
        self.left -= 1
        return Fault(self.what, self.kind, entries=tuple(entries), seconds=self.seconds)

    def _is_about(self, receipt: str) -> bool:
        if self.receipt is not None:
            return receipt == self.receipt
        return self.message_id is None or receipt.rpartition("#")[0] == self.message_id


class ScriptedQueue(SimulatedQueue):
    """A `SimulatedQueue` with a dead-letter queue, `dead_letters`, to which a message goes after `max_receive_count`
    receives. With None there is no redrive policy, and `dead_letters` stays empty. The other options are those of
    `SimulatedQueue`."""

    def __init__(self, name: str = "queue", *, max_receive_count: int | None = 5, **options: Any) -> None:
        if "dead_letters" in options:
            raise TypeError("the queue has a dead-letter queue of its own: look at queue.dead_letters")
        self._orders: list[_Order] = []
        self._faults: Faults = ()
        self._numbers = itertools.count(1)
        fifo = bool(options.get("fifo", False))
        self.dead_letters = SimulatedQueue("dead-letters", fifo=fifo, content_deduplication=fifo)
        super().__init__(
            name,
            dead_letters=self.dead_letters if max_receive_count is not None else None,
            max_receive_count=max_receive_count,
            **options,
        )

    def put(
        self,
        body: MessageName,
        *,
        attributes: Mapping[str, str | int | float] | None = None,
        delay: float | None = None,
        group_id: str | None = None,
        deduplication_id: str | None = None,
    ) -> str:
        """Send a message without a call: it is there at once. A body that is no string is sent as JSON. On a FIFO queue
        each message is one of its own when no `deduplication_id` is given. Returns its id; raises `MessageRefused` as SQS
        would."""
        if self.fifo and deduplication_id is None:
            deduplication_id = f"put-{next(self._numbers)}"
        return super().put(
            body_of(body),
            attributes=attributes,
            delay=delay,
            group_id=group_id,
            deduplication_id=deduplication_id,
        )

    def put_all(self, *bodies: MessageName, group_id: str | None = None) -> list[str]:
        """`put()` for each; returns their ids."""
        return [self.put(body, group_id=group_id) for body in bodies]

    def put_sns(
        self,
        payload: object,
        *,
        topic_arn: str = envelopes.TOPIC_ARN,
        subject: str | None = None,
        attributes: Mapping[str, str | int | float | bytes] | None = None,
        group_id: str | None = None,
    ) -> str:
        """`put()` a payload as SNS delivers it (`@processor(envelope="sns")`); `attributes` are the publisher's. Returns the
        message's id."""
        body = envelopes.sns_body(payload, topic_arn=topic_arn, subject=subject, attributes=attributes)
        return self.put(body, group_id=group_id)

    def put_event(
        self, detail: object, *, source: str = "test", detail_type: str = "test", group_id: str | None = None
    ) -> str:
        """`put()` an event as EventBridge delivers it (`envelope="eventbridge"`). Returns the message's id."""
        return self.put(envelopes.event_body(detail, source=source, detail_type=detail_type), group_id=group_id)

    def put_s3(self, *keys: str, bucket: str = "bucket", event: str = "ObjectCreated:Put", size: int = 1) -> str:
        """`put()` an S3 notification about these keys (`envelope="s3"`): one message, however many. Returns its id."""
        return self.put(envelopes.s3_body(*keys, bucket=bucket, event=event, size=size))

    def fail(
        self,
        kind: CallKind,
        how: What = "error",
        *,
        message: MessageName | None = None,
        times: int = 1,
        seconds: float | None = None,
        delay: float = 0.0,
    ) -> None:
        """Make calls of this kind fail from now on: the next one, the next `times`, or all that begin within `seconds`.

        - `kind`: receive, delete, change_visibility, dead_letter, send, attributes.
        - `how`: one of `svc.testing.What`: "error" (SQS answers with a 500), "throttle", "timeout-before" (SQS
          never acts), "timeout-after" (SQS acts, and its answer is lost), "error-after", "partial" (only the entry of
          `message` is refused), "delay" (the call takes `delay` seconds longer), "delay-after" (its answer does), …
        - `message`: only calls that are about this message (deletes and changes of visibility).
        """
        if kind not in get_args(CallKind):
            raise ValueError(f"there is no call {kind!r}; the calls are {', '.join(get_args(CallKind))}")
        if how not in get_args(What):
            raise ValueError(f"a call cannot fail by {how!r}; it can by {', '.join(get_args(What))}")
        if message is not None and kind not in ("delete", "change_visibility", "dead_letter"):
            raise ValueError(f"{kind} is about no message that is known before; leave `message` out")
        if how == "partial" and (message is None or kind == "dead_letter"):
            raise ValueError('"partial" refuses one entry of a delete or change_visibility: say of which `message`')
        self._orders.append(
            _Order(
                how,
                kind,
                left=math.inf if seconds is not None else times,
                until=math.inf if seconds is None else trio.current_time() + seconds,
                message_id=None if message is None else self.id_of(message),
                receipt=None,
                seconds=delay,
            )
        )

    def let_lease_run_out(self, message: MessageName) -> None:
        """From now on SQS refuses to change the visibility of this delivery of the message, so that its lease ends when
        it is due, whatever is done to extend it. The next delivery is not touched. Raises LookupError when the message is
        not in flight."""
        message_id = self.id_of(message)
        if message_id not in self.in_flight():
            raise LookupError(f"{message_id} is not in flight, so it has no lease:\n{self.timeline()}")
        receipt = self._server.known(message_id).receipt
        self._orders.append(_Order("partial", "change_visibility", math.inf, math.inf, None, receipt, 0.0))

    def id_of(self, message: MessageName) -> str:
        """The id of the message with this id or body. Raises LookupError when there is none, or more than one."""
        return find(self.history, message)

    def timeline(self) -> Timeline:
        """What happened at the queue, as a table to print."""
        return Timeline(self.history)

    @property
    def faults(self) -> Faults:
        """What goes wrong: orders first, then the faults that were given. Can be set, to a list or a function."""
        return self._decide

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults

    def _decide(self, call: Call) -> Fault | None:
        ordered = (order.fault(call) for order in self._orders)
        return next((fault for fault in ordered if fault is not None), None) or fault_for(self._faults, call)
