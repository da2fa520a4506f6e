"""What happened, as a table for people: a queue's history, and beside it what the services on that queue did.

       time  call  what
      0.000        put queue-1 'slow'
      0.000     1  receive begins: up to 10 messages, waits 20 s
      0.000     1  SQS hands out queue-1 'slow' (receive 1, lease until 30)
      0.000        processor begins queue-1 'slow'

`call` is the number of the SQS call, counted from 1. Only for reading: what a test asserts on are the records themselves
(`svc.testing.history`) and the figures of `SimulatedService`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svc.testing import history as happened

MessageName = str | Mapping[str, Any] | Sequence[Any]
"""How a test names a message: by its id or by its body; a body that is no string stands for its JSON."""

_SHOWN = 40
"""Characters of a body that are shown."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a service did, beside the queue."""

    at: float
    what: str
    after: int
    """How many events of the queue's history had happened before."""


@dataclass(frozen=True, slots=True)
class Row:
    at: float
    call: int
    """0: caused by no call."""
    what: str


class Timeline:
    """`print` it, or give it as the message of an assertion."""

    def __init__(self, events: Sequence[happened.Event], notes: Sequence[Note] = ()) -> None:
        self._events, self._notes = list(events), list(notes)

    @property
    def rows(self) -> list[Row]:
        bodies = bodies_of(self._events)
        rows = [(index + 1, 0, Row(e.at, e.call, _told(e, bodies))) for index, e in enumerate(self._events)]
        rows += [(note.after, 1, Row(note.at, 0, note.what)) for note in self._notes]
        return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]

    def text(self, *, most: int | None = None) -> str:
        """The table; of its rows the last `most`."""
        rows = self.rows
        left_out = max(0, len(rows) - most) if most is not None else 0
        lines = [f"({left_out} earlier rows are left out)"] if left_out else []
        lines.append(f"{'time':>10}  {'call':>4}  what")
        lines += [f"{row.at:10.3f}  {row.call or '':>4}  {row.what}" for row in rows[left_out:]]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def body_of(message: MessageName) -> str:
    """The body that is meant: a string as it is, anything else as JSON."""
    return message if isinstance(message, str) else json.dumps(message)


def bodies_of(events: Sequence[happened.Event]) -> dict[str, str]:
    """Message id → body, of everything that was ever sent."""
    return {event.message_id: event.body for event in events if isinstance(event, happened.Sent)}


def find(events: Sequence[happened.Event], message: MessageName) -> str:
    """The id of the message with this id or body. Raises LookupError with a sentence about the messages that there are."""
    bodies, wanted = bodies_of(events), body_of(message)
    if wanted in bodies:
        return wanted
    found = [message_id for message_id, body in bodies.items() if body == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(
            f"{len(found)} messages have the body {short(wanted)}: name one by its id ({', '.join(found)})"
        )
    there_are = ", ".join(short(body) for body in list(bodies.values())[:10]) or "none so far"
    raise LookupError(f"no message {short(wanted)} was ever put into the queue; there are: {there_are}")


def short(body: str) -> str:
    return repr(body if len(body) <= _SHOWN else body[: _SHOWN - 3] + "...")


def name(message_id: str, bodies: Mapping[str, str]) -> str:
    """How a message is called in texts: id and body."""
    return f"{message_id} {short(bodies[message_id])}" if message_id in bodies else message_id


def _told(event: happened.Event, bodies: Mapping[str, str]) -> str:
    match event:
        case happened.Sent():
            return f"{'put' if event.call == 0 else 'sent'} {name(event.message_id, bodies)}"
        case happened.Deduplicated():
            return f"sent again, not stored: {name(event.message_id, bodies)}"
        case happened.ReceiveBegan():
            return f"receive begins: up to {event.limit} messages, waits {event.wait} s"
        case happened.Assigned():
            what = name(event.message_id, bodies)
            return f"SQS hands out {what} (receive {event.receive_count}, lease until {event.until:g})"
        case happened.ReceiveLanded():
            return f"receive lands: {_names(event.message_ids, bodies) or 'nothing'}"
        case happened.AnswerLost():
            stranded = f"; stranded: {_names(event.message_ids, bodies)}" if event.message_ids else ""
            return f"the answer of {event.kind} never arrives{stranded}"
        case happened.Deleted():
            return f"deleted {name(event.message_id, bodies)}"
        case happened.DeleteIgnored():
            return f"delete of {name(event.message_id, bodies)} is without effect: its receipt handle is outdated"
        case happened.VisibilityChanged():
            until = "visible at once" if event.until <= event.at else f"hidden until {event.until:g}"
            return f"visibility of {name(event.message_id, bodies)}: {until}"
        case happened.DeadLettered(reason=None):
            return f"moved to the dead-letter queue, after its last receive: {name(event.message_id, bodies)}"
        case happened.DeadLettered():
            return f"copied to the dead-letter queue: {name(event.message_id, bodies)}, {event.reason}"
        case happened.Refused():
            return f"refused for {name(event.receipt.rpartition('#')[0], bodies)}: {event.code}"
        case happened.CallFailed():
            return f"{event.kind} fails: {event.error}"
        case happened.Suspended():
            return f"the machine has slept for {event.seconds:g} s"
        case _:
            return str(event)


def _names(message_ids: Sequence[str], bodies: Mapping[str, str]) -> str:
    return ", ".join(name(message_id, bodies) for message_id in message_ids)
