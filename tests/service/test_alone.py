"""`ETCD_ENDPOINTS=off`: real instances that run by themselves, switched over HTTP, by a file and by SIGTERM. Real time."""

import os
import signal
from pathlib import Path

import pytest

from svc.devstack.stack import Moto
from tests.cli.test_cli import svc
from tests.live import Instance, Stand, http_client, stand

TOKEN = "a-long-secret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def place(moto: Moto, queue_name: str, tmp_path: Path):
    async with stand(
        moto, "off", queue_name, "/unused", tmp_path / "record", API_TOKEN=TOKEN, WORK_SECONDS="0.1"
    ) as held:
        yield held


async def put(instance: Instance, **order: object) -> tuple[int, dict[str, object]]:
    async with http_client(instance.url) as client:
        answer = await client.put("/maintenance", json=order, headers=BEARER)
        return answer.status_code, answer.json()


async def delete(instance: Instance, **query: str) -> int:
    async with http_client(instance.url) as client:
        return (await client.delete("/maintenance", params=query, headers=BEARER)).status_code


async def test_a_whole_life_without_etcd(place: Stand, tmp_path: Path) -> None:
    file = tmp_path / "maintenance"
    service = await place.start(MAINTENANCE_FILE=str(file), INSTANCE_ID="orders-1")
    await place.send([str(number) for number in range(5)])
    await place.until(lambda: len(place.succeeded()) == 5)
    health = (await service.get("/health")).json()
    assert (health["status"], health["fleet"], health["etcd"]) == ("healthy", False, None)
    assert (health["maintenance_file"]["path"], health["maintenance_file"]["readable"]) == (str(file), True)
    figures = (await service.get("/metrics")).text
    assert "svc_etcd_connected" not in figures
    assert "svc_maintenance_file_readable 1.0" in figures

    status, told = await put(service, by="ops", reason="disk")
    assert (status, told["maintenance"], told["key"]) == (200, True, None)
    health = await service.reaches("maintenance")
    assert (health["drain"]["outcome"], health["switch"]["by"]) == ("drained", "ops")
    fleet = (await service.get("/fleet")).json()
    assert (fleet["fleet"], fleet["drained"], fleet["file"]) == (False, True, str(file))
    assert [(one["id"], one["phase"], one["current"]) for one in fleet["instances"]] == [("orders-1", "drained", True)]
    assert '"by": "ops"' in file.read_text()
    await place.send(["in maintenance"])
    assert await delete(service, by="ann") == 409
    assert await delete(service, by="ops") == 200
    assert not file.exists()
    await place.until(lambda: len(place.succeeded()) == 6)

    file.touch()
    await service.reaches("maintenance")
    file.unlink()
    await service.reaches("healthy")
    file.write_text("maybe")
    await service.logged("the maintenance switch's value is ignored, the state stands")
    assert "maybe" in (await service.get("/health")).json()["maintenance_file"]["ignored_value"]
    file.unlink()
    file.mkdir()
    await service.logged_like("the maintenance file cannot be read, the last known state stands")
    status, told = await put(service)
    assert (status, str(file) in str(told["message"])) == (409, True)
    file.rmdir()
    file.write_text("on")
    await service.reaches("maintenance")

    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0
    again = await place.start(MAINTENANCE_FILE=str(file))
    await again.reaches("maintenance")  # the file says so
    again.signal(signal.SIGTERM)
    assert await again.exit_code() == 0
    assert await place.depth() == (0, 0)


@pytest.mark.slow
async def test_two_instances_are_switched_and_waited_for_together(place: Stand) -> None:
    one, two = await place.start(INSTANCE_ID="orders-1"), await place.start(INSTANCE_ID="orders-2")
    environ = {**os.environ, **place.environ}
    both = "--url", one.url, "--url", two.url
    await place.send([str(number) for number in range(40)])
    await place.until(lambda: len(place.succeeded()) >= 4)
    for wait in ("--wait=quiet", "--wait"):
        ended = await svc("maintenance", "on", *both, wait, environ=environ)
        assert (ended.code, ended.err) == (0, "")
        done = len(place.succeeded())
    assert "2 instances are drained after" in ended.out
    assert await place.depth() == (40 - done, 0)
    ended = await svc("maintenance", "off", *both, "--wait", environ=environ)
    assert ended.code == 0
    await place.until(lambda: len(place.succeeded()) == 40)
    two.signal(signal.SIGKILL)
    ended = await svc("maintenance", "on", *both, "--wait", environ=environ)
    assert ended.code == 5
    assert f"vanished, drained or not: {two.url}" in ended.out
    one.signal(signal.SIGTERM)
    assert await one.exit_code() == 0
    place.check_no_double_processing()


@pytest.mark.slow
async def test_in_memory_a_restart_forgets(place: Stand) -> None:
    service = await place.start()
    assert (await service.get("/health")).json()["maintenance_file"] is None
    assert (await put(service, **{"for": 3600}))[0] == 200
    await service.reaches("maintenance")
    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0
    again = await place.start()
    await again.ready()
    again.signal(signal.SIGTERM)
    assert await again.exit_code() == 0
