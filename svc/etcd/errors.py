"""What goes wrong between us and etcd, in words for an operator, with what to do about it.

Nothing here may let a password out.
"""


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


NO_QUORUM = "The etcd cluster has no quorum: bring its members back."

CHECK_ENDPOINT = "Check ETCD_ENDPOINTS, and that etcd runs there and is healthy; if it wants TLS, set ETCD_CA_CERT or write https://."

CHECK_FILES = "Check ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."

CHECK_TLS = "Check that etcd speaks TLS there, and ETCD_CA_CERT, ETCD_CERT and ETCD_KEY."

CHECK_AUTHORITY = (
    "Check ETCD_CA_CERT: etcd's certificate is not of this authority (without one there: of none that the system trusts), "
    "or not for this host."
)

MORE_FILES = "Raise the limit of open files (ulimit -n), or find out who uses them up."

MORE_THREADS = "Raise the limit of processes and threads (ulimit -u), or find out who uses them up."

TOKEN_IS_OLD = ("invalid auth token", "revision of auth store is old")

# etcd's own words (api/v3rpc/rpctypes/error.go).
_REMEDIES = (
    ("invalid user ID or password", "Check ETCD_USERNAME and ETCD_PASSWORD."),
    ("user name is empty", "etcd wants a user: set ETCD_USERNAME and ETCD_PASSWORD."),
    ("authentication is not enabled", "etcd knows no users: unset ETCD_USERNAME and ETCD_PASSWORD."),
    ("permission denied", "Grant the user a role that may read and write the key (etcdctl role grant-permission)."),
    ("no leader", NO_QUORUM),
)

# Those of gRPC, by number (its public list of status codes).
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "INVALID_ARGUMENT")


def trouble_of(status: int, message: str) -> Trouble:
    """What a gRPC status other than 0 says, and what to do about it."""
    code = _CODES[status] if 0 < status < len(_CODES) else f"status {status}"
    refused = code in _REFUSALS
    said = message or code
    for text, remedy in _REMEDIES:
        if text in message:
            return Trouble(said, remedy, denied=code == "PERMISSION_DENIED", refused=refused)
    return Trouble(said if code in (said, "UNAVAILABLE") else f"{code}: {said}", CHECK_ENDPOINT, refused=refused)
