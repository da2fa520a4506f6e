"""A part crashes in a real process. Each of them in turn is a row of the fault suite; here are those that are hardest."""

import json
from pathlib import Path

import trio

from svc.consumer.worker import LAST_RELEASE
from svc.devstack.stack import Etcd, Moto
from tests.faults.rows_crash import CRASHED
from tests.live import stand


async def test_settlement_crashes_and_what_is_in_flight_is_given_back(
    moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    environ = {"MESSAGE_PROCESSOR": "tests.faults.crashing:handle", "CRASH": "settlement", "WORK_SECONDS": "3600"}
    async with stand(moto, etcd.endpoint, queue_name, f"{key_prefix}key", tmp_path / "record", **environ) as place:
        service = await place.start()
        await place.send([json.dumps({"n": number}) for number in range(5)])
        await place.until(lambda: len(place.events()) == 5)
        await place.send([json.dumps({"crash": True})])
        told = await service.logged(CRASHED)
        at = trio.current_time()
        while (await place.depth())[1]:
            await trio.sleep(0.02)
        assert trio.current_time() - at < LAST_RELEASE + 1  # a busy machine
        assert await place.depth() == (6, 0)
        assert told["part"] == "settlement"
        assert "Defect: found by nobody" in told["exception"]
        assert await service.exit_code() == 1
        assert [line["event"] for line in service.logs if line["level"] in ("error", "critical")] == [CRASHED]
        assert not [line for line in service.output if not line.startswith("{")]  # no traceback beside the log
