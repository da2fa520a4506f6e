"""Logging: one line per event, for people (`console.py`) or machines (JSON), from our code, the libraries and the processor
alike. Every field of a line is documented in `log_fields.py`; a test holds every call of ours to that table.

Our own code logs through structlog, everything else through the standard library; both end in one handler on stderr, and both
carry what is bound to the task they run in (the message id). Colours only on a terminal.

Logging never holds up the service and never ends it: a line that cannot be written (the disk is full, the reader has gone) or not
soon (nobody reads) is dropped, and counted in a line of its own when writing works again.
"""

import logging
import os
import select
import sys
from typing import Literal, TextIO

import structlog

from svc.telemetry.console import Console, may_be_coloured

PATIENCE = 0.1
"""Seconds that the first line waits for a reader who does not read; those after it do not wait at all until he reads again. The
event loop stands still meanwhile, and heartbeats, the drain and /health with it: hence so little."""

CHUNK = 4096
"""Bytes at once. A pipe that polls as writable takes so many without blocking (pipe(7), PIPE_BUF)."""


LEVELS = ("debug", "info", "warning", "error")

NOISY = ("httpx", "httpx2", "hypercorn", "asyncio", "quart", "psycopg")
"""What these say below a warning is about single requests, or repeats what our own lines say: only at `debug`."""

SILENT = ("botocore", "aiobotocore", "hpack")
"""What these say below a warning is never logged: at their `debug` they write down requests with their signed headers, the
session token among them, the bodies of messages, and etcd's token."""

log = structlog.get_logger(__name__)


def through_stdlib() -> list[structlog.typing.Processor]:
    """Send what is logged through structlog into the standard library's logging; returns the processors that every line needs,
    wherever it comes from."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return shared


class _Lines(logging.Handler):
    """Whole lines to a stream. To its descriptor where it has one: Python's own buffer would block, keep what the disk did not
    take, and change the exit code when it cannot be flushed at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lost = 0
        self._why = ""
        self._broken_off = False
        self._blocked = False
        self._descriptor: int | None
        try:
            self._descriptor = stream.fileno()
        except OSError:  # a stream in memory
            self._descriptor = None
        else:
            self._writable = select.poll()
            self._writable.register(self._descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self._lost and self._write(self._loss()):
            self._lost = 0
        if not self._write(line):
            self._lost += 1

    def _loss(self) -> str:
        told = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
        return self.format(
            logging.makeLogRecord({**told, "msg": "%d log lines were lost: %s", "args": (self._lost, self._why)})
        )

    def _write(self, line: str) -> bool:
        if self._descriptor is None:
            self._stream.write(f"{line}\n")
            return True
        data = f"{line}\n".encode(self._stream.encoding or "utf-8", "backslashreplace")
        if self._broken_off:
            data = b"\n" + data
        rest = data
        try:
            while rest:
                if not self._writable.poll(0 if self._blocked else PATIENCE * 1000):
                    self._blocked = True
                    raise TimeoutError("nobody reads them")
                self._blocked = False
                rest = rest[os.write(self._descriptor, rest[:CHUNK]) :]
        except OSError as error:
            self._broken_off = self._broken_off or len(rest) < len(data)
            self._why = str(error.strerror or error)
            return False
        self._broken_off = False
        return True


def configure(form: Literal["console", "json"], level: str, stream: TextIO = sys.stderr) -> None:
    """Set logging up for the whole process. `level` is `debug`, `info`, `warning` or `error`."""
    shared = through_stdlib()
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = Console(colours=stream.isatty() and may_be_coloured(os.environ))
    handler = _Lines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    for old in [held for held in root.handlers if isinstance(held.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    _set_level(level)


def _set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    for name in SILENT:
        logging.getLogger(name).setLevel(logging.WARNING)


def level() -> str:
    """The least level that is logged now: one of `LEVELS`."""
    return logging.getLevelName(logging.getLogger().level).lower()


def change_level(wanted: str, *, by: str) -> None:
    """Change it for the whole process, to one of `LEVELS`. A line says so, whatever is logged before and after."""
    before = level()
    _set_level("info")
    log.info("log level changed", log_level=wanted, previous_log_level=before, by=by)
    _set_level(wanted)


def toggle_level(configured: str, *, by: str) -> None:
    """To `debug`, or back to the configured level."""
    change_level(configured if level() == "debug" else "debug", by=by)
