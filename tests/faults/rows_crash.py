"""The service's own defects: each part crashes once, in a process of its own."""

import trio

from svc.consumer.worker import LAST_RELEASE
from tests.faults.crashing import PARTS
from tests.faults.rows import scenario
from tests.faults.rows_process import at_work, held_by
from tests.faults.trial import Trial

CRASHED = "the service has failed: this is a defect of it; what is in flight is given back, then the process ends"


@scenario(
    "crash-of-a-part",
    f"a crash of each part, one after the other: {', '.join(PARTS)}",
    "what was in flight is visible within 2 s, for another instance; one line names the part, exit code 1",
    CLOUDWATCH_NAMESPACE="svc",
    MESSAGE_PROCESSOR="tests.faults.crashing:handle",
)
async def _(t: Trial) -> None:
    t.last_words = [CRASHED]
    for part in PARTS:
        service = await t.start(load=False, CRASH=part)
        for _ in range(3):
            await t.send(seconds=3600, first=True)
        await at_work(t, service, 3)
        await t.send(crash=True)
        line = await t.logged(CRASHED)
        told = trio.current_time()
        while (await t.stand.depth())[1]:
            await trio.sleep(0.02)
        assert trio.current_time() - told < LAST_RELEASE + 1  # a busy machine
        assert line["part"] == part
        assert await service.exit_code() == 1, service.output
        ended = trio.current_time()
        assert [line["event"] for line in service.logs if line["level"] in ("error", "critical")] == [CRASHED]
        await t.told(CRASHED, None)
        assert not held_by(t, service), "a processor was not cancelled"
    await t.start(CRASH="")
    t.row.recovery = round(trio.current_time() - ended, 1)
