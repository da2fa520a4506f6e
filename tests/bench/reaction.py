"""Row 5: how soon a switch in etcd is obeyed. The service is at work (a hundred places full of tasks of 0.05 to 0.15 s, a
receive every ten milliseconds or so); the key is put, and from that moment we look for the last receive that the stub saw
begin, and for the first answer of `/health` that says so.

The put goes through etcd's HTTP gateway and counts from before it is sent, `/health` until its answer has been read: both are
part of the figure.
"""

import base64
import http.client
import json
import re
import time
from dataclasses import replace
from pathlib import Path

from .consumers import PLAIN_BODY, CannotRun, Place, Svc
from .latency import percentile
from .processes import Process
from .saturation import START_SECONDS
from .stubbed import Stub

SETTINGS = {
    "MESSAGE_PROCESSOR": "tests.bench.processors:varied",
    "BENCH_WORK_SECONDS": "0.1",
    "MAX_CONCURRENCY": "100",
    "SQS_WAIT_TIME_SECONDS": "1",
    "DRAIN_TIMEOUT": "10",
}


def reaction(svc: Svc, stub: Stub, place: Place, *, toggles: int, core: int | None) -> dict[str, dict[str, float]]:
    """`last_receive` and `draining`: p50 and p99 in seconds."""
    place = replace(place, settings={**place.settings, **SETTINGS})
    stub.control("load", queue=place.queue, count=max(2000, toggles * 1500), body=PLAIN_BODY)
    last_receives, drainings = [], []
    with Process(svc.command(place), svc.environ(place), core=core, folder=Path.cwd()) as process:
        health = _Health(process)
        etcd = _Key(place.etcd, f"/bench/{place.queue}")
        for _ in range(toggles):
            health.until("healthy")
            _work_flows(stub, place, process)
            put = time.monotonic()
            etcd.put("on")
            drainings.append(health.until("draining", "maintenance") - put)
            health.until("maintenance")
            begun = stub.control("receives", queue=place.queue, since=put)["at"]
            last_receives.append(max(begun, default=put) - put)
            etcd.put("off")
    stub.control("purge", queue=place.queue)
    return {
        name: {"p50": percentile(values, 50), "p99": percentile(values, 99), "toggles": len(values), "values": values}
        for name, values in (("last_receive", last_receives), ("draining", drainings))
    }


def _work_flows(stub: Stub, place: Place, process: Process) -> None:
    """Returns when receives have been answered for a while, so that the switch comes in the middle of work."""
    enough = stub.control("stats", queue=place.queue)["received"] + 150
    deadline = time.monotonic() + START_SECONDS
    while stub.control("stats", queue=place.queue)["received"] < enough:
        if not process.running or time.monotonic() > deadline:
            raise CannotRun(f"it does not receive: {process.output().strip()[-300:]}")
        time.sleep(0.01)


class _Health:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._connection = http.client.HTTPConnection("127.0.0.1", _port(process), timeout=10)

    def until(self, *states: str) -> float:
        """Ask until it is in one of these states; returns when that was known."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.running:
            self._connection.request("GET", "/health")
            state = json.loads(self._connection.getresponse().read())["status"]
            if state in states:
                return time.monotonic()
            time.sleep(0.001)
        raise CannotRun(f"/health was not one of {', '.join(states)} in time: {self._process.output()[-300:]}")


def _port(process: Process) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.running:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", process.output()):
            return int(found[1])
        time.sleep(0.05)
    raise CannotRun(f"the API does not listen: {process.output()[-300:]}")


class _Key:
    """A key in etcd, by its HTTP gateway."""

    def __init__(self, endpoint: str, key: str) -> None:
        self._key = _encoded(key)
        self._connection = http.client.HTTPConnection(endpoint, timeout=10)

    def put(self, value: str) -> None:
        self._connection.request("POST", "/v3/kv/put", json.dumps({"key": self._key, "value": _encoded(value)}))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise CannotRun(f"etcd refused the put: {text.decode()[:200]}")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
