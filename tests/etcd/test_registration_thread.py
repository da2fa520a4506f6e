"""The registration while the service's loop stands still: in its place, and true. A real etcd, a real thread, a blocked loop."""

import base64
import json
import threading
import time
from dataclasses import replace

import pytest
import trio

from svc.defects import Defects
from svc.devstack.stack import Etcd
from svc.etcd import fleet as etcd_fleet
from svc.etcd.registration import identity
from svc.etcd.registration_thread import RegistrarThread
from svc.maintenance.registration import Acknowledgement, Registration, entry, registrations
from svc.telemetry.watchdog import watched
from svc.wakeup import WakeUp
from tests.etcd.test_etcd_fleet import ctl_now, entries, settings, until, until_there


class Service:
    """A loop with a registration."""

    def __init__(self, endpoint: str, key: str) -> None:
        self.settings = settings(endpoint, key)
        self.base = replace(identity(self.settings), id="a")
        self.said = Acknowledgement("running", 1, None, 0)
        self.changed = WakeUp()
        self.settled: list[tuple[float, bool]] = []
        self.registrar = RegistrarThread(
            self.settings, self.describe, self.changed, lambda began, answered: self.settled.append((began, answered))
        )

    def describe(self) -> Registration:
        return replace(self.base, acknowledgement=self.said)


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "registration"]


async def test_a_blocked_loop_does_not_cost_the_registration(etcd: Etcd, key_prefix: str) -> None:
    service = Service(etcd.endpoint, key_prefix)
    key = registrations(key_prefix) + "a"
    seen: list[tuple[str, int | None]] = []

    def watch() -> None:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            pairs = json.loads(ctl_now(etcd, "get", key, "-w", "json")).get("kvs") or [{"value": ""}]
            held = entry("a", base64.b64decode(pairs[0]["value"]), 1)
            seen.append((held.phase, held.in_flight))
            time.sleep(0.2)

    async with watched(Defects(), on_blocked=service.registrar.blocked), trio.open_nursery() as nursery:
        nursery.start_soon(service.registrar.run)
        # The thread knows it first, and tells the loop.
        await until(lambda: service.registrar.snapshot().registered and bool(service.settled))
        began = trio.current_time()
        assert service.settled[0][0] <= began  # of one clock
        outside = threading.Thread(target=watch)
        outside.start()
        service.said = replace(service.said, in_flight=1)  # it takes a message, and computes
        time.sleep(service.settings.instance_ttl + 2)  # noqa: ASYNC251 - that is the fault
        await trio.to_thread.run_sync(outside.join)
        assert ("blocked", 1) in seen
        assert "unreadable" not in {phase for phase, _ in seen}  # it never went
        await until_there(service.settings, lambda there: (there["a"].phase, there["a"].in_flight) == ("running", 1))
        nursery.cancel_scope.cancel()
    await service.registrar.close()
    assert await entries(service.settings) == {}
    assert (await etcd_fleet.look(service.settings)).members == ()
    await until(lambda: not left(), 1)


async def test_it_ends_with_its_service_at_any_moment(etcd: Etcd, key_prefix: str) -> None:
    for delay in (0, 0.001, 0.05, 0.5):
        service = Service(etcd.endpoint, f"{key_prefix}{delay}")
        with trio.move_on_after(delay):
            await service.registrar.run()
        await service.registrar.close()
        await until(lambda: not left(), 1)
        assert await entries(service.settings) == {}


async def test_what_breaks_in_the_thread_comes_out(
    etcd: Etcd, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(etcd.endpoint, key_prefix)

    async def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service.registrar._registrar, "run", broken)
    with pytest.raises(ZeroDivisionError), trio.fail_after(5):
        await service.registrar.run()
