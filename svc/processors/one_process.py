"""The process in which the service runs: no child that a processor has forked may go on in it."""

import os

import structlog

log = structlog.get_logger(__name__)

_generation = 0
"""Grows in each child that is forked: cheaper to ask for, with each message, than the kernel's process id."""


def _note_fork() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_note_fork)


class OneProcess:
    """The process in which the service runs: no other may go on in it."""

    def __init__(self) -> None:
        self._generation = _generation

    def leave_if_forked(self) -> None:
        """End a child that the processor has forked and that comes back from it, by returning or raising (`sys.exit` too). It
        would be the service a second time, on the same sockets: settle the message while the parent still works on it, and
        outlive the stop."""
        if self._generation != _generation:
            log.error(
                "a child process that the processor has forked came back from it, and is ended: end it with os._exit"
            )
            os._exit(1)
