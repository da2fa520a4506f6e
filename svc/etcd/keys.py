"""Keys of etcd: as a read finds them, and as they are to be written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from svc.etcd.messages import PUT
from svc.settings import printable


@dataclass(frozen=True, slots=True)
class Held:
    """A key as a read found it."""

    value: bytes | None = None
    """None: there is no such key."""
    mod_revision: int = 0
    """Revision at which it was last written; 0: there is no such key."""
    lease: int = 0
    """The lease that it is bound to; 0: none."""


@dataclass(frozen=True, slots=True)
class Found:
    """Everything below a prefix, and everything asked for by name, of one moment."""

    keys: Mapping[str, Held]
    """By name. Absent keys that were asked for by name are in it too."""
    revision: int
    """Of the store, at which this is true."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written or deleted, as a watch tells it."""

    key: str
    value: bytes | None
    """None: deleted."""
    revision: int
    """At which that was done."""


@dataclass(frozen=True, slots=True)
class News:
    """What a watch has told at once."""

    changes: tuple[Change, ...] = ()
    begins: bool = False
    """The watch stands now."""
    ended: str | None = None
    """Why etcd has ended the watch; None: it goes on."""


@dataclass(frozen=True, slots=True)
class Put:
    """A key to be written, or deleted (`value` None)."""

    key: str
    value: bytes | None
    lease: int = 0


LONGEST_LEASE = 9_000_000_000
"""Seconds; etcd's own limit (server/lease/lessor.go, MaxLeaseTTL)."""


def encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def name_of(key: bytes) -> str:
    """The name of a key that etcd has told."""
    return key.decode("utf-8", "surrogateescape")


def below(prefix: str, name: str) -> str | None:
    """What the name of a key says after the prefix, in a form that can be shown: anybody may have written it. None when it does
    not begin so."""
    return printable(name[len(prefix) :]) if name.startswith(prefix) else None


def range_end(prefix: str) -> bytes:
    """What comes after every key that begins so (etcd's own way, clientv3.GetPrefixRangeEnd)."""
    key = encoded(prefix).rstrip(b"\xff")
    return key[:-1] + bytes([key[-1] + 1]) if key else b"\0"


def all_in(pairs: Iterable[Any]) -> dict[str, Held]:
    """The keys that these pairs of an answer hold, by name."""
    return {name_of(pair.key): Held(pair.value, pair.mod_revision, pair.lease) for pair in pairs}


def news_in(answer: Any) -> News:
    """What a `WatchResponse` says."""
    ended = None
    if answer.canceled or answer.compact_revision:
        ended = str(answer.cancel_reason) or f"compacted up to revision {answer.compact_revision}"
    changes = tuple(
        Change(name_of(event.kv.key), event.kv.value if event.type == PUT else None, event.kv.mod_revision)
        for event in answer.events
    )
    return News(changes, bool(answer.created), ended)
