"""Registrations and the operator's side of the fleet, against a real etcd."""

import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
import structlog
import trio

from svc.devstack.stack import Etcd, etcd_binary
from svc.etcd import fleet as etcd_fleet
from svc.etcd import watcher as etcd_switch
from svc.etcd.connection import connected
from svc.etcd.errors import EtcdError
from svc.etcd.keys import Put
from svc.etcd.registration import AT_MOST_EVERY, Registrar, identity
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.fleet import Request, Result, Standing, Wait
from svc.maintenance.orders import NoSuchInstance, NotYours, Order, StillThere
from svc.maintenance.registration import (
    MEMBERSHIP,
    Acknowledgement,
    Entry,
    Registration,
    members,
    own_key,
    registrations,
)
from svc.settings import Settings, load
from svc.wakeup import WakeUp
from tests.etcd_proxy import GrpcProxy


def settings(endpoint: str, key: str, **more: str) -> Settings:
    return load({"ETCD_ENDPOINTS": endpoint, "MAINTENANCE_KEY": key, "INSTANCE_TTL": "5", **more})


def ctl_now(held: Etcd, *words: str) -> str:
    command = [etcd_binary("etcdctl"), f"--endpoints={held.endpoint}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def ctl(held: Etcd, *words: str) -> str:
    return await trio.to_thread.run_sync(ctl_now, held, *words)


class Instance:
    """A registrar, and what it is to say."""

    def __init__(self, its: Settings, id: str = "a", token: str | None = None) -> None:
        self.settings = its
        self.base: Registration = replace(identity(its), id=id, **({"token": token} if token else {}))
        self.said = Acknowledgement("running", None, None, 0)
        self.changed = WakeUp()
        self.settled: list[tuple[float, bool]] = []
        self.registrar = Registrar(
            its, lambda: replace(self.base, acknowledgement=self.said), self.changed, self._settled
        )

    def _settled(self, began: float, answered: bool) -> None:
        self.settled.append((began, answered))

    def say(self, phase: str, revision: int | None = None, *, in_flight: int = 0) -> None:
        self.said = Acknowledgement(phase, revision, None, in_flight)
        self.changed.notify()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Instance"]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.registrar.run)
            await until(lambda: self.registrar.snapshot().registered)
            yield self
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.02)


async def entries(its: Settings) -> dict[str, Entry]:
    return {held.id: held for held in (await etcd_fleet.look(its)).entries}


async def until_there(its: Settings, satisfied: Callable[[dict[str, Entry]], bool], seconds: float = 15) -> None:
    with trio.fail_after(seconds):
        while not satisfied(await entries(its)):
            await trio.sleep(0.05)


@pytest.fixture
def own() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


# -- the registration --


async def test_it_is_there_follows_changes_and_goes(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    instance = Instance(its)
    async with instance.running():
        held = (await entries(its))["a"]
        assert held.held == replace(instance.base, acknowledgement=instance.said)
        instance.say("draining", 7, in_flight=3)
        await until_there(its, lambda there: (there["a"].phase, there["a"].in_flight) == ("draining", 3))
        assert len(instance.settled) >= 1
    assert "a" in await entries(its)  # nobody took it away; the lease would
    instance.say("stopped", 7)
    await instance.registrar.close()
    assert await entries(its) == {}


async def test_changes_in_quick_succession_are_few_writes_and_the_last_one_counts(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        began = trio.current_time()
        for number in range(100):
            instance.say("draining" if number % 2 else "running", number)
            await trio.sleep(0.01)
        instance.say("drained", 100)
        await until_there(its, lambda there: there["a"].phase == "drained")
        took = trio.current_time() - began
        key = registrations(key_prefix) + "a"
        version = int((await ctl(etcd, "get", key, "-w", "fields")).split('"Version" : ')[1].split()[0])
        assert version <= 2 + took / AT_MOST_EVERY


async def test_messages_in_flight_alone_are_rarely_written(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        written = (await entries(its))["a"].revision
        for number in range(20):
            instance.say("running", in_flight=number)
            await trio.sleep(0.05)
        assert (await entries(its))["a"].revision == written


async def test_a_lease_that_was_lost_is_replaced(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        await ctl(etcd, "lease", "revoke", f"{instance.registrar._lease:x}")
        assert await entries(its) == {}
        instance.registrar.look_again()  # as after a standstill; else within a third of the lease's time
        await until_there(its, lambda there: "a" in there)
        before = (await entries(its))["a"].revision
        await trio.sleep(6)  # longer than the lease
        assert (await entries(its))["a"].revision == before


async def test_a_second_process_with_the_same_id_takes_another(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with (
        Instance(its, token="first-token").running() as first,
        Instance(its, token="second-token").running() as second,
    ):
        first.say("drained", 5)
        second.say("running", 4)
        await until_there(
            its,
            lambda there: {id: held.phase for id, held in there.items()} == {"a": "drained", "a~second": "running"},
        )
        assert second.registrar.snapshot().id == "a~second"
        # Both watch the key of the id that they were given: switched by itself, it has two to answer.
        wait = Wait(await etcd_fleet.ask(its, Order(True, instance="a")))
        wait.all(await entries(its))
        assert wait.standing().waiting == ("a", "a~second")


async def test_etcd_goes_and_comes_back(own: Etcd, key_prefix: str) -> None:
    its = settings(own.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        own.kill()
        settled = len(instance.settled)
        instance.registrar.look_again()
        await until(lambda: len(instance.settled) > settled + 1)
        assert instance.settled[-1][1] is False
        assert not instance.registrar.snapshot().registered
        instance.say("draining", 9)
        await trio.to_thread.run_sync(lambda: own.restart(wipe=True))
        await until_there(its, lambda there: "a" in there and there["a"].phase == "draining")


async def test_an_old_write_cannot_overtake_a_new_one(etcd: Etcd, key_prefix: str) -> None:
    """Each write names the revision that it replaces: one that was given up, and arrives later, changes nothing."""
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        since = instance.registrar._revision
        instance.say("drained", 7)
        await until_there(its, lambda there: there["a"].phase == "drained")
        async with connected(its, key_prefix, its.etcd_endpoints) as (connection, _):
            late = Put(registrations(key_prefix) + "a", b"late", instance.registrar._lease)
            done, _found = await connection.change(late, since=since)
        assert not done
        assert (await entries(its))["a"].phase == "drained"


@pytest.fixture
def guarded(key_prefix: str) -> Iterator[Etcd]:
    """An etcd whose user `svc` may use the maintenance key, and nothing beside it; `fleet` has what the README says."""
    with Etcd() as running:
        for words in (
            "user add root:rootpass",
            "user grant-role root root",
            "role add switch",
            f"role grant-permission switch readwrite {key_prefix}m",
            "user add svc:s3cr3t-word",
            "user grant-role svc switch",
            "role add instance",
            f"role grant-permission instance read {key_prefix}m",
            f"role grant-permission --prefix instance readwrite {key_prefix}m/",
            "user add fleet:s3cr3t-word",
            "user grant-role fleet instance",
            "auth enable",
        ):
            command = [etcd_binary("etcdctl"), f"--endpoints={running.endpoint}", *words.split()]
            subprocess.run(command, check=True, capture_output=True)
        yield running


@pytest.mark.slow
async def test_without_the_permission_the_switch_works_and_the_fleet_does_not_see_it(
    guarded: Etcd, key_prefix: str
) -> None:
    key = f"{key_prefix}m"
    its = settings(guarded.endpoint, key, ETCD_USERNAME="svc", ETCD_PASSWORD="s3cr3t-word")
    instance, seen, own = Instance(its), list[bytes | None](), list[bytes | None]()
    watcher = KeyWatcher(
        its,
        lambda value, _: seen.append(value),
        own_key=own_key(key, "a"),
        on_own_value=lambda value, _: own.append(value),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instance.registrar.run)
        await nursery.start(watcher.run)
        await until(lambda: bool(instance.settled))
        assert instance.settled[-1][1] is True  # refused, which is an answer
        await etcd_switch.write(its, key, b"on")
        await until(lambda: seen[-1] == b"on")
        assert own == []
        assert not instance.registrar.snapshot().registered
        assert "Grant the user" in (instance.registrar.snapshot().error or "")
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_with_the_permissions_that_the_readme_names_it_takes_part(guarded: Etcd, key_prefix: str) -> None:
    key = f"{key_prefix}m"
    its = settings(guarded.endpoint, key, ETCD_USERNAME="fleet", ETCD_PASSWORD="s3cr3t-word")
    told: list[str] = []
    watcher = KeyWatcher(
        its, lambda *_: told.append("all"), own_key=own_key(key, "a"), on_own_value=lambda *_: told.append("own")
    )
    async with Instance(its).running() as instance, trio.open_nursery() as nursery:
        await nursery.start(watcher.run)
        assert told == ["own", "all"]
        assert list(await entries(its)) == ["a"]
        await instance.registrar.close()
        nursery.cancel_scope.cancel()
    assert await entries(its) == {}


# -- the switch of one --


async def test_the_watcher_tells_both_keys_apart_with_their_revisions(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    told: list[tuple[str, bytes | None, int]] = []
    mine = own_key(key_prefix, "a")
    watcher = KeyWatcher(
        its,
        lambda value, revision: told.append(("all", value, revision)),
        own_key=mine,
        on_own_value=lambda value, revision: told.append(("own", value, revision)),
    )
    first = await write(its, key_prefix, b"off")
    async with trio.open_nursery() as nursery:
        await nursery.start(watcher.run)
        assert [name for name, _, _ in told] == ["own", "all"]  # its own first: a start must not be between them
        assert told[1] == ("all", b"off", first)  # when it was written, not when it was read
        await write(its, own_key(key_prefix, "b"), b"on")
        second = await write(its, mine, b"on")
        await until(lambda: told[-1] == ("own", b"on", second))
        third = await write(its, key_prefix, b"off")  # the same value, another request
        await until(lambda: told[-1] == ("all", b"off", third))
        nursery.cancel_scope.cancel()
    assert len(told) == 4


async def write(its: Settings, key: str, value: bytes) -> int:
    return await etcd_switch.write(its, key, value)


# -- the operator --


async def test_orders(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    request = await etcd_fleet.ask(its, Order(True, "disks", "ann", seconds=60))
    held = await etcd_fleet.look(its)
    assert (request.on, request.revision) == (True, held.mod_revision)
    assert 50 < (held.expires_in or 0) <= 60
    for order in (Order(False), Order(True, by="bob")):
        with pytest.raises(NotYours, match="ann"):
            await etcd_fleet.ask(its, order)
    again = await etcd_fleet.ask(its, Order(True, by="ann"))
    assert again.revision > request.revision
    assert (await etcd_fleet.look(its)).expires_in is None
    assert (await etcd_fleet.ask(its, Order(False, by="bob", force=True))).on is False
    with pytest.raises(NoSuchInstance, match="nor any other"):
        await etcd_fleet.ask(its, Order(True, instance="a"))
    async with Instance(its).running():
        with pytest.raises(NoSuchInstance, match="there are a"):
            await etcd_fleet.ask(its, Order(True, instance="b"))
        await etcd_fleet.ask(its, Order(True, instance="a"))
        assert list((await etcd_fleet.look(its)).own) == ["a"]
    off = await etcd_fleet.ask(its, Order(False, instance="a"))
    assert off.revision > 0
    assert (await etcd_fleet.ask(its, Order(False, instance="a"))).revision == 0  # it is off
    with pytest.raises(EtcdError, match="refused"):
        await etcd_fleet.ask(settings("127.0.0.1:1", key_prefix), Order(True))


async def test_two_operators_at_once_do_not_overwrite_each_other(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    won: list[str] = []

    async def ask(name: str) -> None:
        with contextlib.suppress(NotYours):
            await etcd_fleet.ask(its, Order(True, by=name))
            won.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(ask, f"operator {number}")
    assert len(won) == 1
    assert f'"by": "{won[0]}"'.encode() in ((await etcd_fleet.look(its)).value or b"")


async def following(its: Settings, request: Request, seconds: float = 20) -> tuple[Standing, list[Standing]]:
    told: list[Standing] = []
    with trio.fail_after(seconds):
        return await etcd_fleet.follow(its, Wait(request), told.append), told


async def test_a_wait_sees_answers_newcomers_and_the_dead(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its, "a").running() as first, Instance(its, "b").running() as second:
        first.say("drained", 1)  # to an older request
        await until_there(its, lambda there: there["a"].phase == "drained")
        request = await etcd_fleet.ask(its, Order(True))
        ends: list[Standing] = []

        async def wait() -> None:
            ends.append((await following(its, request))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.3)
            first.say("drained", request.revision)
            late = Instance(its, "c")
            async with late.running():
                second.say("drained", request.revision)
                await until_there(its, lambda there: there["b"].held.acknowledgement.revision == request.revision)
                await trio.sleep(0.3)
                assert ends == []  # the newcomer has not answered
                await ctl(etcd, "lease", "revoke", f"{second.registrar._lease:x}")
                late.say("drained", request.revision)
                await until(lambda: bool(ends))
        if ends[0].died:
            assert (ends[0].result, ends[0].died) == (Result.VANISHED, ("b",))
        else:  # it was back already
            assert [held.id for held in ends[0].live] == ["a", "b", "c"]


async def test_a_wait_outlives_an_etcd_that_is_away(own: Etcd, key_prefix: str) -> None:
    its = settings(own.endpoint, key_prefix)
    troubles: list[str] = []
    async with Instance(its).running() as instance:
        request = await etcd_fleet.ask(its, Order(True))
        ends: list[Standing] = []

        async def wait() -> None:
            ends.append(await etcd_fleet.follow(its, Wait(request), lambda _: None, trouble=troubles.append))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.3)
            own.kill()
            await until(lambda: bool(troubles))
            await trio.to_thread.run_sync(own.restart)
            instance.say("drained", request.revision)
            await until(lambda: bool(ends))
        assert ends[0].result is Result.DONE


async def test_a_wait_ends_when_the_key_is_changed_by_somebody_else(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running():
        request = await etcd_fleet.ask(its, Order(True, seconds=1))  # etcd makes two seconds of it
        standing, _ = await following(its, request)
        assert standing.result is Result.SUPERSEDED


# -- a registration is kept true --


@pytest.mark.parametrize("how", ["deleted", "overwritten", "without its lease"])
async def test_what_is_not_as_it_should_be_is_written_again_within_one_renewal(
    etcd: Etcd, key_prefix: str, how: str
) -> None:
    its = settings(etcd.endpoint, key_prefix)
    key = registrations(key_prefix) + "a"
    async with Instance(its).running() as instance:
        before = (await entries(its))["a"]
        if how == "deleted":
            await ctl(etcd, "del", "--prefix", registrations(key_prefix))
        elif how == "overwritten":
            await ctl(etcd, "put", key, "what?")
        else:
            await ctl(etcd, "put", key, before.held.value().decode())
        began = trio.current_time()
        await until_there(its, lambda there: "a" in there and there["a"].held == before.held)
        assert trio.current_time() - began < its.instance_ttl / 3 + 1
        await trio.sleep(its.instance_ttl / 3)
        held = await ctl(etcd, "get", key, "-w", "fields")
        assert f'"Lease" : {instance.registrar._lease}\n' in held
        assert instance.registrar.snapshot().id == "a"


async def test_it_is_kept_through_etcds_grpc_proxy(etcd: Etcd, key_prefix: str) -> None:
    with GrpcProxy(etcd) as proxy, structlog.testing.capture_logs() as lines:
        its = settings(proxy.endpoint, key_prefix)
        seen = list[bytes | None]()
        watcher = KeyWatcher(its, lambda value, _: seen.append(value), own_key=own_key(key_prefix, "a"))
        async with Instance(its).running() as instance, trio.open_nursery() as nursery:
            await nursery.start(watcher.run)
            written = (await entries(its))["a"].revision
            await etcd_switch.write(settings(etcd.endpoint, key_prefix), key_prefix, b"on")  # past the proxy
            await until(lambda: seen[-1] == b"on")
            await trio.sleep(its.instance_ttl + 2)
            assert (await entries(its))["a"].revision == written
            assert instance.registrar.snapshot().registered
            await ctl(etcd, "del", "--prefix", registrations(key_prefix))
            await until_there(its, lambda there: "a" in there)
            nursery.cancel_scope.cancel()
            await instance.registrar.close()
    told = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert told == ["the registration was deleted or changed by somebody else: writing it again"]
    assert await entries(settings(etcd.endpoint, key_prefix)) == {}


@pytest.mark.slow
async def test_without_permission_for_a_while_it_stays_in_its_place(key_prefix: str) -> None:
    key = f"{key_prefix}m"
    with Etcd() as running:
        for words in (
            "user add root:rootpass",
            "user grant-role root root",
            "role add instance",
            f"role grant-permission --prefix instance readwrite {key}",
            "role add switch",
            f"role grant-permission switch read {key}",
            "user add svc:s3cr3t-word",
            "user grant-role svc instance",
            "user grant-role svc switch",
            "auth enable",
        ):
            await ctl(running, *words.split())
        its = settings(running.endpoint, key, ETCD_USERNAME="svc", ETCD_PASSWORD="s3cr3t-word")
        root = "--user=root:rootpass"
        async with Instance(its).running() as instance:
            await ctl(running, root, "user", "revoke-role", "svc", "instance")
            instance.say("draining", 5)
            await until(lambda: not instance.registrar.snapshot().registered)
            await trio.sleep(its.instance_ttl + 2)
            assert registrations(key) + "a" in await ctl(running, root, "get", "--prefix", registrations(key))
            await ctl(running, root, "user", "grant-role", "svc", "instance")
            began = trio.current_time()
            await until_there(its, lambda there: there["a"].phase == "draining")
            assert trio.current_time() - began < its.instance_ttl / 3 + 1


# -- membership --


async def test_who_lapses_still_belongs_until_he_stops_or_is_forgotten(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    instance = Instance(its)
    async with instance.running():
        assert (await etcd_fleet.look(its)).vanished == ()
        with pytest.raises(StillThere, match="it lives"):
            await etcd_fleet.forget(its, "a")
    await ctl(etcd, "lease", "revoke", f"{instance.registrar._lease:x}")  # as time does
    assert (await etcd_fleet.look(its)).vanished == ("a",)
    request = await etcd_fleet.ask(its, Order(True))
    standing, _ = await following(its, request)
    assert (standing.result, standing.died) == (Result.VANISHED, ("a",))
    with pytest.raises(NoSuchInstance, match="there are a"):
        await etcd_fleet.forget(its, "b")
    await etcd_fleet.forget(its, "a")
    standing, _ = await following(its, request)
    assert standing.result is Result.NONE
    again = Instance(its)
    async with again.running():
        pass
    await again.registrar.close()
    assert await ctl(etcd, "get", "--prefix", key_prefix, "--keys-only") == f"{key_prefix}\n\n"


async def test_a_membership_is_kept_true_and_ends_after_hours(etcd: Etcd, key_prefix: str) -> None:
    its = settings(etcd.endpoint, key_prefix)
    async with Instance(its).running() as instance:
        await ctl(etcd, "del", members(key_prefix) + "a")
        with trio.fail_after(10):
            while not (await etcd_fleet.look(its)).members:
                await trio.sleep(0.05)
        async with connected(its, key_prefix, its.etcd_endpoints) as (connection, _):
            held = (await connection.find([members(key_prefix) + "a"])).keys[members(key_prefix) + "a"]
            assert held.lease == instance.registrar._member_lease
            assert MEMBERSHIP - 60 < await connection.time_to_live(held.lease) <= MEMBERSHIP
