"""Progress on a terminal, for commands that take a while: short lines that rewrite themselves. In a pipe: nothing.

    steps = Progress(sys.stderr)
    with steps.step("starting SQS and etcd"):       →  ✓ starting SQS and etcd (0.9 s)
        ...
    with steps.count("sending", total=500) as sent:  →  sending ██████░░░░ 300/500
        sent(300)

What a command has to *say* it says itself, as before: progress tells a person that something goes on, and how far, and is no
part of the output. So it writes nothing when the stream is no terminal, and nothing here may fail a command.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TextIO

EVERY = 0.1
"""Seconds between two rewritings of a line: a terminal over a slow connection must not hold the work up."""

BAR = 24
"""Cells of a full bar."""

_CLEAR = "\r\x1b[2K"
_DIM, _GREEN, _RED, _PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


class Progress:
    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._live = _is_terminal(stream)
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._written_at = -EVERY

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """One thing that is done or fails. Yields a function that changes what is told beside it while it goes on."""
        began = self._clock()
        self._rewrite(f"{self._dim('…')} {text}", at_once=True)
        try:
            yield lambda detail: self._rewrite(f"{self._dim('…')} {text} {self._dim(detail)}")
        except BaseException:
            self._end(f"{self._paint('✗', _RED)} {text} {self._dim(self._took(began))}")
            raise
        self._end(f"{self._paint('✓', _GREEN)} {text} {self._dim(self._took(began))}")

    @contextlib.contextmanager
    def count(self, text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Many of a kind. Yields a function that takes how many are done by now; without a total there is no bar."""
        began, done = self._clock(), 0

        def tell(now_done: int) -> None:
            nonlocal done
            done = now_done
            self._rewrite(f"{self._dim('…')} {text} {self._bar(done, total)}")

        self._rewrite(f"{self._dim('…')} {text} {self._bar(0, total)}", at_once=True)
        mark = self._paint("✗", _RED)
        try:
            yield tell
            mark = self._paint("✓", _GREEN)
        finally:
            figures = f"{done}" if total is None else f"{done}/{total}"
            self._end(f"{mark} {text} {figures} {self._dim(self._took(began))}")

    def _bar(self, done: int, total: int | None) -> str:
        if not total:
            return str(done)
        full = min(BAR, BAR * done // total)
        return f"{'█' * full}{self._dim('░' * (BAR - full))} {done}/{total}"

    def _took(self, began: float) -> str:
        return f"({self._clock() - began:.1f} s)"

    def _dim(self, text: str) -> str:
        return self._paint(text, _DIM)

    def _paint(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour and text else text

    def _rewrite(self, line: str, *, at_once: bool = False) -> None:
        now = self._clock()
        if at_once or now - self._written_at >= EVERY:
            self._written_at = now
            self._write(_CLEAR + line)

    def _end(self, line: str) -> None:
        self._write(f"{_CLEAR}{line}\n")

    def _write(self, text: str) -> None:
        if self._live:
            # A terminal that has gone, or one that knows no such character, is no reason to fail.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (OSError, ValueError):
        return False
