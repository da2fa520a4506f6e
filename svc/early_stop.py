"""A stop that is asked for before the service has a receiver for signals: nothing has been taken yet, so the process may end.

`end()` is the handler of that time. It raises SystemExit wherever the program is, and some places swallow any exception: the
callback of a weak reference (each import has one), a finaliser, a bare `except:` in somebody's module. So the request is kept as
well, and whoever opens the receiver looks at it.
"""

import sys

_asked = False


def end(number: int, frame: object) -> None:
    """Signal handler: end the process with 0."""
    remember(number, frame)
    sys.exit(0)


def remember(number: int, frame: object) -> None:
    """Signal handler: only keep the request, where an exception would do harm (within Trio's own code)."""
    global _asked
    _asked = True


def asked() -> bool:
    """Whether a stop was asked for."""
    return _asked
