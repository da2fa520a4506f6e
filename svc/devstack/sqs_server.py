"""A local SQS for development and tests: moto's server, mended, as a program of its own.

    python -m svc.devstack.sqs_server PORT        (0 picks a free port)

Prints its port as one line once it listens, on 127.0.0.1 only, and takes any credentials. It ends on SIGTERM, and when
its standard input is a pipe whose other end is closed, so that it never outlives whoever started it (`stack.py`).

A process of its own because moto is CPU-bound Python: inside the service it would hold the interpreter's lock and
spoil every time that is measured. moto is pinned exactly in the `dev` extra: what follows replaces parts of its
inside, each for a reason given there. Never used against a queue that matters.
"""

import functools
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

# The account within the queue URL of SPEC.md. Read by moto at every request.
os.environ["MOTO_ACCOUNT_ID"] = "000000000000"

import moto.sqs.models as sqs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

_POLL = 0.02
"""Seconds between two looks of a long poll. AWS answers within some ten milliseconds of a send; so does this."""

_IDLE = 60.0
"""Seconds after which a connection that sends nothing, or reads nothing, is closed."""

_lock = threading.RLock()


def _locked(name: str) -> None:
    original = getattr(sqs.SQSBackend, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _lock:
            return original(self, *args, **kwargs)

    setattr(sqs.SQSBackend, name, method)


def _mend() -> None:
    """Make moto's SQS fast on long queues and safe with several clients at once."""
    models: Any = sqs
    backend: Any = sqs.SQSBackend
    # moto asks for the time once per message of the queue and builds a datetime each time: a third of its work.
    models.unix_time = lambda dt=None: time.time()
    models.unix_time_millis = lambda dt=None: time.time() * 1000
    # For each message received, moto computes all attributes of the queue (three scans of all messages) to learn the
    # retention period: quadratic. Nobody develops for four days with messages older than that.
    backend.is_message_valid_based_on_retention_period = lambda self, queue_name, message: True
    # moto locks nothing and its server has a thread per request: sends get lost and deleted messages come back.
    for name in (
        "send_message",
        "delete_message",
        "change_message_visibility",
        "purge_queue",
        "create_queue",
        "delete_queue",
        "set_queue_attributes",
    ):
        _locked(name)
    # A long poll must not hold the lock while it waits, and moto's own loop burns a core while all groups of a FIFO
    # queue are taken: so look without waiting, again and again.
    look = backend.receive_message

    def receive_message(
        self: Any,
        queue_name: str,
        count: int,
        wait_seconds_timeout: int,
        visibility_timeout: int,
        message_attribute_names: list[str] | None = None,
    ) -> Any:
        end = time.monotonic() + wait_seconds_timeout
        while True:
            with _lock:
                found = look(self, queue_name, count, 0, visibility_timeout, message_attribute_names)
            if found or time.monotonic() >= end:
                return found
            time.sleep(_POLL)

    backend.receive_message = receive_message


class _Handler(MotoRequestHandler):
    # Without it a peer that has gone without a word (a frozen or killed client's half-open connection) holds its
    # thread for ever. Counts only while bytes are awaited: a long poll's own wait is not on the socket.
    timeout = _IDLE


class _App:
    """moto's application, with two headers put right.

    Answers lose moto's `Server`: werkzeug adds one too, and a client in Python's development mode refuses two (aiohttp:
    "Duplicate 'Server' header"). Requests without a signature (plain curl) get one: moto takes the region from it, and
    else from the end of `User-Agent`, which makes most clients' requests an error 500.
    """

    _SIGNED = "AWS4-HMAC-SHA256 Credential=dev/20200101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0"

    def __init__(self) -> None:
        self._inner = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [one for one in headers if one[0].lower() != "server"], exc_info)

        environ.setdefault("HTTP_AUTHORIZATION", self._SIGNED)
        answer: Iterable[bytes] = self._inner(environ, start)
        return answer


def _end_with_standard_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main(port: int) -> None:
    """Serve on 127.0.0.1:`port` until ended. Raises SystemExit when the port is taken."""
    # werkzeug reports each request at INFO and each dropped connection as an error.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    _mend()
    server = make_server("127.0.0.1", port, _App(), threaded=True, request_handler=_Handler)
    # A client that goes away in the middle is no event: socketserver would print a traceback for it.
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    # A terminal or /dev/null as standard input says nothing about who started us; a pipe does.
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        raise SystemExit("usage: python -m svc.devstack.sqs_server PORT")
    try:
        main(int(sys.argv[1]))
    except KeyboardInterrupt:
        raise SystemExit(0) from None
