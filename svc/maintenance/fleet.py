"""The fleet: what an instance says of itself, and when it may be believed that all of it has drained. Pure.

Each instance keeps a registration below the maintenance key, under a lease: it is there while etcd hears of the instance, and
gone soon after. In it stands an *acknowledgement*: the phase, and the revisions of the keys that the phase answers to.

    <MAINTENANCE_KEY>                   the switch of all
    <MAINTENANCE_KEY>/only/<id>         the switch of one
    <MAINTENANCE_KEY>/instances/<id>    a registration

An answer is for one request. `Wait` believes an acknowledgement only when it names the revision that the request made, and was
itself written after it (a store that was restored counts its revisions anew). What an instance that has vanished was doing,
nobody can know: it is named. Nothing here does I/O or reads a clock.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

from svc.maintenance.handler import DrainOutcome, DrainReport
from svc.maintenance.manager import MaintenanceState
from svc.maintenance.phases import Phase

PHASES = ("starting", "running", "draining", "drained", "expired", "stopped")
"""What an instance may say of itself. `stopped` is its last word, after a drain in which everything was finished."""


def own_key(maintenance_key: str, instance: str) -> str:
    """The switch of this instance alone."""
    return f"{own_keys(maintenance_key)}{instance}"


def own_keys(maintenance_key: str) -> str:
    """How the names of all such switches begin."""
    return f"{maintenance_key}/only/"


def registrations(maintenance_key: str) -> str:
    """How the names of all registrations begin."""
    return f"{maintenance_key}/instances/"


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


def acknowledgement(state: MaintenanceState, *, in_flight: int) -> Acknowledgement:
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
    for name in ("timed_out", "unsettled"):
        if isinstance(ids := figures.get(name), tuple):
            shown[name] = len(ids)
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
    held = json.loads(value)
    if not isinstance(held, dict) or not isinstance(told := held.get("acknowledgement"), dict):
        raise ValueError("not a registration")
    texts = {name: held[name] for name in ("id", "host", "version", "started", "queue", "token") if name in held}
    numbers = (held.get("pid"), told.get("in_flight"))
    revisions = (told.get("revision"), told.get("own_revision"))
    if (
        len(texts) != 6
        or not all(isinstance(text, str) for text in texts.values())
        or not all(isinstance(number, int) for number in numbers)
        or not all(revision is None or isinstance(revision, int) for revision in revisions)
        or told.get("phase") not in PHASES
        or not isinstance(keys := told.get("keys"), list)
        or not all(isinstance(key, str) for key in keys)
        or not (told.get("drain") is None or isinstance(told["drain"], dict))
    ):
        raise ValueError("not a registration")
    said = Acknowledgement(told["phase"], *revisions, told["in_flight"], tuple(keys), told.get("drain"))
    return Registration(**texts, pid=held["pid"], acknowledgement=said)


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
    except (ValueError, RecursionError):
        return Entry(id, None, revision)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of the fleet, or of one instance."""

    on: bool
    revision: int
    """Of the key, as it was written (or deleted) for this."""
    instance: str | None = None
    """The one that was asked; None: all."""


class Answer(Enum):
    """What an instance has made of a request."""

    NONE = "none"
    """It has not acted on it yet, or is not done."""
    DONE = "done"
    EXPIRED = "expired"
    """It is in maintenance, and its drain ran out of time."""
    HELD = "held"
    """It has acted on it, and is kept in maintenance by its other key."""


def answer(request: Request, seen: Entry) -> Answer:
    """What this registration says about the request."""
    if seen.held is None or seen.revision <= request.revision:
        return Answer.NONE  # written before the request: whatever it says, it is no answer
    said = seen.held.acknowledgement
    revision = said.revision if request.instance is None else said.own_revision
    if revision is None:
        return Answer.NONE
    # A switch of one is deleted to switch it off; an absent key has no revision but that at which it was seen to be absent.
    acted = revision >= request.revision if request.instance and not request.on else revision == request.revision
    if not acted:
        return Answer.NONE
    if request.on:
        return {"drained": Answer.DONE, "stopped": Answer.DONE, "expired": Answer.EXPIRED}.get(said.phase, Answer.NONE)
    if said.phase == "running":
        return Answer.DONE
    return Answer.HELD if ("instance" if request.instance is None else "all") in said.keys else Answer.NONE


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that etcd knows of it, as of one moment."""

    value: bytes | None
    """Of the maintenance key; None: there is no such key."""
    mod_revision: int
    """Revision at which that was written; 0: there is no such key."""
    expires_in: float | None
    """Seconds until etcd deletes the maintenance key by itself; None: it does not."""
    own: Mapping[str, bytes]
    """The switches of single instances that there are, by instance."""
    entries: tuple[Entry, ...]
    """By id."""
    revision: int
    """Of the store, at which this is true."""


class Result(Enum):
    """How a wait ended."""

    DONE = "done"
    EXPIRED = "expired"
    """Everybody has answered, and a drain ran out of time."""
    SUPERSEDED = "superseded"
    """The key was changed meanwhile: nobody will answer this request any more."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a wait is."""

    result: Result | None
    """None: not at its end."""
    live: tuple[Entry, ...]
    """By id."""
    waiting: tuple[str, ...]
    expired: tuple[str, ...]
    held: tuple[str, ...]
    """Kept in maintenance by their other key."""
    died: tuple[str, ...]
    """Have vanished without a last word: killed, frozen, or cut off from etcd. What they do is not known."""
    stopped: tuple[str, ...]
    """Have stopped by themselves meanwhile."""


class Wait:
    """A request, and what is known of the fleet since: fed with everything that etcd tells, in its order."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._live: dict[str, Entry] = {}
        self._gone: dict[str, Entry] = {}
        self._superseded = False

    def key(self, mod_revision: int) -> None:
        """The key of the request was last written then; 0: it is not there."""
        deleted = self.request.instance is not None and not self.request.on
        self._superseded = mod_revision != (0 if deleted else self.request.revision)

    def all(self, entries: Mapping[str, Entry]) -> None:
        """These are all that there are now."""
        for id in [id for id in self._live if id not in entries]:
            self.gone(id)
        for one in entries.values():
            self.put(one)

    def put(self, one: Entry) -> None:
        """This registration is new, or has changed."""
        if self.request.instance in (None, base(one.id)):
            self._live[one.id] = one
            self._gone.pop(one.id, None)

    def gone(self, id: str) -> None:
        """This one has vanished."""
        if (last := self._live.pop(id, None)) is not None:
            self._gone[id] = last

    def standing(self) -> Standing:
        """How far it is."""
        answers = {id: answer(self.request, one) for id, one in sorted(self._live.items())}
        # The last word of one that stopped is of the drain of its stop. That ran out of time, whatever it was asked for.
        late = [id for id, one in sorted(self._gone.items()) if one.phase == "expired" and self.request.on]
        expired = tuple(late + [id for id, said in answers.items() if said is Answer.EXPIRED])
        waiting = tuple(id for id, said in answers.items() if said is Answer.NONE)
        result = None
        if self._superseded:
            result = Result.SUPERSEDED
        elif not waiting:
            result = Result.EXPIRED if expired else Result.DONE
        return Standing(
            result=result,
            live=tuple(self._live[id] for id in answers),
            waiting=waiting,
            expired=expired,
            held=tuple(id for id, said in answers.items() if said is Answer.HELD),
            died=tuple(sorted(id for id, one in self._gone.items() if one.phase not in ("stopped", "expired"))),
            stopped=tuple(sorted(id for id, one in self._gone.items() if one.phase == "stopped")),
        )


def described(base: Registration, state: MaintenanceState, *, in_flight: int) -> Registration:
    """The registration of an instance in this state."""
    return replace(base, acknowledgement=acknowledgement(state, in_flight=in_flight))
