"""The `svc` command, and `python -m svc`: makes a stop during the first second count, then goes to `cli/main.py`.

The imports take about a second. Until `service.py` has its signal receiver open, SIGTERM would kill the process, or, where it is
PID 1 of a container, be dropped by the kernel, and the orchestrator would wait out its whole grace period. Before this file runs,
Python has needed a tenth of a second: the image starts it with both signals blocked, and what is blocked is not dropped.
"""

import os
import signal
import sys


def main() -> None:
    """The `svc` command. Nothing has been taken yet when a signal comes this early: ending at once is a clean stop."""
    _open_standard_streams()
    if sys.argv[1:2] in (["run"], ["dev"]):
        from svc import signals

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signals.end_early)

        match signals.hangup():
            case signals.Hangup.STOP:
                signal.signal(signals.SIGHUP, signals.end_early)
            case signals.Hangup.LOG_LEVEL:
                signal.signal(signals.SIGHUP, lambda *_: None)  # too early to mean anything; it must not kill
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # delivers what came before
    from svc.cli.main import main as cli

    cli()


def _open_standard_streams() -> None:
    """Started with a standard stream closed, as by `2>&-`, the next socket would become that stream, and take what libraries
    write to it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good


if __name__ == "__main__":
    main()
