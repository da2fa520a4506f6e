"""Every field of a log line: its type, what it holds, and which lines have it. Data only.

The logging itself does not read this. `python -m docs.generate` makes docs/reference/log-fields.md of it, and
tests/telemetry/test_logs.py holds it to the calls: a new field of a call needs a row here.
"""

from typing import NamedTuple


class Field(NamedTuple):
    names: tuple[str, ...]
    """As they stand in a line of `LOG_FORMAT=json`; several where they belong together."""
    kind: str
    """JSON types."""
    what: str
    where: str
    """Which lines have it."""


FIELDS = (
    Field(("timestamp",), "string", "RFC 3339, UTC", "every line"),
    Field(("level",), "string", "`debug`, `info`, `warning`, `error` or `critical`", "every line"),
    Field(
        ("event",), "string", "what happened, in words that do not change from one occasion to the next", "every line"
    ),
    Field(("logger",), "string", "the module", "every line"),
    Field(("exception",), "string", "the traceback", "failed messages, our own failures"),
    Field(("message_id",), "string", "the message", "what is logged from within a processor, and about a message"),
    Field(("key",), "string", "what the inbox knows the message by", "a message whose effects were committed before"),
    Field(
        ("message",),
        "string",
        "what a processor found where it expected something else",
        "a message that is deleted unread",
    ),
    Field(("trace_id", "span_id"), "string", "the trace, in hexadecimal", "from within a processor, with traces"),
    Field(("error",), "string", "what went wrong, and often what to do", "troubles"),
    Field(("after_seconds",), "number", "how long the trouble was", "the line that says that it is over"),
    Field(
        ("reason",),
        "string",
        "what a person, or the processor's `Retry` or `Reject`, gave as the reason",
        "maintenance, messages",
    ),
    Field(("by",), "string", "who asked", "maintenance, `log level changed`"),
    Field(("cause",), "string", "`maintenance` or `stop`", "drains"),
    Field(("timeout_seconds",), "number", "the time it has", "`drain begins`"),
    Field(
        ("outcome", "sqs", "http"),
        "string, objects",
        "how it ended, and the figures of the report that are not nothing",
        "`drain ended`",
    ),
    Field(("seconds",), "number", "how long it took", "`drain ended`, a standstill, a client given up, simulated work"),
    Field(("on",), "boolean", "what the key says", "the key was read"),
    Field(("revision",), "integer", "etcd's", "the key was read, etcd connected"),
    Field(("after",), "string", "the phase before", "`running`"),
    Field(("api", "queue_url", "maintenance_key"), "string", "where the API is, which queue, which key", "`started`"),
    Field(("etcd", "maintenance_file"), "string", "`off`, and the file that holds the switch instead", "`started`"),
    Field(
        ("wait_seconds", "configured_seconds"),
        "integer",
        "the long-poll wait, and `SQS_WAIT_TIME_SECONDS`",
        "at the start",
    ),
    Field(("receive_count",), "integer", "of the message", "`message failed`"),
    Field(("visible_again_in_seconds",), "integer", "when SQS delivers it again", "failed and retried messages"),
    Field(
        ("message_ids", "receives_without_answer"),
        "array, integer",
        "what was left",
        "stopped before everything was settled",
    ),
    Field(("attempts",), "integer", "how often in vain so far", "settlement of one message"),
    Field(
        ("messages", "action", "failed_calls"),
        "integer, string, integer",
        "how many messages, asked for what, and how often in vain",
        "settlement and leases",
    ),
    Field(
        ("failures", "runs", "pause_seconds"),
        "number",
        "what the circuit breaker saw, and for how long it pauses",
        "the circuit breaker",
    ),
    Field(("database",), "string", "which, and where", "the database was connected to, or is not there"),
    Field(
        ("connections", "ended_in_use", "unconfirmed"),
        "integer",
        "that there were; of these lent out, and ended; of these the server has not confirmed the end",
        "the database's connections are closed",
    ),
    Field(("blocked_seconds", "stack"), "number, string", "for how long, and where", "the event loop is blocked"),
    Field(("thread",), "string", "its name", "a thread that goes on"),
    Field(("threads",), "number", "that go on", "more threads go on than there are places"),
    Field(
        ("returned", "body"),
        "string",
        "what the processor returned; the beginning of the body",
        "a processor that returns something; simulated work",
    ),
    Field(("endpoint",), "string", "of etcd", "etcd connected, etcd lost"),
    Field(("instance",), "string", "the name in the fleet", "registrations"),
    Field(
        ("limit", "setting", "closed_to_make_room"),
        "integer, string, integer",
        "of the connections to the API",
        "too many connections",
    ),
    Field(("log_level", "previous_log_level"), "string", "now, and before", "`log level changed`"),
    Field(
        ("part",), "string", "in which of the service, as in the metric `svc_internal_errors_total`", "internal errors"
    ),
    Field(("missing", "variable"), "string", "the package, the variable", "traces that cannot be as asked for"),
)
