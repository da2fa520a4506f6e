"""The user's side of the fence: what a processor gets, what it may raise, how it is found and called, and the default one.

Never here: queues, receipt handles, maintenance. Begin reading at `message.py`; `svc.processors:simulated` is the default.
The names below are what other suites, and users, may use.
"""

from svc.processors import system
from svc.processors.arguments import InvalidMessage
from svc.processors.batch import UNMARKED, AnyProcess, Batch, Batching, Item, Unmarked
from svc.processors.calling import AsyncioLoop, asyncio_loop, opened, sender_context, threads_of
from svc.processors.envelopes import CONTEXT_NAMES, EventBridgeEnvelope, Peeled, S3Envelope, S3Record, SnsEnvelope
from svc.processors.finding import UnusableProcessor, check, find, opens, settings_arguments
from svc.processors.message import Holder, Message, Now, Process, Reject, Retry, hold, received_message, wall_clock
from svc.processors.options import Options, options_of, processor
from svc.processors.shutdown import ShuttingDown
from svc.processors.simulation import simulated
from svc.processors.system import System
from svc.processors.tasks_left import count_tasks, end_what_was_left, started_here
from svc.processors.threads import ThreadRun, Threads
from svc.processors.transaction import Parameters, Result, Transaction
from svc.processors.unit_of_work import (
    Claim,
    Inbox,
    NotCommitted,
    NotOurs,
    Session,
    ThreadSession,
    UnitOfWork,
    unit_of_work_of,
)

__all__ = [
    "CONTEXT_NAMES",
    "UNMARKED",
    "AnyProcess",
    "AsyncioLoop",
    "Batch",
    "Batching",
    "Claim",
    "EventBridgeEnvelope",
    "Holder",
    "Inbox",
    "InvalidMessage",
    "Item",
    "Message",
    "NotCommitted",
    "NotOurs",
    "Now",
    "Options",
    "Parameters",
    "Peeled",
    "Process",
    "Reject",
    "Result",
    "Retry",
    "S3Envelope",
    "S3Record",
    "Session",
    "ShuttingDown",
    "SnsEnvelope",
    "System",
    "ThreadRun",
    "ThreadSession",
    "Threads",
    "Transaction",
    "UnitOfWork",
    "Unmarked",
    "UnusableProcessor",
    "asyncio_loop",
    "check",
    "count_tasks",
    "end_what_was_left",
    "find",
    "hold",
    "opened",
    "opens",
    "options_of",
    "processor",
    "received_message",
    "sender_context",
    "settings_arguments",
    "simulated",
    "started_here",
    "system",
    "threads_of",
    "unit_of_work_of",
    "wall_clock",
]
