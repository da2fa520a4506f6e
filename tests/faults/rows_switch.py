"""Without etcd: the file that holds the switch, and what its orders are sent over, in trouble."""

import os
from collections.abc import Callable
from pathlib import Path

import trio

from tests.faults.rows import outage, scenario
from tests.faults.trial import CALLS_LIMIT, Trial
from tests.live import http_client

TOKEN = "a-long-secret"
ALONE = {"ETCD_ENDPOINTS": "off", "API_TOKEN": TOKEN}
UNREADABLE = "the maintenance file cannot be read, the last known state stands"
READABLE = "the maintenance file can be read again"
IGNORED = "the maintenance switch's value is ignored, the state stands"
USABLE = "the maintenance switch's value is usable again"
WORKS_ON = "work goes on; `/health` 200"
HOLD = 5.0
SERVING = 40.0
"""Calls of SQS per second where work goes on: this is no outage of SQS."""


def place(t: Trial) -> Path:
    """The folder of the file, which is there before the service starts."""
    folder = t.stand.record.parent / "switch"
    folder.mkdir(exist_ok=True)
    t.environ["MAINTENANCE_FILE"] = str(folder / "maintenance")
    return folder / "maintenance"


async def order(t: Trial, method: str, content: bytes | None = None, **query: str) -> int:
    async with http_client(t.service.url) as client:
        kind = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return (await client.request(method, "/maintenance", content=content, params=query, headers=kind)).status_code


async def obeys(t: Trial) -> None:
    """The file is understood again (it is looked at every two seconds), and an order is obeyed, in both directions."""
    await t.healthy(
        lambda body: not (file := body["maintenance_file"]) or (file["readable"] and not file["ignored_value"])
    )
    assert await order(t, "PUT", b"{}") == 200
    await t.healthy(lambda body: body["status"] == "maintenance")
    assert await order(t, "DELETE") == 200
    await t.processes()


async def works_on(t: Trial, says: Callable[[dict[str, object]], object]) -> None:
    """Messages are processed as before, and /health is 200 and says what is wrong."""
    end = trio.current_time() + HOLD
    body = await t.healthy(lambda body: says(body["maintenance_file"]))
    assert body["status"] == "healthy", body
    await t.processes()
    await trio.sleep_until(end)


def file_trouble(
    name: str,
    fault: str,
    sees: str,
    named: str,
    over: str,
    breaks: Callable[[Path], object],
    mends: Callable[[Path], object],
    says: Callable[[dict[str, object]], object],
    refused: int = 200,
) -> None:
    """`refused`: what `PUT` answers meanwhile."""

    @scenario(name, fault, sees, **ALONE)
    async def run(t: Trial) -> None:
        path = place(t)
        await t.start()
        async with t.outage(named=named, over=over, recovers=lambda: obeys(t), calls_limit=SERVING):
            breaks(path)
            await works_on(t, says)
            if refused != 200:
                assert await order(t, "PUT", b"{}") == refused
            mends(path)


def broken(said: dict[str, object]) -> bool:
    return said["readable"] is False and bool(said["error"])


def ignored(said: dict[str, object]) -> bool:
    return 0 < len(str(said["ignored_value"] or "")) < 500


file_trouble(
    "switch-file-folder",
    "a folder stands where the switch's file should be, and an order is sent",
    WORKS_ON + " and `maintenance_file.readable` false; the order is a 409 that names the file",
    UNREADABLE,
    READABLE,
    lambda path: path.mkdir(),
    lambda path: path.rmdir(),
    broken,
    409,
)
file_trouble(
    "switch-file-loop",
    "the switch's file is a link to itself",
    WORKS_ON + " and `maintenance_file.readable` false; the order is a 409 that names the file",
    UNREADABLE,
    READABLE,
    lambda path: path.symlink_to(path),
    lambda path: path.unlink(),
    broken,
    409,
)
file_trouble(
    "switch-file-unmounted",
    "the folder of the switch's file is gone",
    WORKS_ON + " and `maintenance_file.readable` false; the order is a 409 that names the file",
    UNREADABLE,
    READABLE,
    lambda path: path.parent.rename(path.parent.with_name("gone")),
    lambda path: path.parent.with_name("gone").rename(path.parent),
    broken,
    409,
)
file_trouble(
    "switch-file-fifo",
    "the switch's file is a FIFO that nobody writes into",
    WORKS_ON + " and `maintenance_file.readable` false; nothing waits for it",
    UNREADABLE,
    READABLE,
    lambda path: os.mkfifo(path),
    lambda path: path.unlink(),
    broken,
    409,
)
file_trouble(
    "switch-file-huge",
    "the switch's file has 64 MiB",
    WORKS_ON + " and `maintenance_file.readable` false; it is not read into memory",
    UNREADABLE,
    READABLE,
    lambda path: path.write_bytes(b"x" * 2**26),
    lambda path: path.unlink(),
    broken,
)
file_trouble(
    "switch-file-binary",
    "the switch's file holds binary data",
    WORKS_ON + " and `maintenance_file.ignored_value` says what is held",
    IGNORED,
    USABLE,
    lambda path: path.write_bytes(bytes(range(256))),
    lambda path: path.write_bytes(b"off"),
    ignored,
)


@scenario(
    "switch-file-flaps",
    "the switch's file is written, emptied, removed, linked and made a folder five times a second for 10 s",
    "`/health` 200: on and off as it was when it was looked at; afterwards what it says",
    **ALONE,
)
async def _(t: Trial) -> None:
    path = place(t)
    await t.start()
    async with t.outage(named=None, over=None, recovers=lambda: obeys(t), calls_limit=SERVING):
        await flap(path, until=trio.current_time() + 10)
    assert not path.exists()


async def flap(path: Path, *, until: float) -> None:
    forms: list[Callable[[], object]] = [
        lambda: path.write_text("on"),
        lambda: path.write_text(""),
        lambda: path.write_text("off"),
        path.unlink,
        path.mkdir,
        path.rmdir,
        lambda: path.symlink_to("nowhere"),
        path.unlink,
    ]
    while trio.current_time() < until:
        for form in forms:
            form()
            await trio.sleep(0.2)


@scenario(
    "switch-file-at-start",
    "the switch's file cannot be read when the service starts",
    "`/health` 503 `starting`; nothing is received; begins by itself when it can be read",
    **ALONE,
)
async def _(t: Trial) -> None:
    path = place(t)
    path.symlink_to(path)
    await t.start(load=False)
    body = await t.send()
    async with t.outage(
        named="the maintenance file cannot be read, nothing is received until it can be",
        over=READABLE,
        from_the_start=True,
    ):
        await trio.sleep(HOLD)
        status, health = await t.health()
        assert (status, health["status"]) == (503, "starting")
        t.record.look()
        assert not t.record.succeeded[body]
        path.unlink()
    t.load()


@scenario(
    "switch-config-map",
    "a ConfigMap switches on and off: the folder that its file is linked to is swapped, as the kubelet does it; somebody else "
    "orders the end",
    "maintenance within seconds of each swap; the order is a 409",
    **ALONE,
)
async def _(t: Trial) -> None:
    path = place(t)
    folder = path.parent

    def swap(number: int, value: str) -> None:
        (folder / f"..{number}").mkdir()
        (folder / f"..{number}" / "maintenance").write_text(value)
        (folder / "..tmp").symlink_to(f"..{number}")
        os.replace(folder / "..tmp", folder / "..data")

    swap(1, "off")
    path.symlink_to("..data/maintenance")
    await t.start()
    async with t.outage(named="drain ended", over="running", calls_limit=SERVING):
        swap(2, '{"enabled": true, "by": "git"}')
        await t.healthy(lambda body: body["status"] in ("draining", "maintenance"), within=5)
        assert await order(t, "DELETE") == 409
        await t.healthy(lambda body: body["status"] == "maintenance")
        swap(3, "off")


@outage(
    "switch-odd-orders",
    "two hundred orders that are none come in, with the token: no JSON, other types, huge, nested, of unknown fields",
    "400, 413 or 415 for each; the switch stays as it is, and `/health` 200",
    named=None,
    over=None,
    calls_limit=CALLS_LIMIT * 4,
    recovers=obeys,
    **ALONE,
)
async def _(t: Trial) -> None:
    odd = [
        b"", b"{", b"[]", b"null", b'"on"', b"\xff\xfe", b'{"for": "soon"}', b'{"for": 1e999}', b'{"by": []}', b'{"on": true}',
        b'{"reason": "' + b"x" * 9000 + b'"}', b"[" * 8000, b'{"instance": "../all"}', b'{"force": "yes"}', b'{"quiet": 1}',
        b'{"instance": "another"}', b'{"for": 99999999}', b'{"by": ""}', b'{"ends": 1}',
    ]  # fmt: skip
    for _ in range(10):
        for content in odd:
            assert await order(t, "PUT", content) in (400, 413, 415), content
        for query in ({"force": "perhaps"}, {"reason": "x"}, {"by": ""}, {"instance": "another"}):
            assert await order(t, "DELETE", **query) == 400, query
    body = await t.healthy(lambda body: True)
    assert (body["status"], body["maintenance"]) == ("healthy", False)
