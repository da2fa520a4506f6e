"""The user's side of the fence: what a processor gets, what it may raise, how it is found and called, and the default one.

Never here: queues, receipt handles, maintenance. Begin reading at `message.py`; `svc.processors:simulated` is the default.
The names below are what other suites, and users, may use.
"""

from svc.processors.calling import opened, unstoppable
from svc.processors.finding import UnusableProcessor, check, find
from svc.processors.message import Message, Process, Reject, Retry
from svc.processors.simulation import simulated

__all__ = [
    "Message",
    "Process",
    "Reject",
    "Retry",
    "UnusableProcessor",
    "check",
    "find",
    "opened",
    "simulated",
    "unstoppable",
]
