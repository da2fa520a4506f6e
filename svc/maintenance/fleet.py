"""The fleet: when it may be believed that all of it has drained. Pure.

Each instance keeps a registration below the maintenance key, under a lease: it is there while etcd hears of the instance, and
gone soon after. In it stands an *acknowledgement*: the phase, and the revisions of the keys that the phase answers to. That it
belongs to the fleet is said by a second key, its *membership*, which outlives that lease by hours (`MEMBERSHIP`): it goes with a
clean stop, or when an operator says that the instance is no more. A member without a registration has *vanished*.

    <MAINTENANCE_KEY>                   the switch of all
    <MAINTENANCE_KEY>/only/<id>         the switch of one
    <MAINTENANCE_KEY>/instances/<id>    a registration
    <MAINTENANCE_KEY>/members/<id>      a membership

An answer is for one request. `Wait` believes an acknowledgement only when it names the revision that the request made, and was
itself written after it (a store that was restored counts its revisions anew). What an instance that has vanished was doing,
nobody can know: it is named. Nothing here does I/O or reads a clock.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from svc.maintenance.registration import Entry, base


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of the fleet, or of one instance."""

    on: bool
    revision: int
    """Of the key, as it was written (or deleted) for this."""
    instance: str | None = None
    """The one that was asked; None: all."""
    quiet: bool = False
    """It is enough to be quiet: nothing is at work, and nothing will be begun until the key is off."""


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
        if request.quiet and said.quiet and said.phase == "draining":
            return Answer.DONE
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
    members: tuple[str, ...] = ()
    """The ids of all memberships."""

    @property
    def vanished(self) -> tuple[str, ...]:
        """Members that are not heard of: killed, frozen, or cut off from etcd. What they do is not known."""
        return tuple(sorted(set(self.members) - {one.id for one in self.entries}))


class Result(Enum):
    """How a wait ended."""

    DONE = "done"
    EXPIRED = "expired"
    """Everybody has answered, and a drain ran out of time."""
    SUPERSEDED = "superseded"
    """The key was changed meanwhile: nobody will answer this request any more."""
    VANISHED = "vanished"
    """Everybody who is heard of has answered. Others have vanished, before or during the wait."""
    NONE = "none"
    """There is no instance, and none has vanished."""


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
    """Have vanished without a last word, before or during the wait. What they do is not known."""
    stopped: tuple[str, ...]
    """Have stopped by themselves meanwhile."""


_LAST_WORDS = ("stopped", "expired")
"""Phases in which an instance takes its registration away by itself."""


class Wait:
    """A request, and what is known of the fleet since: fed with everything that etcd tells, in its order."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._live: dict[str, Entry] = {}
        self._gone: dict[str, Entry] = {}
        self._members: set[str] = set()
        self._superseded = False

    def key(self, mod_revision: int) -> None:
        """The key of the request was last written then; 0: it is not there."""
        deleted = self.request.instance is not None and not self.request.on
        self._superseded = mod_revision != (0 if deleted else self.request.revision)

    def all(self, entries: Mapping[str, Entry], members: Collection[str] = ()) -> None:
        """These are all registrations and memberships that there are now."""
        for id in [id for id in self._live if id not in entries]:
            self.gone(id)
        for id in [id for id in self._members if id not in members]:
            self.no_member(id)
        for id in members:
            self.member(id)
        for one in entries.values():
            self.put(one)

    def put(self, one: Entry) -> None:
        """This registration is new, or has changed."""
        if self._concerns(one.id):
            self._live[one.id] = one
            self._gone.pop(one.id, None)

    def gone(self, id: str) -> None:
        """This one has vanished."""
        if (last := self._live.pop(id, None)) is not None:
            self._gone[id] = last

    def member(self, id: str) -> None:
        """This one belongs to the fleet."""
        if self._concerns(id):
            self._members.add(id)

    def no_member(self, id: str) -> None:
        """This one does not belong to it any more: it has stopped, or an operator knows that it is no more."""
        self._members.discard(id)
        if id in self._gone and self._gone[id].phase not in _LAST_WORDS:
            del self._gone[id]

    def _concerns(self, id: str) -> bool:
        return self.request.instance in (None, base(id))

    def standing(self) -> Standing:
        """How far it is."""
        answers = {id: answer(self.request, one) for id, one in sorted(self._live.items())}
        # The last word of one that stopped is of the drain of its stop. That ran out of time, whatever it was asked for.
        late = [id for id, one in sorted(self._gone.items()) if one.phase == "expired" and self.request.on]
        expired = tuple(late + [id for id, said in answers.items() if said is Answer.EXPIRED])
        waiting = tuple(id for id, said in answers.items() if said is Answer.NONE)
        stopped = tuple(sorted(id for id, one in self._gone.items() if one.phase == "stopped"))
        lost = {id for id, one in self._gone.items() if one.phase not in _LAST_WORDS}
        died = tuple(sorted(lost | (self._members - self._live.keys() - self._gone.keys())))
        result = None
        if self._superseded:
            result = Result.SUPERSEDED
        elif not waiting:
            if expired:
                result = Result.EXPIRED
            elif died:
                result = Result.VANISHED
            else:
                result = Result.DONE if self._live or stopped else Result.NONE
        return Standing(
            result=result,
            live=tuple(self._live[id] for id in answers),
            waiting=waiting,
            expired=expired,
            held=tuple(id for id, said in answers.items() if said is Answer.HELD),
            died=died,
            stopped=stopped,
        )
