"""Logging: one line per event, for people (`console`) or machines (`json`), from our code, the libraries and the processor alike.

Our own code logs through structlog, everything else through the standard library; both end in one handler on stderr, and both
carry what is bound to the task they run in (the message id). Colours only on a terminal.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog


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


def configure(form: Literal["console", "json"], level: str, stream: TextIO = sys.stderr) -> None:
    """Set logging up for the whole process. `level` is `debug`, `info`, `warning` or `error`."""
    shared = through_stdlib()
    renderer: list[structlog.typing.Processor]
    if form == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    for old in [held for held in root.handlers if isinstance(held.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # What these say below a warning is about single requests, or repeats what our own lines say.
    for noisy in ("httpx", "hypercorn", "botocore", "aiobotocore", "asyncio", "quart"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
