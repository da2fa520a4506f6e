"""The user's side of the fence: what a processor gets, what it may raise, how it is found and called, and the default one.

Never here: queues, receipt handles, maintenance. Begin reading at `message.py`; `svc.processors:simulated` is the default.
The names below are what other suites, and users, may use.
"""

from svc.processors import system
from svc.processors.arguments import InvalidMessage
from svc.processors.batch import UNMARKED, AnyProcess, Batch, Batching, Item
from svc.processors.calling import AsyncioLoop, asyncio_loop, opened, sender_context, threads_of
from svc.processors.envelopes import CONTEXT_NAMES, EventBridgeEnvelope, Peeled, S3Envelope, S3Record, SnsEnvelope
from svc.processors.finding import UnusableProcessor, check, find
from svc.processors.message import Holder, Message, Now, Process, Reject, Retry, hold, wall_clock
from svc.processors.options import Options, options_of, processor
from svc.processors.shutdown import ShuttingDown
from svc.processors.simulation import simulated
from svc.processors.system import System
from svc.processors.threads import ThreadRun, Threads

__all__ = [
    "CONTEXT_NAMES",
    "UNMARKED",
    "AnyProcess",
    "AsyncioLoop",
    "Batch",
    "Batching",
    "EventBridgeEnvelope",
    "Holder",
    "InvalidMessage",
    "Item",
    "Message",
    "Now",
    "Options",
    "Peeled",
    "Process",
    "Reject",
    "Retry",
    "S3Envelope",
    "S3Record",
    "ShuttingDown",
    "SnsEnvelope",
    "System",
    "ThreadRun",
    "Threads",
    "UnusableProcessor",
    "asyncio_loop",
    "check",
    "find",
    "hold",
    "opened",
    "options_of",
    "processor",
    "sender_context",
    "simulated",
    "system",
    "threads_of",
    "wall_clock",
]
