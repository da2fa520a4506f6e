"""The `svc` command, and `python -m svc`: makes a stop during the first second count, then goes to `cli.py`.

The imports take about a second. Until `service.py` has its signal receiver open, SIGTERM would kill the process, or, where it is
PID 1 of a container, be dropped by the kernel, and the orchestrator would wait out its whole grace period.
"""

import signal
import sys


def main() -> None:
    """The `svc` command. Nothing has been taken yet when a signal comes this early: ending at once is a clean stop."""
    if sys.argv[1:2] in (["run"], ["dev"]):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
    from svc.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
