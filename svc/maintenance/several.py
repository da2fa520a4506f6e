"""Instances that are asked one by one, over HTTP, and not through etcd: what their API shows is read back, and several of them
are seen as one fleet. Pure.

Each may be an instance by itself or a member of a fleet, for which it then speaks. What one says is believed as an answer of the
same request that it took (`fleet.answer`). One that does not answer is waited for; when that has lasted, it has vanished.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from svc.maintenance.fleet import Request, Result, Standing, Wait
from svc.maintenance.registration import Entry, registration
from svc.settings import printable

PATIENCE = 10.0
"""Seconds without an answer after which an instance has vanished: a restart takes some."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What `GET /fleet` of an instance has shown."""

    is_fleet: bool
    """It speaks for the fleet that etcd lists; else for itself."""
    on: bool | None
    """None: the value means nothing (`ignored`)."""
    details: Mapping[str, str]
    """Of `reason`, `by`, `until` those that there are."""
    ignored: str | None
    expires_in: float | None
    revision: int
    """0: there is no such key."""
    rows: tuple[Mapping[str, object], ...]
    vanished: tuple[str, ...]

    @property
    def told(self) -> Mapping[str, object]:
        """As `fleet_table.fleet` tells it."""
        return {
            "fleet": self.is_fleet, "maintenance": self.on, "reason": None, "by": None, "until": None, **self.details,
            "ignored_value": self.ignored, "expires_in": self.expires_in, "revision": self.revision or None,
            "vanished": list(self.vanished), "instances": [dict(row) for row in self.rows],
        }  # fmt: skip

    def entries(self, revision: int) -> tuple[Entry, ...]:
        """The instances, as of this revision."""
        return tuple(_entry(row, revision) for row in self.rows)


def shown(document: object) -> Shown:
    """What the JSON of `GET /fleet` says. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    rows, vanished, revision = document.get("instances"), document.get("vanished"), document.get("revision")
    on, expires_in = document.get("maintenance"), document.get("expires_in")
    if (
        not isinstance(rows, list)
        or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows)
        or not isinstance(vanished, list)
        or not all(isinstance(id, str) for id in vanished)
        or not (revision is None or _is_count(revision))
        or not (on is None or isinstance(on, bool))
        or not (expires_in is None or isinstance(expires_in, int | float))
    ):
        raise ValueError("not what GET /fleet shows")
    ignored = document.get("ignored_value")
    return Shown(
        # An older version says nothing of it, and knows fleets only.
        is_fleet=document.get("fleet") is not False,
        on=on,
        details={name: _text(document[name]) for name in ("reason", "by", "until") if document.get(name)},
        ignored=None if ignored is None else _text(ignored),
        expires_in=expires_in,
        revision=revision or 0,
        rows=tuple(rows),
        vanished=tuple(_text(id) for id in vanished),
    )


def requested(document: object, *, on: bool, quiet: bool) -> Request:
    """What an answer to `PUT` or `DELETE /maintenance` says that was switched. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    revision, instance = document.get("revision"), document.get("instance")
    if (
        document.get("maintenance") is not on
        or not (revision is None or _is_count(revision))
        or not (instance is None or isinstance(instance, str))
    ):
        raise ValueError("not what PUT /maintenance answers")
    return Request(on, revision or 0, instance, quiet)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _text(value: object) -> str:
    return printable(str(value)[:500])


def _entry(row: Mapping[str, object], revision: int) -> Entry:
    """A row back into what it was made of (`fleet_table.row`); what it says of no token is none."""
    id = _text(row["id"])
    try:
        return Entry(id, registration(json.dumps({**row, "token": "", "acknowledgement": row}).encode()), revision)
    except (ValueError, RecursionError):
        return Entry(id, None, revision)


class Seen:
    """One of several: how it answers its request. `name` is how it is called until it has said who it is."""

    def __init__(self, name: str, request: Request | None) -> None:
        """`request` None: it did not take it, because it was out of reach; what it does is not known."""
        self.name = name
        self._request = request
        self._wait = Wait(request or Request(True, 0))
        self._was_seen = False
        self._silent_since: float | None = None

    def answered(self, look: Shown) -> None:
        """It has shown this."""
        assert self._request is not None
        self._was_seen, self._silent_since = True, None
        if self._request.instance is None:
            self._wait.key(look.revision)
        entries = {one.id: one for one in look.entries(self._request.revision + 1)}
        self._wait.all(entries, [*entries, *look.vanished] if look.is_fleet else ())

    def silent(self, now: float) -> None:
        """It does not answer."""
        self._silent_since = now if self._silent_since is None else self._silent_since
        live = [one.id for one in self._wait.standing().live]
        if now >= self._silent_since + PATIENCE and (live or not self._was_seen):
            self._wait.all({}, live or [self.name])
            self._was_seen = True

    def standing(self) -> Standing:
        held = self._wait.standing()
        if self._request is None:
            return replace(held, result=Result.VANISHED, died=(self.name,))
        if not self._was_seen:
            return replace(held, result=None, waiting=(self.name,))
        if self._silent_since is not None and held.live:
            return replace(held, result=None, waiting=tuple(one.id for one in held.live))
        return held


_FROM_WORST = (Result.SUPERSEDED, Result.EXPIRED, Result.VANISHED, Result.DONE, Result.NONE)


def together(standings: Sequence[Standing]) -> Standing:
    """All of them as one."""
    results = {one.result for one in standings}
    result = next((one for one in _FROM_WORST if one in results), None)
    if None in results and result is not Result.SUPERSEDED:
        result = None
    return Standing(
        result=result,
        live=tuple(sorted((entry for one in standings for entry in one.live), key=lambda entry: entry.id)),
        waiting=tuple(sorted(id for one in standings for id in one.waiting)),
        expired=tuple(sorted(id for one in standings for id in one.expired)),
        held=tuple(sorted(id for one in standings for id in one.held)),
        died=tuple(sorted(id for one in standings for id in one.died)),
        stopped=tuple(sorted(id for one in standings for id in one.stopped)),
    )
