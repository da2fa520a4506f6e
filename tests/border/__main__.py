"""Throws generated answers at every parser and every call for so many minutes, and fails at the first that is not held back.

python -m tests.border --minutes 10
"""

import argparse
import logging
import os
import sys
import time
from collections import Counter

os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}

from tests.border.properties import PROPERTIES, check


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.border", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="where to begin (default: 0)")
    options = parser.parse_args()
    logging.getLogger("svc").setLevel(logging.CRITICAL)  # it tells of each message that it leaves out
    end = time.monotonic() + options.minutes * 60
    tried: Counter[str] = Counter()
    number = options.seed
    while time.monotonic() < end:
        for name, (_, _, examples) in PROPERTIES.items():
            if time.monotonic() >= end:
                break
            try:
                tried[name] += check(name, examples, number)
            except BaseException:
                print(f"{name} does not hold; again with --seed {number}", file=sys.stderr)
                raise
        number += 1
    told = ", ".join(f"{count} for {name}" for name, count in tried.items())
    print(f"{tried.total()} examples without a find: {told}; seeds {options.seed} to {number - 1}")


if __name__ == "__main__":
    main()
