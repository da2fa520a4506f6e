"""The command line; see `tests/exactly_once/__init__.py`."""

import argparse
import sys

from .proof import run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.exactly_once", description="Exactly once, with real processes."
    )
    parser.add_argument("--messages", type=int, default=5_000, help="how many (default 5000)")
    parser.add_argument("--instances", type=int, default=3, help="how many at once (default 3)")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills, freezes, cuts (default 4)")
    parser.add_argument("--seconds", type=float, help="give up after so many (default: 60, and 1 for each 20 messages)")
    parser.add_argument("--seed", type=int, default=0, help="of what goes wrong when (default 0)")
    options = parser.parse_args()
    seconds = options.seconds or 60 + options.messages / 20
    found = run(options.messages, instances=options.instances, every=options.every, seconds=seconds, seed=options.seed)
    did = ", ".join(f"{count} {what}" for what, count in sorted(found.did.items()))
    told = ", ".join(f"{count} {what}" for what, count in sorted(found.told.items()))
    print(f"{found.messages} messages in {found.seconds:.0f} s; {did}; the log: {told}")
    print("\n".join(found.faults) or "each has its effects exactly once, nothing is left")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
