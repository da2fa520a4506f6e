"""A member, or a proxy before it, that answers with whatever: bytes that are no message, messages that answer another question,
streams that end. The watcher, the registration and the commands take it for trouble; nothing but their own errors comes out."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from svc.etcd import fleet as etcd_fleet
from svc.etcd import watcher
from svc.etcd.errors import EtcdError, etcdrpc, grpc
from svc.etcd.registration import Registrar, identity
from svc.etcd.watcher import KeyWatcher
from svc.maintenance.fleet import Request, Wait
from svc.maintenance.orders import NoSuchInstance, NotYours, Order
from svc.maintenance.registration import own_key, registrations
from svc.settings import Settings, load
from svc.wakeup import WakeUp

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
    event = {"type": rng.choice(["PUT", "DELETE"]), "kv": pair}
    message = rng.choice(
        [
            etcdrpc.RangeResponse(header=header, kvs=pairs, count=99),
            etcdrpc.TxnResponse(
                header=header,
                succeeded=rng.random() < 0.5,
                responses=[{"response_range": {"kvs": pairs}}, {"response_put": {}}][: rng.randrange(3)],
            ),
            etcdrpc.PutResponse(header=header),
            etcdrpc.LeaseGrantResponse(header=header, ID=rng.choice([0, -1, 5]), TTL=rng.choice([0, -1, 10])),
            etcdrpc.LeaseKeepAliveResponse(header=header, ID=5, TTL=rng.choice([0, -1, 10])),
            etcdrpc.LeaseTimeToLiveResponse(header=header, TTL=rng.choice([-1, 0, 2**62])),
            etcdrpc.WatchResponse(header=header, created=rng.random() < 0.5, events=[event] * rng.randrange(3)),
            etcdrpc.WatchResponse(header=header, canceled=True, cancel_reason="\u202eno\n", compact_revision=revision),
        ]
    ).SerializeToString()
    if rng.random() < 0.2:
        message = rng.choice([b"", b"\xff" * 20, message[: len(message) // 2], rng.randbytes(30)])
    if rng.random() < 0.5 and call in GOOD:
        message = GOOD[call](pairs, header).SerializeToString()
    return [message] * (rng.randrange(4) if call in STREAMS else 1)


GOOD: dict[str, Any] = {
    "Range": lambda pairs, header: etcdrpc.RangeResponse(header=header, kvs=pairs),
    "Txn": lambda pairs, header: etcdrpc.TxnResponse(header=header, succeeded=True),
    "LeaseGrant": lambda pairs, header: etcdrpc.LeaseGrantResponse(header=header, ID=5, TTL=5),
    "LeaseKeepAlive": lambda pairs, header: etcdrpc.LeaseKeepAliveResponse(header=header, ID=5, TTL=5),
    "Watch": lambda pairs, header: etcdrpc.WatchResponse(
        header=header, created=True, events=[{"type": "PUT", "kv": pair} for pair in pairs]
    ),
}


class Odd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each call anew."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls = 0

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]

        def unary(request: bytes, context: Any) -> bytes:
            self.calls += 1
            if self.rng.random() < 0.1:
                context.abort(self.rng.choice(list(grpc.StatusCode)[1:]), self.rng.choice(["no leader", "\x1b[2J", ""]))
            return made(self.rng, name)[0]

        def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            self.calls += 1
            yield from made(self.rng, name)

        if name in STREAMS:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


@contextmanager
def odd_member(seed: int) -> Iterator[tuple[Settings, Odd]]:
    odd = Odd(random.Random(seed))
    server = grpc.server(ThreadPoolExecutor(8), handlers=[odd], options=[("grpc.enable_http_proxy", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield load({"ETCD_ENDPOINTS": f"127.0.0.1:{port}", "MAINTENANCE_KEY": KEY, "INSTANCE_TTL": "5"}), odd
    finally:
        server.stop(0).wait(5)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
async def test_nothing_that_a_member_answers_ends_a_part(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_PROBE_EVERY", 0.02)
    monkeypatch.setattr(watcher, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(watcher, "_LONGEST_DELAY", 0.02)
    told: list[bytes | None] = []
    with odd_member(seed) as (its, odd):
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
