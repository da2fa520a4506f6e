"""Which dead letters are meant: `reason~timeout`, `age>1h`, `attribute:tenant=acme`.

    FIELD OPERATOR VALUE

    reason, error, id, original_id, group, body,
    attribute:NAME                                   text      = (equals)  != (differs)  ~ (contains, whatever the case)
    attribute:NAME, receives                         numbers   < >; receives has = and != too
    age, sent                                        time      < >   `age>1h30m`, `sent<2026-01-31T12:00Z`

A value may stand in quotes, single or double. A text that a letter does not have is the empty one: `reason=` means those without
a reason. A comparison with a number or a time that a letter does not have is false. Pure.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from svc.consumer.queue import Received
from svc.settings import printable, seconds
from svc.sqs import letters

Holds = Callable[[Received, datetime], bool]
"""Of a letter, now."""

_FIELD = re.compile(r"\s*([A-Za-z_]+)(?:(:)([A-Za-z0-9_.-]*))?")
_OPERATOR = re.compile(r"\s*(!=|=|~|<|>)")
_SIGNS = "=!~<>"

_TEXTS: dict[str, Callable[[Received], str | None]] = {
    "reason": letters.reason,
    "error": letters.error,
    "id": lambda letter: letter.message.id,
    "original_id": letters.original_id,
    "group": lambda letter: letter.message.group_id,
    "body": lambda letter: letter.message.body,
}
_FIELDS = (*_TEXTS, "attribute:NAME", "receives", "age", "sent")


class BadExpression(ValueError):
    """What is wrong, and a second and third line that point to the place."""

    def __init__(self, text: str, at: int, why: str) -> None:
        super().__init__(f"{why}\n  {printable(text)}\n  {' ' * len(printable(text[:at]))}^")


@dataclass(frozen=True, slots=True)
class Condition:
    text: str
    """As it was written."""
    holds: Holds


def every(conditions: Sequence[Condition], now: datetime) -> Callable[[Received], bool]:
    """Whether all of them hold. None of them: of every letter."""
    return lambda letter: all(condition.holds(letter, now) for condition in conditions)


def of_ids(ids: Sequence[str]) -> Condition:
    """One of these, or a copy of one of these."""
    wanted = frozenset(ids)
    return Condition(
        f"id in {', '.join(ids)}",
        lambda letter, _: letter.message.id in wanted or letters.original_id(letter) in wanted,
    )


def older_than(age: float) -> Condition:
    """Sent so many seconds ago at least."""
    return Condition(f"older than {age:g} s", lambda letter, now: (letters.age(letter, now) or 0.0) >= age)


def condition(text: str) -> Condition:
    """Raises `BadExpression`."""
    found = _FIELD.match(text)
    if found is None:
        raise BadExpression(text, len(text) - len(text.lstrip()), f"a field is missing; there are {', '.join(_FIELDS)}")
    name, colon, attribute = found[1], found[2], found[3]
    if name not in (*_TEXTS, "attribute", "receives", "age", "sent"):
        raise BadExpression(text, found.start(1), f"there is no field {name!r}; there are {', '.join(_FIELDS)}")
    if (name == "attribute") != bool(colon) or (colon and not attribute):
        why = "attribute needs a name: attribute:NAME" if name == "attribute" else f"{name} takes no name"
        raise BadExpression(text, found.end(1), why)
    sign = _OPERATOR.match(text, found.end())
    if sign is None:
        rest = text[found.end() :]
        at = found.end() + len(rest) - len(rest.lstrip())
        raise BadExpression(text, at, "an operator is missing: =, !=, ~ (contains), < or >")
    value, at = _value(text, sign.end())
    place = _Place(text, sign.start(1), at)
    return Condition(text.strip(), _holds(name, attribute, sign[1], value, place))


def _value(text: str, start: int) -> tuple[str, int]:
    """The value, and where it begins."""
    rest = text[start:]
    at = start + len(rest) - len(rest.lstrip())
    value = rest.strip()
    if value[:1] in ("'", '"'):
        if len(value) < 2 or value[-1] != value[0]:
            raise BadExpression(text, at, f"the value has no {value[0]} at its end")
        return value[1:-1], at
    if value[:1] and value[0] in _SIGNS:
        raise BadExpression(text, at, "there is no such operator; a value that begins so has to stand in quotes")
    return value, at


@dataclass(frozen=True, slots=True)
class _Place:
    text: str
    operator: int
    value: int

    def no_operator(self, why: str) -> BadExpression:
        return BadExpression(self.text, self.operator, why)

    def no_value(self, why: str) -> BadExpression:
        return BadExpression(self.text, self.value, why)


def _holds(name: str, attribute: str | None, operator: str, value: str, place: _Place) -> Holds:
    match name:
        case "receives":
            return _of_receives(operator, value, place)
        case "age":
            return _of_age(operator, value, place)
        case "sent":
            return _of_sent(operator, value, place)
        case "attribute":
            assert attribute is not None
            return _of_text(lambda letter: _attribute(letter, attribute), operator, value, place, numbers=True)
    return _of_text(_TEXTS[name], operator, value, place)


def _attribute(letter: Received, name: str) -> str | None:
    value = letter.message.attributes.get(name)
    return None if value is None else letters.text_of(value)


def _of_text(
    read: Callable[[Received], str | None], operator: str, value: str, place: _Place, *, numbers: bool = False
) -> Holds:
    match operator:
        case "=":
            return lambda letter, _: (read(letter) or "") == value
        case "!=":
            return lambda letter, _: (read(letter) or "") != value
        case "~":
            if not value:
                raise place.no_value("~ needs something to look for: every text contains nothing")
            part = value.casefold()
            return lambda letter, _: part in (read(letter) or "").casefold()
    if not numbers:
        raise place.no_operator(f"a text has =, != and ~ (contains), not {operator}")
    bound = _number(value)
    if bound is None:
        raise place.no_value("this is not a number")
    return lambda letter, _: _compare(operator, _number(read(letter) or ""), bound)


def _of_receives(operator: str, value: str, place: _Place) -> Holds:
    if operator == "~":
        raise place.no_operator("receives is a number: it has =, !=, < and >")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise place.no_value("this is not a whole number")
    bound = int(value)
    return lambda letter, _: _compare(operator, letter.message.receive_count, bound)


def _of_age(operator: str, value: str, place: _Place) -> Holds:
    _only_before_and_after("age", operator, place)
    try:
        bound = seconds(value)
    except ValueError:
        bound = None
    if not isinstance(bound, float):
        raise place.no_value("this is not a duration, such as 90s, 1h30m or 168h")
    return lambda letter, now: _compare(operator, letters.age(letter, now), bound)


def _of_sent(operator: str, value: str, place: _Place) -> Holds:
    _only_before_and_after("sent", operator, place)
    try:
        moment = datetime.fromisoformat(value)
        bound = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise place.no_value(
            "this is not a time, such as 2026-01-31 or 2026-01-31T12:00Z (without a zone: UTC)"
        ) from None

    def holds(letter: Received, _: datetime) -> bool:
        sent = letter.message.sent_at
        return _compare(operator, None if sent is None else sent.timestamp(), bound)

    return holds


def _only_before_and_after(name: str, operator: str, place: _Place) -> None:
    if operator not in "<>":
        raise place.no_operator(f"{name} has < and >, not {operator}")


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text) else None


def _compare(operator: str, value: float | None, bound: float) -> bool:
    if value is None:
        return False
    match operator:
        case "<":
            return value < bound
        case ">":
            return value > bound
        case "=":
            return value == bound
    return value != bound
