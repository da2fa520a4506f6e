"""A registration: what an instance says of itself to the fleet, as it is written and as it is read. Pure.

In it stands an *acknowledgement*: the phase, and the revisions of the keys that the phase answers to. What is read was written by
others, of other versions or by hand: it is understood or it is none, and what is kept of it is printable and bounded.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase
from svc.settings import printable

PHASES = ("starting", "running", "draining", "drained", "expired", "stopped", "blocked")
"""What an instance may say of itself. `stopped` is its last word, after a drain in which everything was finished. `blocked`: its
event loop stands still, most likely in a processor that computes or sleeps there, and it cannot act on anything."""

MEMBERSHIP = 12 * 3600.0
"""Seconds for which an instance that is not heard of any more still belongs to the fleet: as long as SQS lets anybody hold a
message. What it does after that with what it held, it does beside another."""


def own_key(maintenance_key: str, instance: str) -> str:
    """The switch of this instance alone."""
    return f"{own_keys(maintenance_key)}{instance}"


def own_keys(maintenance_key: str) -> str:
    """How the names of all such switches begin."""
    return f"{maintenance_key}/only/"


def registrations(maintenance_key: str) -> str:
    """How the names of all registrations begin."""
    return f"{maintenance_key}/instances/"


def members(maintenance_key: str) -> str:
    """How the names of the keys begin that say who belongs to the fleet, alive or not."""
    return f"{maintenance_key}/members/"


def suffixed(id: str, token: str) -> str:
    """Under what a process registers whose id is taken by another: most likely by its predecessor, which died a moment ago."""
    return f"{id}~{token[:6]}"


def base(id: str) -> str:
    """The id that an instance was given, whose own key it watches."""
    return id.partition("~")[0]


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What an instance has made of the keys."""

    phase: str
    """One of `PHASES`."""
    revision: int | None
    """Revision of the maintenance key that the phase answers to; None: not read yet."""
    own_revision: int | None
    """The same of the instance's own key."""
    in_flight: int
    """Messages in flight."""
    keys: tuple[str, ...] = ()
    """Which keys are on, as far as it knows: `all`, `instance`."""
    drain: Mapping[str, object] | None = None
    """How the last drain ended."""
    quiet: bool = False
    """Nothing is at work, and nothing will be begun until the key is off. Versions before this field do not say it."""
    receives: int = 0
    """In a drain: receives on the wire."""


def acknowledgement(state: MaintenanceState, *, in_flight: int, receives: int = 0) -> Acknowledgement:
    """What there is to say in this state."""
    acted, report = state.acted, state.drain
    expired = report is not None and report.outcome is DrainOutcome.EXPIRED
    match state.phase:
        case Phase.STARTING | Phase.RUNNING:
            phase = state.phase.value
        case Phase.DRAINING | Phase.STOPPING:
            phase = "draining"
        case Phase.MAINTENANCE:
            phase = "expired" if expired else "drained"
        case Phase.STOPPED:
            phase = "expired" if expired else "stopped"
    ended = report is not None and report.ended is not None
    return Acknowledgement(
        phase,
        acted.revision,
        acted.own_revision,
        in_flight,
        state.keys_in_force,
        drain_in_short(report) if report and ended else None,
        state.quiet,
        receives if phase == "draining" else 0,
    )


def drain_in_short(report: DrainReport) -> dict[str, object]:
    """A drain report that has its place in a registration: figures, and no list of ids."""
    figures = report.handlers.get("sqs", {})
    shown: dict[str, object] = {"cause": report.cause, "outcome": report.outcome.value}
    if report.ended is not None:
        shown["seconds"] = round(report.ended - report.began, 3)
    for name in ("in_flight", "completed", "failed", "released", "rejected", "lost"):
        if isinstance(value := figures.get(name), int):
            shown[name] = value
    for name in ("timed_out", "unsettled", "last_receives_returned"):
        if isinstance(ids := figures.get(name), tuple):
            shown[name] = len(ids)
    if isinstance(threads := figures.get("threads"), Mapping):
        shown["threads"] = len(threads)
    if report.error:
        shown["error"] = report.error[:300]
    return shown


@dataclass(frozen=True, slots=True)
class Registration:
    """What an instance says of itself."""

    id: str
    host: str
    pid: int
    version: str
    started: str
    """RFC 3339."""
    queue: str
    token: str
    """Of this process: tells it from another that was given the same id."""
    acknowledgement: Acknowledgement = field(default_factory=lambda: Acknowledgement("starting", None, None, 0))

    def value(self) -> bytes:
        """As it stands in etcd."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def registration(value: bytes) -> Registration:
    """What the value of a registration's key says. Raises ValueError."""
    try:
        held = json.loads(value)
    except RecursionError:
        raise ValueError("not a registration") from None
    if not isinstance(held, dict) or not isinstance(told := held.get("acknowledgement"), dict):
        raise ValueError("not a registration")
    keys, drain, quiet = told.get("keys"), told.get("drain"), told.get("quiet", False)
    if (
        told.get("phase") not in PHASES
        or not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or not (drain is None or isinstance(drain, dict))
        or not isinstance(quiet, bool)
    ):
        raise ValueError("not a registration")
    said = Acknowledgement(
        told["phase"],
        None if told.get("revision") is None else _number(told, "revision"),
        None if told.get("own_revision") is None else _number(told, "own_revision"),
        _number(told, "in_flight"),
        tuple(_shortened(key) for key in keys[:10]),
        None if drain is None else _figures(drain),
        quiet,
        _number(told, "receives") if "receives" in told else 0,
    )
    texts = {name: _text(held, name) for name in ("id", "host", "version", "started", "queue", "token")}
    return Registration(**texts, pid=_number(held, "pid"), acknowledgement=said)


LONGEST_TEXT = 500
"""Characters that are kept of a text of somebody else's registration."""


def _text(held: Mapping[str, object], name: str) -> str:
    if not isinstance(value := held.get(name), str):
        raise ValueError("not a registration")
    return _shortened(value)


def _number(held: Mapping[str, object], name: str) -> int:
    value = held.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError("not a registration")
    return value


def _figures(drain: Mapping[str, object]) -> dict[str, object]:
    """Of what is said of a drain that which can be shown: texts and numbers."""
    shown: dict[str, object] = {}
    for name, value in list(drain.items())[:20]:
        if isinstance(value, str):
            shown[_shortened(name)] = _shortened(value)
        elif value is None or isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
            shown[_shortened(name)] = value
    return shown


def _shortened(text: str) -> str:
    return printable(text[:LONGEST_TEXT])


@dataclass(frozen=True, slots=True)
class Entry:
    """A registration that stands in etcd."""

    id: str
    held: Registration | None
    """None: what stands there is no registration that this version can read."""
    revision: int
    """At which it was last written."""

    @property
    def phase(self) -> str:
        return self.held.acknowledgement.phase if self.held else "unreadable"

    @property
    def token(self) -> str | None:
        return self.held.token if self.held else None

    @property
    def in_flight(self) -> int | None:
        return self.held.acknowledgement.in_flight if self.held else None


def entry(id: str, value: bytes, revision: int) -> Entry:
    """What stands in etcd under an instance's name."""
    try:
        return Entry(id, registration(value), revision)
    except ValueError:
        return Entry(id, None, revision)


def described(base: Registration, state: MaintenanceState, *, in_flight: int, receives: int = 0) -> Registration:
    """The registration of an instance in this state."""
    return replace(base, acknowledgement=acknowledgement(state, in_flight=in_flight, receives=receives))
