"""The user's side of the fence: what a processor gets, what it may raise, how it is found and called, and the default one.

Never here: queues, receipt handles, maintenance. Begin reading at `message.py`; `svc.processors:simulated` is the default.
The names below are what other suites, and users, may use.
"""

from svc.processors.calling import (
    Message,
    Process,
    Reject,
    Retry,
    UnusableProcessor,
    check,
    find,
    opened,
    simulated,
    unstoppable,
)

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
