"""What SIGHUP means to this process. Three things are usual, and how the process was started tells which:

- it is ignored when the process starts: somebody wants it to outlive its terminal (`nohup`), and it stays ignored;
- there is a controlling terminal: the terminal has gone away, so the service drains and stops, as for SIGTERM;
- there is none (a daemon, a container): an operator's sign, by old custom to read the configuration again. Ours is the
  environment, so the one thing that can change is the level of the log: `debug`, and back at the next one.
"""

import os
import signal
from enum import Enum

SIGNAL = signal.SIGHUP


class Meaning(Enum):
    NOTHING = "nothing"
    STOP = "stop"
    LOG_LEVEL = "log level"


def meaning() -> Meaning:
    """Of SIGHUP to this process. To be asked before a handler is set."""
    if signal.getsignal(SIGNAL) is signal.SIG_IGN:
        return Meaning.NOTHING
    return Meaning.STOP if _has_terminal() else Meaning.LOG_LEVEL


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
