"""What the maintenance key's value means: words, or a JSON object. Pure.

The value comes from outside (an operator, a script): whatever form it has, it is understood or refused with a sentence.
"""

import json
from dataclasses import dataclass

from svc.settings import printable

TEXT_LIMIT = 500
"""Characters of a reason or a name that are kept."""

ON = frozenset({"true", "1", "yes", "on", "enabled", "maintenance"})
OFF = frozenset({"false", "0", "no", "off", "disabled", ""})


@dataclass(frozen=True, slots=True)
class Switch:
    """What the maintenance key says. Texts are printable, whatever was written."""

    on: bool
    reason: str | None = None
    until: str | None = None
    """As the operator wrote it, meant to be RFC 3339. Informs; the key itself ends the maintenance."""
    by: str | None = None
    quiet: bool = False
    """Instances are to become quiet as soon as nothing is at work (`handler.QuietHandler`), whatever lands after that."""


def parse_switch(value: bytes | None) -> Switch:
    """The meaning of the key's value; None is a missing key. Raises ValueError with a sentence when it has none."""
    if value is None:
        return Switch(on=False)
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"the value ({len(value)} bytes) is not UTF-8 text") from None
    word = text.lower()
    if word in ON or word in OFF:
        return Switch(on=word in ON)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError(
            f"the value {_short(text)} is neither a known word (true, false, on, off, …) nor a JSON object"
        )
    if not isinstance(document.get("enabled"), bool):
        raise ValueError(f'the JSON object {_short(text)} has no "enabled" that is true or false')
    told = {name: _short_text(document.get(name)) for name in ("reason", "until", "by")}
    return Switch(on=document["enabled"], quiet=document.get("quiet") is True, **told)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _short_text(value: object) -> str | None:
    return printable(value[:TEXT_LIMIT]) if isinstance(value, str) and value else None
