"""etcd in trouble. The last known state stands: work goes on, and what was switched meanwhile takes effect afterwards."""

import trio

from tests.faults.rows import scenario
from tests.faults.trial import Trial

LOST = "etcd lost; the last known state stands"
CONNECTED = "etcd connected"


async def works_on(t: Trial, seconds: float = 0) -> None:
    """Messages are processed as before, /health is 200 and tells that etcd is gone."""
    end = trio.current_time() + seconds
    body = await t.healthy(lambda body: not body["etcd"]["connected"], within=20)
    assert body["status"] == "healthy", body
    await t.processes()
    await trio.sleep_until(end)


async def switched_meanwhile_takes_effect(t: Trial) -> None:
    await t.healthy(lambda body: body["status"] in ("draining", "maintenance"))


async def back_to_work(t: Trial) -> None:
    """The maintenance that was part of the trial is over."""
    await t.switch("off")
    await t.processes()


@scenario(
    "etcd-partition",
    "etcd cut off: connections stand and carry nothing; switched on meanwhile",
    "work goes on; `/health` 200, `etcd.connected` false; maintenance begins after the return",
    by_default=True,
)
async def _(t: Trial) -> None:
    await t.start()
    async with t.outage(line=t.etcd, named=LOST, over=CONNECTED, recovers=lambda: switched_meanwhile_takes_effect(t)):
        t.etcd.hang()
        await works_on(t)
        await t.switch("on")
    await back_to_work(t)
