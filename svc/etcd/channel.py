"""gRPC towards etcd: the generated stubs, how a channel is set up, unary calls that Trio waits for, and what errors mean.

etcd3 lends its generated stubs only. Its client spins a core while etcd is away, does not come back by itself and
cannot use a password without TLS. Unary calls are futures whose completion wakes Trio.

Nothing here may let a gRPC error or a password out.
"""

import contextlib
import logging
import os
import re
import warnings
from typing import Any

import trio

# gRPC's core prints connection trouble to standard error by itself, past every logger. Read when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
try:
    with warnings.catch_warnings():
        # Some hundred of them, from generated code, whatever version of protobuf there is.
        warnings.simplefilter("ignore", DeprecationWarning)
        # As names of this module too: connection.py makes channels and requests of them.
        import grpc as grpc
        from etcd3 import etcdrpc as etcdrpc
except TypeError as error:  # "Descriptors cannot be created directly"
    raise ImportError(
        "etcd3 needs protobuf's pure-Python implementation, and another one is loaded. Set the environment variable "
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python (or import svc before anything that imports google.protobuf)."
    ) from error

# A thread that waits for a stream looks up ten times a second, so that signal handlers run if it is the main one.
# (gRPC has no public setting for it; a version without this constant loses nothing.)
if hasattr(grpc._common, "MAXIMUM_WAIT_TIMEOUT"):
    grpc._common.MAXIMUM_WAIT_TIMEOUT = 60.0

# And its Python part writes a traceback for each answer that it cannot read, before it raises the error that we tell.
logging.getLogger("grpc").setLevel(logging.CRITICAL)

CHANNEL_OPTIONS = [
    # Pings notice a peer that has gone without a word. Not more often: etcd refuses what comes closer than 5 s
    # (--grpc-keepalive-min-time). The current core obeys ping_timeout_ms, older ones keepalive_timeout_ms.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Channels to one address share connections, and their back-off, unless told not to: a new channel would inherit the
    # trouble that the old one was closed for.
    ("grpc.use_local_subchannel_pool", 1),
    # Despite its name this also bounds one attempt to connect; the default is 20 s. A channel is given up after one
    # failure, so back-off within it hardly matters.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # etcd stands beside the service. gRPC would take http_proxy for it.
    ("grpc.enable_http_proxy", 0),
    # Else gRPC measures the bandwidth by timers, three a second, each of which wakes two threads of an idle process. Without it a
    # stream has 64 KiB on the way at once, which is plenty between neighbours.
    ("grpc.http2.bdp_probe", 0),
    # A fleet of some thousand instances in one answer; the default of 4 MiB is less.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


class EtcdError(Exception):
    """etcd could not do what was asked. The text says which endpoints were tried, what each said, and what to do."""


class Trouble(Exception):
    """One endpoint failed us: what it said, and what an operator can do about it."""

    def __init__(self, said: str, remedy: str, *, denied: bool = False, refused: bool = False) -> None:
        super().__init__(said)
        self.said = said
        self.remedy = remedy
        self.denied = denied
        """etcd is well, and does not let this user do it."""
        self.refused = denied or refused
        """etcd has answered, and will not do it: no permission, no space, …"""


async def answer_to(method: Any, request: Any, metadata: tuple[tuple[str, str], ...]) -> Any:
    """A unary call as a future: no thread waits, and cancelling ends the call at once. Raises grpc.RpcError."""
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: object) -> None:  # in a thread of gRPC's
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future = method.future(request, metadata=metadata)
    future.add_done_callback(wake)
    try:
        await done.wait()
    finally:
        future.cancel()  # does nothing when it is done
    return future.result()


def understood(error: Any, secret: str) -> Trouble:
    """What a gRPC error says, in words for an operator, and what to do about it."""
    code, details = error.code(), details_of(error)
    if secret:
        details = details.replace(secret, "********")
    # "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connect: Connection refused (111)"
    said = re.sub(r"^[A-Z]+: (?:ipv[46]:\S+: )?", "", details.rpartition("last error: ")[2]) or code.name
    refused = code.name in _REFUSALS
    for text, remedy in _REMEDIES:
        if text in details:
            return Trouble(said, remedy, denied=code is grpc.StatusCode.PERMISSION_DENIED, refused=refused)
    said = said if code is grpc.StatusCode.UNAVAILABLE else f"{code.name}: {said}"
    return Trouble(said, CHECK_ENDPOINT, refused=refused)


def details_of(error: Any) -> str:
    return str(error.details() or "")


_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "INVALID_ARGUMENT")

NO_QUORUM = "The etcd cluster has no quorum: bring its members back."

CHECK_ENDPOINT = "Check ETCD_ENDPOINTS, and that etcd runs there and is healthy; if it wants TLS, set ETCD_CA_CERT or write https://."


TOKEN_IS_OLD = ("invalid auth token", "revision of auth store is old")

# etcd's own words (api/v3rpc/rpctypes/error.go) and those of gRPC's TLS.
_REMEDIES = (
    ("invalid user ID or password", "Check ETCD_USERNAME and ETCD_PASSWORD."),
    ("user name is empty", "etcd wants a user: set ETCD_USERNAME and ETCD_PASSWORD."),
    ("authentication is not enabled", "etcd knows no users: unset ETCD_USERNAME and ETCD_PASSWORD."),
    ("permission denied", "Grant the user a role that may read and write the key (etcdctl role grant-permission)."),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "Check ETCD_CA_CERT: etcd's certificate is not of this authority (without one there: of none that the system "
        "trusts), or not for this host.",
    ),
    ("andshake", "Check that etcd speaks TLS there, and ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."),
    ("no leader", NO_QUORUM),
)
