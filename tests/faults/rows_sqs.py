"""SQS in trouble: the line to it, its answers, its queue."""

import trio

from tests.faults.rows import scenario
from tests.faults.trial import Trial

FAILED = "receiving failed, trying again"
WORKS = "receiving works again"

HOLD = 5.0
"""Seconds that a fault lasts: several attempts, and less than the lease."""


async def unhealthy(t: Trial, says: str) -> None:
    """Hold the fault; meanwhile /health is 503 and says why, whenever it is asked."""
    end = trio.current_time() + HOLD
    await t.healthy(lambda body: body["status"] == "unhealthy" and says in str(body["queue_error"]), within=20)
    status, _ = await t.health()
    assert status == 503
    await trio.sleep_until(end)


@scenario(
    "sqs-reset",
    "every connection to SQS is reset (RST)",
    "`/health` 503: the connection to SQS broke",
    by_default=True,
)
async def _(t: Trial) -> None:
    await t.start()
    async with t.outage(named=FAILED, over=WORKS):
        t.sqs.reset()
        await unhealthy(t, "SQS")
