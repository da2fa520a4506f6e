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
"""

from typing import TYPE_CHECKING

from svc import simulated_history as history
from svc.simulated_faults import Call, CallKind, Fault, Faults, What, random_faults
from svc.simulated_queue import SimulatedQueue
from svc.simulated_script import ScriptedQueue
from svc.simulated_server import EPOCH
from svc.simulated_switch import Notice, Outage, SimulatedSwitch, SimulatedWatcher, SwitchSnapshot
from svc.simulated_timeline import Timeline

if TYPE_CHECKING:
    from svc.simulated_fleet import SimulatedFleet
    from svc.simulated_service import SimulatedService

__all__ = [
    "EPOCH",
    "Call",
    "CallKind",
    "Fault",
    "Faults",
    "Notice",
    "Outage",
    "ScriptedQueue",
    "SimulatedFleet",
    "SimulatedQueue",
    "SimulatedService",
    "SimulatedSwitch",
    "SimulatedWatcher",
    "SwitchSnapshot",
    "Timeline",
    "What",
    "history",
    "random_faults",
]


def __getattr__(name: str) -> object:
    """The service is found on first use: it is made of nearly everything, and of this module too."""
    if name == "SimulatedFleet":
        from svc.simulated_fleet import SimulatedFleet

        return SimulatedFleet
    if name == "SimulatedService":
        from svc.simulated_service import SimulatedService

        return SimulatedService
    raise AttributeError(f"module 'svc.testing' has no attribute {name!r}")
