"""What tests of the service and of processors are made of: the queue and the maintenance switch, in memory and in
Trio's time.

    async def test_a_stranded_message(autojump_clock):
        queue = SimulatedQueue(faults=[Fault("timeout-after", "receive", nth=1)])
        queue.put("hello")
        with pytest.raises(QueueTimeout):
            await queue.receive(limit=10, wait=20, visibility=30)
        assert queue.stranded == ["simulated-1"]

`SimulatedQueue` behaves as AWS documents SQS, with the faults that it is told; `SimulatedSwitch` is the key in etcd,
with the irregularities of watching that it is told. Both are deterministic. This is no mock: it checks nothing, it only
remembers.

Never here: mocks, or anything that production imports. Begin reading at `service.py`; the fixtures are in
`svc/pytest_plugin.py`. The names below are what users' tests may use.
"""

from svc.testing import history
from svc.testing.envelopes import event_body, s3_body, sns_body
from svc.testing.faults import Call, CallKind, Fault, Faults, What, random_faults
from svc.testing.fleet import SimulatedFleet
from svc.testing.inbox import Committed, SimulatedDatabaseError, SimulatedInbox
from svc.testing.queue import SimulatedQueue
from svc.testing.scripted_queue import ScriptedQueue
from svc.testing.service import SimulatedService
from svc.testing.stored import EPOCH
from svc.testing.switch import SimulatedSwitch
from svc.testing.timeline import Timeline
from svc.testing.watcher import Notice, Outage, SimulatedWatcher, SwitchSnapshot

__all__ = [
    "EPOCH",
    "Call",
    "CallKind",
    "Committed",
    "Fault",
    "Faults",
    "Notice",
    "Outage",
    "ScriptedQueue",
    "SimulatedDatabaseError",
    "SimulatedFleet",
    "SimulatedInbox",
    "SimulatedQueue",
    "SimulatedService",
    "SimulatedSwitch",
    "SimulatedWatcher",
    "SwitchSnapshot",
    "Timeline",
    "What",
    "event_body",
    "history",
    "random_faults",
    "s3_body",
    "sns_body",
]
