"""The dashboard shows data: a real Prometheus scrapes a real service, and every expression of the dashboard finds something.

Slow (a minute): `pytest -m slow tests/telemetry/test_dashboard_live.py`. Needs Debian's package `prometheus`.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml

from svc.devstack.child import free_ports
from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd_client
from svc.settings import load
from tests.live import Instance, Stand, http_client, stand
from tests.telemetry.test_observe import ALERTS, DASHBOARD, DOCKER

pytestmark = pytest.mark.slow

WINDOW = "15s"
"""What `$__rate_interval` stands for."""

PATIENCE = 90.0


@pytest.fixture(autouse=True)
def installed() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """Prometheus with docker/prometheus.yml, but for the address that it scrapes and a scrape a second; yields its URL."""
    config: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "alerts.yml")]
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def expressions() -> set[str]:
    """The dashboard's, with Grafana's variables filled in."""
    written = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    written += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    return {
        text.replace("$__rate_interval", WINDOW).replace("$job", "svc").replace("$instance", ".*") for text in written
    }


async def asked(client: httpx.AsyncClient, path: str, **query: str) -> Any:
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, f"{query}: {answer.text}"
    return answer.json()["data"]


async def has_data(client: httpx.AsyncClient, expression: str) -> bool:
    found = (await asked(client, "/api/v1/query", query=expression))["result"]
    return any(not math.isnan(float(sample["value"][1])) for sample in found)


async def work(place: Stand, service: Instance) -> None:
    """A bit of everything, again and again: messages, a failed one, one that outlasts its lease, drains, requests that fail."""
    settings, number = load(place.environ), 0
    while True:
        number += 1
        await place.send([json.dumps({"n": number, "m": m}) for m in range(10)])
        await place.send(
            [json.dumps({"n": number, "fail": True, "first": True}), json.dumps({"n": number, "seconds": 4})]
        )
        await trio.sleep(5)
        await etcd_client.write(settings, settings.maintenance_key, b"on")
        await service.reaches("maintenance")
        await etcd_client.write(settings, settings.maintenance_key, b"off")
        await service.reaches("healthy")


async def test_every_panel_has_data(moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path) -> None:
    environ = {"WORK_SECONDS": "0.05", "SQS_VISIBILITY_TIMEOUT_SECONDS": "3", "RETRY_BACKOFF": "1s-2s"}
    async with stand(moto, etcd.endpoint, queue_name, f"{key_prefix}m", tmp_path / "record", **environ) as place:
        service = await place.start()
        with prometheus(service.url.removeprefix("http://"), tmp_path) as url:
            async with (
                http_client(url) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(work, place, service)
                missing = expressions()
                assert len(missing) > 25
                with trio.move_on_after(PATIENCE):
                    while missing:
                        await trio.sleep(2)  # a scrape or two
                        try:
                            missing = {one for one in missing if not await has_data(client, one)}
                        except httpx.ConnectError:
                            continue  # it is just starting
                assert missing == set()
                rules = [rule for group in (await asked(client, "/api/v1/rules"))["groups"] for rule in group["rules"]]
                assert {rule["name"]: rule["health"] for rule in rules} == {rule["alert"]: "ok" for rule in ALERTS}
                nursery.cancel_scope.cancel()
