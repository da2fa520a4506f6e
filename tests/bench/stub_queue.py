"""A queue of the bench's SQS stub: standard SQS behaviour in memory, made so that an operation costs next to nothing.

A message is rendered once, when it is put; handing it out is one formatting of bytes. What is hidden (handed out, delayed,
given back for later) stands in one heap by the time at which it is visible again; entries that no longer count are skipped
when they come up. All times are of `time.monotonic()`, which on Linux is one clock for all processes of a machine.

An attribute of its own, `Duplicates`, is the share of the messages that are handed out twice. Left out, because nothing that is
measured needs it: FIFO, redrive policies, deduplication. What is here behaves as AWS documents it (`tests/bench/test_bench.py`
runs the queue contract's tests against it).
"""

import base64
import hashlib
import heapq
import json
import random
import re
import time
import uuid
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

MAX_VISIBILITY = 43_200
"""Seconds from the receive; SQS's limit."""

MAX_BODY = 1_048_576

_RECEIPT_PAD = "A" * 360
"""AWS's receipt handles have some 400 characters, which a consumer has to parse and to send back."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Message:
    __slots__ = ("first", "lease", "native", "number", "receives", "rendered", "sent", "state", "until")

    def __init__(self, number: int, body: str, native: dict[str, Any], sent: float) -> None:
        self.number = number
        self.native = native
        self.sent = sent
        self.receives = 0
        self.first = 0.0
        self.lease = 0.0  # when it was handed out last
        self.until = 0.0  # hidden until
        self.state = ""  # "visible", "delayed", "in flight" or "deleted"
        digest = hashlib.md5(body.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        self.rendered = f'{{"MessageId":"{message_id(number)}","MD5OfBody":"{digest}","Body":{json.dumps(body)}'


def message_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


class Refused(Exception):
    """The call, or one entry of it, is refused: the code and the text that SQS would send."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Poll:
    """A receive that waits."""

    __slots__ = ("answer", "at", "limit", "open", "request", "timer")

    def __init__(self, limit: int, request: dict[str, Any], answer: Callable[[list[str]], None]) -> None:
        self.limit = limit
        self.request = request
        self.answer = answer
        self.open = True
        self.timer: Any = None


class Queue:
    def __init__(self, name: str, url: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.url = url
        self.attributes = {"VisibilityTimeout": "30", "ReceiveMessageWaitTimeSeconds": "0", "DelaySeconds": "0"}
        self.attributes |= attributes
        self._duplicates = float(self.attributes.get("Duplicates", 0))
        self.calls: Counter[str] = Counter()
        self.sent = self.received = self.deleted = 0
        self.receives_at = array("d")
        """When each receive arrived."""
        self.receives_brought = array("H")
        """What each answered receive brought."""
        self.sent_at = array("d")
        """When each message that was put by a schedule arrived."""
        self._messages: dict[int, Message] = {}
        self._visible: deque[Message] = deque()
        self._hidden: list[tuple[float, int]] = []
        self._polls: deque[Poll] = deque()
        self._next = 0
        self._kept: Message | None = None

    # What producers do.

    def put(self, body: str, native: dict[str, Any] | None = None, delay: float = 0.0) -> Message:
        now = time.monotonic()
        message = Message(self._next, body, native or {}, now)
        self._next += 1
        self._messages[message.number] = message
        self.sent += 1
        if delay:
            self._hide(message, "delayed", now + delay)
        else:
            self._show(message)
        return message

    def keep(self) -> None:
        """Remember the oldest message, to `multiply` it when it is gone."""
        self._kept = next(iter(self._messages.values()))

    def multiply(self, count: int) -> int:
        """Put so many copies of the message that is kept, or of the oldest, each UUID in it replaced by one of its own."""
        first = self._kept or next(iter(self._messages.values()))
        body: str = json.loads(first.rendered + "}")["Body"]
        decoded = _decoded(body)
        for _ in range(count):
            made = {found: str(uuid.uuid4()) for found in set(_UUID.findall(decoded or body))}
            copy = _UUID.sub(lambda found, made=made: made[found[0]], decoded or body)  # type: ignore[misc]
            self.put(base64.b64encode(copy.encode()).decode() if decoded else copy, first.native)
        return self.sent

    def purge(self) -> None:
        self._messages.clear()
        self._visible.clear()
        self._hidden.clear()

    # What consumers do.

    def take(self, limit: int, visibility: float, request: dict[str, Any]) -> list[str]:
        """Up to `limit` visible messages, rendered as JSON."""
        now = time.monotonic()
        if self._hidden and self._hidden[0][0] <= now:
            self.expire(now)
        visible, taken = self._visible, []
        names = request.get("MessageSystemAttributeNames") or request.get("AttributeNames") or ()
        natives = request.get("MessageAttributeNames") or ()
        while visible and len(taken) < limit:
            message = visible.popleft()
            if message.state != "visible":
                continue
            message.receives += 1
            message.lease = now
            message.first = message.first or now
            self._hide(message, "in flight", now + visibility)
            taken.append(self._handed_out(message, names, natives))
            if self._duplicates and random.random() < self._duplicates:
                message.state = "visible"  # and so it is handed out once more, though somebody has it
                visible.append(message)
        self.received += len(taken)
        return taken

    def poll(self, poll: Poll) -> None:
        self._polls.append(poll)

    def forget(self, poll: Poll) -> None:
        poll.open = False
        if poll.timer is not None:
            poll.timer.cancel()
        if poll in self._polls:
            self._polls.remove(poll)

    def delete(self, receipt: str) -> None:
        """A handle of an earlier receive deletes nothing, and succeeds: API reference, DeleteMessage."""
        message = self._holder(receipt)
        if message is not None and message.receives == _receives(receipt) and message.state != "deleted":
            message.state = "deleted"
            del self._messages[message.number]
            self.deleted += 1

    def change_visibility(self, receipt: str, timeout: int) -> None:
        message = self._holder(receipt)
        now = time.monotonic()
        if message is None or message.receives != _receives(receipt):
            raise Refused(
                "InvalidParameterValue",
                f"Value {receipt[:40]} for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not "
                "available for visibility timeout change.",
            )
        if message.state != "in flight" or message.until <= now:
            raise Refused("MessageNotInflight", "The specified message isn't in flight.")
        if now - message.lease + timeout > MAX_VISIBILITY:
            raise Refused(
                "InvalidParameterValue",
                f"Value {timeout} for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the "
                "message is beyond the limit [43200 seconds].",
            )
        if timeout:
            self._hide(message, "in flight", now + timeout)
        else:
            self._show(message)

    def counts(self) -> dict[str, int]:
        self.expire(time.monotonic())
        states = Counter(message.state for message in self._messages.values())
        return {state: states[state] for state in ("visible", "in flight", "delayed")}

    def expire(self, now: float) -> None:
        """Show what is hidden no longer."""
        while self._hidden and self._hidden[0][0] <= now:
            until, number = heapq.heappop(self._hidden)
            message = self._messages.get(number)
            if message is not None and message.until == until and message.state in ("in flight", "delayed"):
                self._show(message)

    def next_change(self) -> float | None:
        """When somebody who polls has to look again."""
        return self._hidden[0][0] if self._polls and self._hidden else None

    def _show(self, message: Message) -> None:
        message.state = "visible"
        self._visible.append(message)
        while self._polls:
            poll = self._polls[0]
            taken = self.take(poll.limit, self._visibility(poll.request), poll.request)
            if not taken:
                return
            self.forget(poll)
            poll.answer(taken)

    def _visibility(self, request: dict[str, Any]) -> float:
        return float(request.get("VisibilityTimeout", self.attributes["VisibilityTimeout"]))

    def _hide(self, message: Message, state: str, until: float) -> None:
        message.state = state
        message.until = until
        heapq.heappush(self._hidden, (until, message.number))

    def _holder(self, receipt: str) -> Message | None:
        number, dot, _ = receipt.partition(".")
        if not dot or not number.isdecimal() or not receipt.endswith(_RECEIPT_PAD):
            raise Refused("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
        return self._messages.get(int(number))

    def _handed_out(self, message: Message, names: Any, natives: Any) -> str:
        parts = [message.rendered, f',"ReceiptHandle":"{message.number}.{message.receives}.{_RECEIPT_PAD}"']
        if names:
            since = time.time() - time.monotonic()
            known = {
                "SentTimestamp": str(int((since + message.sent) * 1000)),
                "ApproximateReceiveCount": str(message.receives),
                "ApproximateFirstReceiveTimestamp": str(int((since + message.first) * 1000)),
                "SenderId": "AIDACKCEVSQ6C2EXAMPLE",
            }
            told = known if "All" in names else {name: known[name] for name in names if name in known}
            inner = ",".join(f'"{name}":"{value}"' for name, value in told.items())
            parts.append(f',"Attributes":{{{inner}}}')
        if natives and message.native:
            wanted = message.native
            if not {"All", ".*"} & set(natives):
                wanted = {name: value for name, value in wanted.items() if name in natives}
            if wanted:
                parts.append(f',"MessageAttributes":{json.dumps(wanted)}')
        parts.append("}")
        return "".join(parts)


def _receives(receipt: str) -> int:
    return int(receipt.split(".", 2)[1])


def _decoded(body: str) -> str | None:
    """What stands in a body that is base64, if it is text."""
    if body[:1] in "{[":
        return None
    try:
        return base64.b64decode(body, validate=True).decode()
    except ValueError:
        return None
