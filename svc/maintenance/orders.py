"""What an operator may ask of the switch, and what is written for it. Pure; command and API have the same semantics by it.

A maintenance that somebody has put his name to is his: nobody else ends or overwrites it, unless he insists (`force`). One
without a name is everybody's. An order for one instance concerns that instance's own key, which is deleted to switch it off.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from svc.maintenance.fleet import Fleet, Request
from svc.maintenance.registration import own_key
from svc.maintenance.switch_value import TEXT_LIMIT, parse_switch
from svc.settings import printable, seconds

LONGEST = 30 * 86_400.0
"""Seconds that a maintenance may be asked for; a typing error should not bind it for years."""


class NotYours(Exception):
    """The order would end or overwrite the maintenance of somebody else. The text says whose, and what to do."""


class NoSuchInstance(Exception):
    """The order is for an instance that is not registered. The text names those that are."""


class StillThere(Exception):
    """The instance that is to be forgotten is alive. The text says so."""


class OutOfReach(Exception):
    """etcd could not do what was asked. The text says why, and what to do about it."""

    def __init__(self, said: str, *, timed_out: bool = False) -> None:
        super().__init__(said)
        self.timed_out = timed_out
        """It did not answer in time: what was ordered may have been done all the same."""


class CannotWrite(Exception):
    """What holds the value is not to be changed from here. The text says which file and why."""


class Switchboard(Protocol):
    """The fleet, to be seen and switched; `etcd_fleet.Switchboard` is the real one, and
    `standalone.StandaloneBoard` that of an instance without etcd. Raises `OutOfReach`."""

    async def look(self) -> Fleet: ...

    async def ask(self, order: "Order") -> Request:
        """Raises `NotYours`, `NoSuchInstance` and `CannotWrite` too."""
        ...


class NoFleet:
    """The `Switchboard` of a service that belongs to no fleet."""

    async def look(self) -> Fleet:
        raise OutOfReach("this service belongs to no fleet")

    async def ask(self, order: "Order") -> Request:
        raise OutOfReach("this service belongs to no fleet")


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked."""

    on: bool
    reason: str | None = None
    by: str | None = None
    """Who asks."""
    seconds: float | None = None
    """How long; None: until it is switched off."""
    instance: str | None = None
    """For this one only; None: for all."""
    force: bool = False
    quiet: bool = False
    """Instances are to be quiet as soon as nothing is at work; what lands in its last receive then goes back like the rest."""

    def key(self, maintenance_key: str) -> str:
        """The key that it concerns."""
        return maintenance_key if self.instance is None else own_key(maintenance_key, self.instance)

    def value(self, until: str | None) -> bytes | None:
        """What is to be written; None: the key is to be deleted. `until`: when it ends, if it does so by itself."""
        if not self.on:
            return b"false" if self.instance is None else None
        details = ("reason", self.reason), ("by", self.by), ("until", until), ("quiet", self.quiet)
        told = {name: value for name, value in details if value}
        return json.dumps({"enabled": True, **told}).encode() if told else b"true"

    def check(self, held: bytes | None) -> None:
        """Raises `NotYours` when the key's present value forbids it."""
        try:
            switch = parse_switch(held)
        except ValueError:
            return  # nobody's: the services ignore it
        if self.force or not switch.on or switch.by in (None, self.by and printable(self.by)):
            return
        reason = f" ({switch.reason})" if switch.reason else ""
        until = f", until {switch.until}" if switch.until else ""
        whose = "" if self.by is None else f", and this is {self.by}"
        raise NotYours(f"maintenance is on by {switch.by}{reason}{until}{whose}")


_INSTANCE = re.compile(r"[A-Za-z0-9._-]{1,110}")

FIELDS = ("reason", "by", "for", "instance", "force", "quiet")
"""What an order may consist of, as the API takes it."""


def read_order(document: Mapping[str, object], *, on: bool) -> Order:
    """The order that a JSON object describes. Raises ValueError with a sentence."""
    known = FIELDS if on else tuple(name for name in FIELDS if name not in ("reason", "for", "quiet"))
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise ValueError(f"unknown field {unknown[0][:100]!r}; known are {', '.join(known)}")
    force, quiet = _flag(document, "force"), _flag(document, "quiet")
    instance = _text(document, "instance")
    if instance is not None and not _INSTANCE.fullmatch(instance):
        raise ValueError('"instance" must be the name of an instance; GET /fleet names them')
    return Order(on, _text(document, "reason"), _text(document, "by"), _lasting(document), instance, force, quiet)


def _flag(document: Mapping[str, object], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f'"{name}" must be true or false')
    return value


def _text(document: Mapping[str, object], name: str) -> str | None:
    value = document.get(name)
    if value is not None and not (isinstance(value, str) and value and len(value) <= TEXT_LIMIT):
        raise ValueError(f'"{name}" must be a text of 1 to {TEXT_LIMIT} characters')
    return value


def _lasting(document: Mapping[str, object]) -> float | None:
    value = document.get("for")
    if value is None:
        return None
    try:
        found = seconds(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 1 <= found <= LONGEST:
        raise ValueError('"for" must be a number of seconds or a duration such as "30m", from 1s to 720h')
    return float(found)
