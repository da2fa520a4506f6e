"""The form of a log line for people (`LOG_FORMAT=console`).

    12:03:44 info     drain ended                              outcome=drained cause=maintenance seconds=2.417

Local time, the level at a fixed width, what happened, and its figures from one column on. A logger is named when it is not ours,
a figure that is nothing (None, or empty) is left out, a text is quoted when it would not be clear where it ends. What comes from
outside (a body, an error's text) cannot begin a line of its own or tell the terminal anything: what is not printable is escaped.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from svc.settings import printable

EVENT_WIDTH = 40

NOTHING: tuple[object, ...] = (None, {}, [], ())
"""Figures that are left out."""

BELOW = ("exception", "stack")
"""Texts of several lines: they stand below the line."""

_DIM, _BOLD, _CYAN, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m"

_COLOURS = {"debug": _DIM, "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}

_PLAIN = re.compile(r"""[^\s"'=,{}\[\]]+""")


def may_be_coloured(environ: Mapping[str, str]) -> bool:
    """Whether a terminal is to be given colours: not with `NO_COLOR` (no-color.org), nor on one that knows none."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Console:
    """A structlog processor, the last one."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: object, method: str, event: Mapping[str, Any]) -> str:
        fields = dict(event)
        below = [str(text) for name in BELOW if (text := fields.pop(name, None))]
        level, name = str(fields.pop("level", "")), str(fields.pop("logger", ""))
        at = datetime.fromisoformat(fields.pop("timestamp")).astimezone()
        what = printable(str(fields.pop("event", "")))
        figures = " ".join(
            f"{self._painted(_CYAN, printable(key))}={shown(value)}"
            for key, value in fields.items()
            if value not in NOTHING
        )
        if not _is_ours(name):
            figures = f"{self._painted(_DIM, f'[{printable(name)}]')} {figures}".rstrip()
        line = " ".join(
            (
                self._painted(_DIM, f"{at:%H:%M:%S}"),
                self._painted(_COLOURS.get(level, ""), f"{level:8}"),
                self._painted(_BOLD, what) + " " * (EVENT_WIDTH - len(what)),
                figures,
            )
        )
        return "\n".join((line.rstrip(), *(f"    {printable(one)}" for text in below for one in text.splitlines())))

    def _painted(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours and colour and text else text


def _is_ours(logger: str) -> bool:
    return logger == "svc" or logger.startswith("svc.")


def shown(value: object) -> str:
    """A figure as it stands in the line."""
    if isinstance(value, str):
        return printable(value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False))
    try:
        return printable(json.dumps(value, ensure_ascii=False, default=str))
    except (TypeError, ValueError):  # keys that are no texts, a circle
        return printable(repr(value))
