"""The registration of this instance in etcd: written under a lease that is kept alive, removed at a clean stop. And its
membership, which says that there is this instance, under a lease of hours.

Level-triggered: what is written is how things stand when it is written. A change of the phase, or of the revision that it answers
to, is written at once, though not within half a second of the last write; the figure of the messages in flight rarely, because it
changes all the time (`PACE`). Each write is conditional on the key being as this process left it, so that two processes with one
id find each other out instead of answering for each other.

A registration is kept true: its two keys are watched, and what is not as it was left is written again. They are read too, rarely
(`LOOK_EVERY`), for the case that the watch has missed something; with each renewal of the lease where there is no watch.

Whatever goes wrong - etcd gone, the lease over, no permission - has one answer: a new connection, a new lease if the old one has
run out, and the same from the start. Nothing waits for it, except for the fence at the start and after a standstill, and that for
one attempt.
"""

import contextlib
import json
import math
import os
import random
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
import trio

from svc import __version__
from svc.backoff import backoff
from svc.etcd.connection import connected, within
from svc.etcd.errors import EtcdError, Trouble
from svc.etcd.keys import Held, Put
from svc.etcd.link import Connect, Link
from svc.etcd.own_keys import OwnKeys
from svc.maintenance.registration import (
    MEMBERSHIP,
    Acknowledgement,
    Registration,
    entry,
    members,
    registrations,
    suffixed,
)
from svc.settings import Settings
from svc.wakeup import WakeUp

log = structlog.get_logger(__name__)

AT_MOST_EVERY = 0.5
"""Seconds between two writes."""

PACE = {"draining": 2.0}
"""Seconds between two writes of the messages in flight alone, by phase: somebody may be looking on while they fall."""

USUAL_PACE = 60.0
"""The same in all other phases. A thousand instances at work must not cost etcd more than some writes a second."""

LOOK_EVERY = 30.0
"""Seconds between two reads of our own keys while they are watched."""

_CALL = 3.0
"""Seconds that one call may take."""

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 2.0
"""Seconds before the first and between further attempts; with `_CALL` within the shortest lease of 5 s."""

_DENIED_DELAY = 30.0
"""Seconds between attempts while etcd is well and does not let us: that takes an operator. Less when the lease is short: it asks
for no permission, and kept alive it keeps the registration in its place meanwhile."""

_LAST_WORD = 1.5
"""Seconds that taking the registration and the membership away may take; their leases do it otherwise."""


@dataclass(frozen=True, slots=True)
class RegistrarSnapshot:
    """How the registration stands."""

    id: str
    """Under which this instance is, or would be, registered."""
    registered: bool
    error: str | None
    """Why not, or what went wrong last."""


def identity(settings: Settings, name: str | None = None) -> Registration:
    """Who this process is. `name`: what it is called where it runs, if anything; INSTANCE_ID goes first."""
    host, pid, token = socket.gethostname(), os.getpid(), secrets.token_hex(8)
    return Registration(
        id=settings.instance_id or name or f"{host}-{pid}-{token[:4]}",
        host=host,
        pid=pid,
        version=__version__,
        started=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        queue=settings.sqs_queue_url,
        token=token,
    )


class Registrar:
    """`describe` gives the registration as it is; `changed` notifies when that may have changed. `on_settled` is called with the
    Trio time at which an attempt to register, or to confirm the registration when asked (`look_again`), began that has ended now,
    and whether etcd has answered: it stands, or is refused."""

    def __init__(
        self,
        settings: Settings,
        describe: Callable[[], Registration],
        changed: WakeUp,
        on_settled: Callable[[float, bool], None],
        *,
        connect: Connect = connected,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._describe = describe
        self._changed = changed
        self._on_settled = on_settled
        self._taken = False
        self._call = min(_CALL, settings.instance_ttl / 3)
        self._denied_delay = min(_DENIED_DELAY, settings.instance_ttl / 3)
        self._lease = self._member_lease = 0
        self._member_revision = 0
        self._renewed_at = -math.inf
        self._revision = 0  # of our key, as we left it; 0: it is not there
        self._said: Acknowledgement | None = None
        self._wrote_at = self._confirmed_at = self._looked_at = -math.inf
        self._own = OwnKeys(changed.notify)
        self._asked = trio.Event()
        self._registered = False
        self._error: str | None = None
        self._told = False
        self._told_undone = False
        self._rng = rng or random.Random()
        self._endpoints = list(settings.etcd_endpoints)
        self._rng.shuffle(self._endpoints)

    def snapshot(self) -> RegistrarSnapshot:
        """How things stand now."""
        return RegistrarSnapshot(self._now().id, self._registered, self._error)

    def look_again(self) -> None:
        """Confirm the registration now: this process may have been given up. Does not wait."""
        self._asked.set()
        self._changed.notify()

    def blocked(self) -> None:
        """The loop is blocked: nothing can be done in it."""

    async def run(self) -> None:
        """Keep the registration until cancelled. etcd's troubles never end it."""
        failures = 0
        while True:
            self._asked = trio.Event()
            began, denied, refused = trio.current_time(), False, False
            try:
                async with self._connect(self._settings, self._settings.maintenance_key, self._endpoints) as (
                    connection,
                    _,
                ):
                    await self._have_lease(connection)
                    await self._write(connection)
                    await self._belong(connection)
                    self._confirmed(began)
                    failures = 0
                    await self._keep(connection)
            except EtcdError as error:
                self._lost(str(error))
            except Trouble as trouble:
                denied, refused = trouble.denied, trouble.refused
                self._lost(f"{trouble.said}. {trouble.remedy}".rstrip(". ") + ".")
            self._on_settled(began, refused)
            self._endpoints.append(self._endpoints.pop(0))
            failures += 1
            pause = backoff(failures, first=_FIRST_DELAY, cap=_LONGEST_DELAY, rng=self._rng)
            with trio.move_on_after(self._denied_delay if denied else pause):
                await self._asked.wait()

    async def close(self) -> None:
        """Say the last word and take the registration away. Takes 1.5 s at most; call it when `run` has ended."""
        if not self._lease:
            return
        with trio.move_on_after(_LAST_WORD, shield=True):
            try:
                async with self._connect(self._settings, self._settings.maintenance_key, self._endpoints) as (
                    connection,
                    _,
                ):
                    with contextlib.suppress(Trouble):  # the lease has run out, or a permission is missing
                        await self._write(connection)
                    # The membership first: who sees the registration go, and that stay, takes us for vanished.
                    for lease in (self._member_lease, self._lease):
                        if lease:
                            with contextlib.suppress(Trouble):
                                await connection.revoke(lease)
            except EtcdError as error:
                log.debug("the registration could not be taken away; its lease ends it", error=str(error))

    async def _keep(self, connection: Link) -> None:
        """Keep it true and alive until something goes wrong: raises `Trouble`."""
        trouble: Trouble | None = None
        self._looked_at = trio.current_time()
        async with connection.watch(self._keys(), self._revision + 1) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._own.follow, stream)
            try:
                await self._renew(connection)
            except Trouble as raised:
                trouble = raised
            nursery.cancel_scope.cancel(reason="something went wrong")
        if trouble is not None:
            raise trouble  # out here, where no nursery wraps it

    async def _renew(self, connection: Link) -> None:
        """Write what changes, and keep the lease alive, until something goes wrong: raises `Trouble`."""
        while True:
            await self._changed.wait(self._next)
            now, asked = trio.current_time(), self._asked.is_set()
            renew = asked or now >= self._confirmed_at + self._settings.instance_ttl / 3
            if renew:
                self._asked = trio.Event()
                if not await within(self._call, connection.keep_alive, self._lease):
                    raise Trouble("the lease of the registration has run out", "")
            look = asked or (renew and (not self._own.watched or now >= self._looked_at + LOOK_EVERY))
            if look or self._mend_at() <= now:
                self._looked_at = now
                self._own.look()
                await self._keep_true(connection)
            if renew:
                self._confirmed(now, tell=asked)
            if (due := self._due()) is not None and due <= trio.current_time():
                await self._write(connection)

    def _mend_at(self) -> float:
        """When to look what became of our keys; infinite while they are as we left them, for all that is known."""
        key, member = self._keys()
        if self._own.changed({key: self._revision, member: self._member_revision}):
            return max(self._wrote_at, self._renewed_at, self._looked_at) + AT_MOST_EVERY
        return math.inf

    def _keys(self) -> tuple[str, str]:
        """That of the registration, and that of the membership."""
        maintenance_key, id = self._settings.maintenance_key, self._now().id
        return registrations(maintenance_key) + id, members(maintenance_key) + id

    async def _have_lease(self, connection: Link) -> None:
        """The lease that we have, if it has not run out, or a new one."""
        if not self._lease or not await within(self._call, connection.keep_alive, self._lease):
            self._lease = await within(self._call, connection.grant, self._settings.instance_ttl)

    async def _belong(self, connection: Link) -> None:
        """Say that this instance belongs to the fleet, for as long as `MEMBERSHIP` from now."""
        if not self._member_lease or not await within(self._call, connection.keep_alive, self._member_lease):
            self._member_lease = await within(self._call, connection.grant, MEMBERSHIP)
        now = self._now()
        value = json.dumps({"id": now.id, "host": now.host, "token": now.token}).encode()
        key = members(self._settings.maintenance_key) + now.id
        self._member_revision = await within(self._call, connection.put, key, value, self._member_lease)
        self._renewed_at = trio.current_time()

    async def _keep_true(self, connection: Link) -> None:
        """Whatever was done to our keys meanwhile - deleted, overwritten, bound to another lease - they are written again."""
        id, (key, member) = self._now().id, self._keys()
        # One that the whole cluster answers for: a member may be behind, and a proxy answers others from its memory.
        held = (await within(self._call, connection.find, [key, member])).keys
        registered = (held[key].mod_revision, held[key].lease) == (self._revision, self._lease)
        belongs = (held[member].mod_revision, held[member].lease) == (self._member_revision, self._member_lease)
        if registered and belongs:
            self._told_undone = False
        else:
            tell = log.debug if self._told_undone else log.warning
            self._told_undone = True
            tell("the registration was deleted or changed by somebody else: writing it again", instance=id)
        if not registered:
            await self._write(connection)
        if not belongs or trio.current_time() >= self._renewed_at + MEMBERSHIP / 4:
            await self._belong(connection)

    def _confirmed(self, began: float, *, tell: bool = True) -> None:
        self._confirmed_at = began
        self._registered = True
        if self._told:
            log.info("registered again", instance=self._now().id)
        self._told = False
        if tell:  # a renewal that nobody asked for is no news, and would wake the service up
            self._on_settled(began, True)

    def _next(self) -> float:
        """When there is something to do."""
        if self._asked.is_set():
            return trio.current_time()
        keep_alive = self._confirmed_at + self._settings.instance_ttl / 3
        due = self._due()
        return min(keep_alive, self._mend_at(), due if due is not None else trio.current_time() + self._pace())

    def _now(self) -> Registration:
        held = self._describe()
        return replace(held, id=suffixed(held.id, held.token)) if self._taken else held

    def _due(self) -> float | None:
        """When to write what there is to say; None when it has been said."""
        now, said = self._describe().acknowledgement, self._said
        if now == said:
            return None
        only_figures = said is not None and now == replace(said, in_flight=now.in_flight, receives=now.receives)
        return self._wrote_at + (self._pace() if only_figures else AT_MOST_EVERY)

    def _pace(self) -> float:
        return PACE.get(self._said.phase, USUAL_PACE) if self._said is not None else USUAL_PACE

    async def _write(self, connection: Link) -> None:
        """Write how things stand now. Raises `Trouble`."""
        for _ in range(4):
            told = self._now()
            key = registrations(self._settings.maintenance_key) + told.id
            put = Put(key, told.value(), self._lease)
            done, found = await within(self._call, connection.change, put, since=self._revision)
            if done:
                self._revision = found.revision
                self._said = told.acknowledgement
                self._wrote_at = trio.current_time()
                return
            held = found.keys[key]
            if held.mod_revision and self._is_anothers(held, told.token):
                log.warning("another process is registered under this id: taking another one", instance=told.id)
                self._taken, self._revision, self._own.watched = True, 0, False  # those of another name are not
            else:
                self._revision = held.mod_revision  # a write without an answer was done, or the lease has run out
        raise Trouble(
            "the registration changes under our hands", "Give each instance an INSTANCE_ID of its own.", refused=True
        )

    def _is_anothers(self, held: Held, token: str) -> bool:
        """Whether another process keeps it. What is bound to no lease nobody keeps, whatever it says."""
        return held.lease not in (0, self._lease) and entry("", held.value or b"", 0).token != token

    def _lost(self, error: str) -> None:
        self._error, self._registered = error, False
        if self._told:
            log.debug("not registered", error=error)
            return
        self._told = True
        log.warning("the fleet does not see this instance until it is registered; work goes on", error=error)
