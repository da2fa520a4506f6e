"""Signals: what SIGHUP means to this process, and a stop that comes before the service has a receiver for signals.

Of SIGHUP three things are usual, and how the process was started tells which:

- it is ignored when the process starts: somebody wants it to outlive its terminal (`nohup`), and it stays ignored;
- there is a controlling terminal: the terminal has gone away, so the service drains and stops, as for SIGTERM;
- there is none (a daemon, a container): an operator's sign, by old custom to read the configuration again. Ours is the
  environment, so the one thing that can change is the level of the log: `debug`, and back at the next one.

Before there is a receiver nothing has been taken, so a stop may end the process. `end_early()` is the handler of that time.
It raises SystemExit wherever the program is, and some places swallow any exception: the callback of a weak reference (each
import has one), a finaliser, a bare `except:` in somebody's module. So the request is kept as well, and whoever opens the
receiver looks at it.
"""

import os
import signal
import sys
from enum import Enum

SIGHUP = signal.SIGHUP


class Hangup(Enum):
    """What SIGHUP means."""

    NOTHING = "nothing"
    STOP = "stop"
    LOG_LEVEL = "log level"


def hangup() -> Hangup:
    """Of SIGHUP to this process. To be asked before a handler is set."""
    if signal.getsignal(SIGHUP) is signal.SIG_IGN:
        return Hangup.NOTHING
    return Hangup.STOP if _has_terminal() else Hangup.LOG_LEVEL


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


_stop_asked = False


def end_early(number: int, frame: object) -> None:
    """Signal handler: end the process with 0."""
    remember(number, frame)
    sys.exit(0)


def remember(number: int, frame: object) -> None:
    """Signal handler: only keep the request, where an exception would do harm (within Trio's own code)."""
    global _stop_asked
    _stop_asked = True


def stop_asked() -> bool:
    """Whether a stop was asked for."""
    return _stop_asked
