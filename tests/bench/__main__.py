"""The command line of the bench; see `tests/bench/__init__.py`."""

import argparse
import os
import statistics
import sys

from svc.devstack import Etcd

from .consumers import CONSUMERS, CannotRun, Place
from .saturation import saturate
from .stubbed import Stub


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What svc costs, beside its peers.")
    parser.add_argument("--consumers", default="", help="which, by key, with commas (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="(default 3)")
    parser.add_argument("--backlog", type=int, default=20_000, help="messages (default 20000)")
    parser.add_argument("--seconds", type=float, default=8.0, help="at most for one run of one consumer (default 8)")
    options = parser.parse_args()
    chosen = [one for one in CONSUMERS if not options.consumers or one.key in options.consumers.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    results: dict[str, list] = {one.key: [] for one in chosen}
    with Stub(cores[-1]) as stub, Etcd() as etcd:
        for repeat in range(options.repeats):
            for one in chosen if repeat % 2 == 0 else reversed(chosen):
                place = Place(stub.url, f"{one.key}-{repeat}", etcd.endpoint)
                try:
                    result = saturate(one, stub, place, backlog=options.backlog, seconds=options.seconds, core=cores[0])
                except CannotRun as error:
                    print(f"{one.key}: {error}", file=sys.stderr)
                    continue
                results[one.key].append(result)
                print(
                    f"{one.key:12} {result.per_second:7.0f}/s {result.cpu_per_message * 1e6:6.0f} µs/message "
                    f"{result.requests_per_message:6.3f} requests/message, stub busy {result.stub_share:.0%}",
                    flush=True,
                )
    print("\nmedians")
    for key, found in results.items():
        if found:
            print(
                f"{key:12} {statistics.median(r.per_second for r in found):7.0f}/s "
                f"{statistics.median(r.cpu_per_message for r in found) * 1e6:6.0f} µs/message "
                f"{statistics.median(r.requests_per_message for r in found):6.3f} requests/message"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
