"""A member, or a proxy before it, that answers with whatever: bytes that are no message, messages that answer another question,
streams that end. The watcher, the registration and the commands take it for trouble; nothing but their own errors comes out."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from svc.etcd import fleet as etcd_fleet
from svc.etcd import messages, watcher
from svc.etcd.connection import connected
from svc.etcd.errors import EtcdError, Trouble
from svc.etcd.registration import Registrar, identity
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.fleet import Request, Wait
from svc.maintenance.orders import NoSuchInstance, NotYours, Order
from svc.maintenance.registration import own_key, registrations
from svc.settings import Settings, load
from svc.wakeup import WakeUp
from tests.etcd.http2_member import Member

KEY = "/m"
STREAMS = ("Watch", "LeaseKeepAlive")


def made(rng: random.Random, call: str) -> list[bytes]:
    """What the next call is answered with."""
    key = rng.choice(
        [KEY, own_key(KEY, "a"), registrations(KEY) + "a", registrations(KEY) + "\x1b", "/other", "", KEY + "\udcff"]
    )
    value = rng.choice([b"", b"on", b"off", b"{}", b"\xff", b'{"enabled": true, "by": "\\ud800"}', b"[" * 3000])
    revision = rng.choice([0, 1, -5, 7, 2**63 - 1])
    pair = {
        "key": key.encode("utf-8", "surrogateescape"),
        "value": value,
        "mod_revision": revision,
        "lease": rng.choice([0, 5]),
    }
    header = rng.choice([None, {"revision": revision}])
    pairs = [pair] * rng.randrange(3)
    event = {"type": rng.choice([messages.PUT, messages.DELETE, 7]), "kv": pair}
    message = rng.choice(
        [
            messages.RangeResponse(header=header, kvs=pairs),
            messages.TxnResponse(
                header=header,
                succeeded=rng.random() < 0.5,
                responses=[{"response_range": {"kvs": pairs}}, {"response_put": {}}][: rng.randrange(3)],
            ),
            messages.PutResponse(header=header),
            messages.LeaseGrantResponse(header=header, ID=rng.choice([0, -1, 5]), TTL=rng.choice([0, -1, 10])),
            messages.LeaseKeepAliveResponse(header=header, ID=5, TTL=rng.choice([0, -1, 10])),
            messages.LeaseTimeToLiveResponse(header=header, TTL=rng.choice([-1, 0, 2**62])),
            messages.WatchResponse(header=header, created=rng.random() < 0.5, events=[event] * rng.randrange(3)),
            messages.WatchResponse(header=header, canceled=True, cancel_reason="\u202eno\n", compact_revision=revision),
        ]
    ).SerializeToString()
    if rng.random() < 0.2:
        message = rng.choice([b"", b"\xff" * 20, message[: len(message) // 2], rng.randbytes(30)])
    if rng.random() < 0.5 and call in GOOD:
        message = GOOD[call](pairs, header).SerializeToString()
    return [message] * (rng.randrange(4) if call in STREAMS else 1)


GOOD: dict[str, Any] = {
    "Range": lambda pairs, header: messages.RangeResponse(header=header, kvs=pairs),
    "Txn": lambda pairs, header: messages.TxnResponse(header=header, succeeded=True),
    "LeaseGrant": lambda pairs, header: messages.LeaseGrantResponse(header=header, ID=5, TTL=5),
    "LeaseKeepAlive": lambda pairs, header: messages.LeaseKeepAliveResponse(header=header, ID=5, TTL=5),
    "Watch": lambda pairs, header: messages.WatchResponse(
        header=header, created=True, events=[{"type": messages.PUT, "kv": pair} for pair in pairs]
    ),
}


class Odd:
    """Answers each call anew."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls = 0

    async def __call__(self, member: Member, id: int, path: str) -> None:
        self.calls += 1
        name = path.rpartition("/")[2]
        if self.rng.random() < 0.1:
            status = self.rng.choice(["1", "7", "8", "13", "14", "16", "99", "-1", "", "x"])
            await member.headers(
                id, grpc_status=status, grpc_message=self.rng.choice(["no leader", "%1b[2J", "%ff%zz"]), end=True
            )
            return
        await member.good(id, made(self.rng, name))


@asynccontextmanager
async def odd_member(seed: int) -> AsyncIterator[tuple[Settings, Odd]]:
    odd = Odd(random.Random(seed))
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: Member(stream, odd).run(), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        yield load({"ETCD_ENDPOINTS": f"127.0.0.1:{port}", "MAINTENANCE_KEY": KEY, "INSTANCE_TTL": "5"}), odd
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
async def test_nothing_that_a_member_answers_ends_a_part(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_PROBE_EVERY", 0.02)
    monkeypatch.setattr(watcher, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(watcher, "_LONGEST_DELAY", 0.02)
    told: list[bytes | None] = []
    async with odd_member(seed) as (its, odd):
        base, changed = replace(identity(its), id="a"), WakeUp()
        watching = KeyWatcher(its, lambda value, _: told.append(value), own_key=own_key(KEY, "a"))
        registrar = Registrar(its, lambda: base, changed, lambda began, answered: None)
        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registrar.run)
                nursery.start_soon(watching.run)
                while odd.calls < 200:
                    registrar.look_again()
                    for command in (
                        lambda: etcd_fleet.look(its),
                        lambda: etcd_fleet.ask(its, Order(True, by="ann", seconds=60)),
                        lambda: etcd_fleet.ask(its, Order(True, instance="a")),
                        lambda: watcher.read(its, KEY),
                        lambda: etcd_fleet.follow(its, Wait(Request(True, 7)), lambda standing: None),
                    ):
                        with trio.move_on_after(0.2):
                            try:
                                await command()
                            except (EtcdError, NotYours, NoSuchInstance) as error:
                                str(error).encode()
                nursery.cancel_scope.cancel()
        await registrar.close()
        assert odd.calls >= 200


async def test_keys_that_are_read_together_are_read_again_when_the_store_changed_between() -> None:
    asked: list[tuple[bytes, int, bool]] = []

    async def answer(member: Member, id: int, path: str) -> None:
        request = messages.RangeRequest.FromString(bytes(member.bodies[id][5:]))
        asked.append((request.key, request.revision, request.serializable))
        revision = request.revision or {b"/m": 7, b"/a": 8, b"/b": 7}[request.key]
        pair = {"key": request.key, "value": b"%d" % revision, "mod_revision": revision}
        await member.good(id, [messages.RangeResponse(header={"revision": revision}, kvs=[pair]).SerializeToString()])

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: Member(stream, answer).run(), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        its = load({"ETCD_ENDPOINTS": f"127.0.0.1:{listener.socket.getsockname()[1]}", "MAINTENANCE_KEY": KEY})
        async with connected(its, KEY, its.etcd_endpoints) as (connection, _):
            asked.clear()
            found = await connection.find(["/m", "/a", "/b"])
        nursery.cancel_scope.cancel()
    assert (found.revision, {name: held.value for name, held in found.keys.items()}) == (
        7,
        {"/m": b"7", "/a": b"7", "/b": b"7"},
    )
    assert sorted(asked[:3]) == [(b"/a", 0, False), (b"/b", 0, False), (b"/m", 0, False)]
    assert asked[3:] == [(b"/a", 7, True)]


async def test_who_we_are_is_said_as_the_environment_has_it_and_never_told() -> None:
    heard: list[bytes] = []

    async def answer(member: Member, id: int, path: str) -> None:
        heard.append(bytes(member.bodies[id][5:]))
        await member.headers(id, grpc_status="3", grpc_message="who is s3cr3t-%FF%FE-s3cr3t-w%C3%B6rd?", end=True)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: Member(stream, answer).run(), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        who = {"ETCD_USERNAME": "a\udcff", "ETCD_PASSWORD": "s3cr3t-wörd"}
        its = load({"ETCD_ENDPOINTS": f"127.0.0.1:{listener.socket.getsockname()[1]}", "MAINTENANCE_KEY": KEY} | who)
        with pytest.raises(EtcdError, match=r"who is s3cr3t-\ufffd\ufffd-\*\*\*\*\*\*\*\*\?"):
            await watcher.read(its, KEY)
        nursery.cancel_scope.cancel()
    assert heard[0] == b"\x0a\x02a\xff\x12\x0c" + "s3cr3t-wörd".encode()


async def test_a_password_that_is_said_back_with_the_goodbye_is_told_by_no_call() -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        if path.endswith("Authenticate"):
            await member.good(id, [messages.AuthenticateResponse(token="t").SerializeToString()])
        elif id == 3:
            await member.good(id, [messages.RangeResponse(header={"revision": 7}).SerializeToString()])
        else:
            member.h2.close_connection(additional_data=b"who is s3cr3t-word?")
            await member.flush()

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, lambda stream: Member(stream, answer).run(), 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        endpoint = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        its = load({"ETCD_ENDPOINTS": endpoint, "ETCD_USERNAME": "svc", "ETCD_PASSWORD": "s3cr3t-word"})
        async with connected(its, KEY, its.etcd_endpoints) as (connection, _):
            with pytest.raises(Trouble, match=r"who is \*+\?"):
                await connection.find([KEY])
            with pytest.raises(Trouble, match=r"who is \*+\?"):
                async with connection.watch([KEY], 8):
                    pass
        nursery.cancel_scope.cancel()
