"""What an operator may ask of the switch, and what is written for it. Pure; command and API have the same semantics by it.

A maintenance that somebody has put his name to is his: nobody else ends or overwrites it, unless he insists (`force`). One
without a name is everybody's. An order for one instance concerns that instance's own key, which is deleted to switch it off.
"""

import json
from dataclasses import dataclass

from svc.fleet import own_key
from svc.maintenance import parse_switch

LONGEST = 30 * 86_400.0
"""Seconds that a maintenance may be asked for; a typing error should not bind it for years."""

TEXT_LIMIT = 500
"""Characters of a reason or a name; the services show no more."""


class NotYours(Exception):
    """The order would end or overwrite the maintenance of somebody else. The text says whose, and what to do."""


class NoSuchInstance(Exception):
    """The order is for an instance that is not registered. The text names those that are."""


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

    def key(self, maintenance_key: str) -> str:
        """The key that it concerns."""
        return maintenance_key if self.instance is None else own_key(maintenance_key, self.instance)

    def value(self, until: str | None) -> bytes | None:
        """What is to be written; None: the key is to be deleted. `until`: when it ends, if it does so by itself."""
        if not self.on:
            return b"false" if self.instance is None else None
        told = {name: value for name, value in (("reason", self.reason), ("by", self.by), ("until", until)) if value}
        return json.dumps({"enabled": True, **told}).encode() if told else b"true"

    def check(self, held: bytes | None) -> None:
        """Raises `NotYours` when the key's present value forbids it."""
        try:
            switch = parse_switch(held)
        except ValueError:
            return  # nobody's: the services ignore it
        if self.force or not switch.on or switch.by in (None, self.by):
            return
        reason = f" ({switch.reason})" if switch.reason else ""
        until = f", until {switch.until}" if switch.until else ""
        whose = "" if self.by is None else f", and this is {self.by}"
        raise NotYours(f"maintenance is on by {switch.by}{reason}{until}{whose}")
