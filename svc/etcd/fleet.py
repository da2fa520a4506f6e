"""The fleet as operators reach it through etcd: see it, switch it, and follow how it answers.

Everything is read as of one revision and followed from there, and read anew after every trouble, so that nothing falls between.
A change of the switch is a transaction on the key as it was looked at. What an answer means is decided in `fleet.py`, what may be
ordered in `maintenance/orders.py`.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
import trio

from svc.etcd.connection import Connection, connected, one_shot, within
from svc.etcd.errors import EtcdError, Trouble
from svc.etcd.keys import Found, Put, below
from svc.maintenance.fleet import Fleet, Request, Standing, Wait
from svc.maintenance.orders import NoSuchInstance, Order, OutOfReach, StillThere
from svc.maintenance.registration import Entry, base, entry, members, own_keys, registrations
from svc.settings import Settings

log = structlog.get_logger(__name__)

READ_AGAIN = 5.0
"""Seconds without news after which everything is read again: a watch on a frozen etcd is silent for ever."""

_CALL = 3.0
"""Seconds that one call may take while a fleet is followed."""

_PAUSE = 0.5
"""Seconds between attempts to reach etcd while a fleet is followed."""

_TRIES = 5
"""How often somebody else may change the key between our look at it and our writing."""


async def look(settings: Settings) -> Fleet:
    """The fleet now, by a read that the whole cluster answers for. Takes 5 s at most. Raises `EtcdError`."""
    key = settings.maintenance_key

    async def on(connection: Connection, _: object) -> Fleet:
        found = await connection.find([key], [registrations(key), members(key), own_keys(key)])
        held = found.keys[key]
        own = {}
        for name, one in found.keys.items():
            if (id := below(own_keys(key), name)) is not None and one.value is not None:
                own[id] = one.value
        return Fleet(
            value=held.value,
            mod_revision=held.mod_revision,
            expires_in=await connection.time_to_live(held.lease) if held.lease else None,
            own=own,
            entries=tuple(sorted(_entries(found, key).values(), key=lambda one: one.id)),
            revision=found.revision,
            members=tuple(sorted(_members(found, key))),
        )

    return await one_shot(settings, key, on)


async def ask(settings: Settings, order: Order) -> Request:
    """Switch as ordered; returns what the fleet has to answer. Takes 5 s at most. Raises `EtcdError`, `NotYours`,
    `NoSuchInstance`."""
    key = order.key(settings.maintenance_key)

    async def on(connection: Connection, _: object) -> Request:
        if order.instance is not None and order.on and not order.force:
            await _must_exist(connection, settings.maintenance_key, order.instance)
        lease, until = 0, None
        for _try in range(_TRIES):
            held = (await connection.find([key])).keys[key]
            order.check(held.value)
            if order.seconds is not None and not lease:
                lease = await connection.grant(order.seconds)
                ends = datetime.now(UTC) + timedelta(seconds=order.seconds)
                until = ends.isoformat(timespec="seconds").replace("+00:00", "Z")
            value = order.value(until)
            if value is None and not held.mod_revision:
                return Request(order.on, 0, order.instance, order.quiet)  # it is off; nobody has a revision to wait for
            done, found = await connection.change(Put(key, value, lease), since=held.mod_revision)
            if done:
                return Request(order.on, found.revision, order.instance, order.quiet)
        raise EtcdError(
            f"the key {key} was changed by somebody else {_TRIES} times running. Look at it, then try again."
        )

    return await one_shot(settings, settings.maintenance_key, on)


async def _must_exist(connection: Connection, key: str, instance: str) -> None:
    found = await connection.find([], [registrations(key), members(key)])
    known = sorted({base(id) for id in {*_entries(found, key), *_members(found, key)}})
    if instance not in known:
        raise NoSuchInstance(
            f"no instance {instance!r} is registered; there are {', '.join(known)}"
            if known
            else f"no instance {instance!r} is registered, nor any other"
        )


async def forget(settings: Settings, id: str) -> None:
    """End the membership of an instance that is no more. Takes 5 s at most. Raises `EtcdError`, `NoSuchInstance`,
    `StillThere`."""
    key = settings.maintenance_key

    async def on(connection: Connection, _: object) -> None:
        found = await connection.find([], [registrations(key), members(key)])
        if id in _entries(found, key):
            raise StillThere(f"instance {id!r} is registered, so it lives: stop it, and it leaves by itself")
        if id not in (known := _members(found, key)):
            vanished = sorted(known.keys() - _entries(found, key).keys())
            raise NoSuchInstance(
                f"no instance {id!r} has vanished; " + (f"there are {', '.join(vanished)}" if vanished else "none has")
            )
        await connection.delete(known[id])

    await one_shot(settings, key, on)


async def follow(
    settings: Settings,
    wait: Wait,
    tell: Callable[[Standing], None],
    *,
    trouble: Callable[[str], None] = lambda said: None,
) -> Standing:
    """Follow how the fleet answers, until it has; `tell` is called with each change. Waits as long as it takes: the caller has a
    bound. etcd's troubles do not end it, and are told to `trouble`."""
    while True:
        said = ""
        try:
            async with connected(settings, settings.maintenance_key, settings.etcd_endpoints) as (connection, _):
                return await _follow(connection, settings.maintenance_key, wait, tell)
        except EtcdError as error:
            said = str(error)
        except Trouble as error:
            said = error.said
        trouble(said)
        await trio.sleep(_PAUSE)


async def _follow(connection: Connection, key: str, wait: Wait, tell: Callable[[Standing], None]) -> Standing:
    watched = key if wait.request.instance is None else f"{own_keys(key)}{wait.request.instance}"
    start, belonging = registrations(key), members(key)
    found = await _read(connection, key, watched, wait)
    tell(standing := wait.standing())
    async with connection.watch([watched], found.revision + 1, prefixes=[start, belonging]) as stream:
        while standing.result is None:
            news = None
            with trio.move_on_after(READ_AGAIN):
                news = await stream.receive()
            if news is None:
                found = await _read(connection, key, watched, wait)
            elif isinstance(news, Trouble):
                raise news
            elif news.ended is not None:
                raise Trouble(f"etcd ended the watch: {news.ended}", "")
            else:
                for change in news.changes:
                    if change.revision <= found.revision:
                        continue  # a read was quicker
                    if change.key == watched:
                        wait.key(0 if change.value is None else change.revision)
                    elif (id := below(belonging, change.key)) is not None:
                        (wait.no_member if change.value is None else wait.member)(id)
                    elif (id := below(start, change.key)) is None:
                        continue
                    elif change.value is None:
                        wait.gone(id)
                    else:
                        wait.put(entry(id, change.value, change.revision))
            if (now := wait.standing()) != standing:
                tell(standing := now)
    return standing


async def _read(connection: Connection, key: str, watched: str, wait: Wait) -> Found:
    found = await within(_CALL, connection.find, [watched], [registrations(key), members(key)])
    wait.key(found.keys[watched].mod_revision)
    wait.all(_entries(found, key), _members(found, key))
    return found


def _members(found: Found, key: str) -> dict[str, str]:
    """Id → the name of the key."""
    return {
        id: name
        for name, held in found.keys.items()
        if (id := below(members(key), name)) is not None and held.value is not None
    }


def _entries(found: Found, key: str) -> dict[str, Entry]:
    there: dict[str, Entry] = {}
    for name, held in found.keys.items():
        if (id := below(registrations(key), name)) is not None and held.value is not None:
            there[id] = entry(id, held.value, held.mod_revision)
    return there


class Switchboard:
    """`look` and `ask` for who knows no etcd: a `switching.Switchboard`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def look(self) -> Fleet:
        try:
            return await look(self._settings)
        except EtcdError as error:
            raise _out_of_reach(error) from None

    async def ask(self, order: Order) -> Request:
        try:
            return await ask(self._settings, order)
        except EtcdError as error:
            raise _out_of_reach(error) from None


def _out_of_reach(error: EtcdError) -> OutOfReach:
    return OutOfReach(str(error), timed_out="answer within" in str(error))
