"""python -m tests.fleet --rounds 20 [--seed N]: a fleet of real processes through maintenance after maintenance.

Prints a line per round and the tally of all messages; exit code 1 when anything was not as it should be.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from tests.conftest import _ENVIRONMENT
from tests.fleet.proof import RoundResult, rounds


def tell(result: RoundResult) -> None:
    verdict = "holds" if not result.faults else "; ".join(result.faults)
    print(
        f"round {result.number:2}: exit {result.code}, all drained after {result.seconds:5.1f} s, all running after "
        f"{result.off_seconds:4.1f} s, {result.killed} killed ({'named' if result.named_dead else 'gone before'}), "
        f"{result.frozen} frozen: {verdict}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    told = parser.parse_args()
    print(f"seed {told.seed}")
    with tempfile.TemporaryDirectory(prefix="svc-fleet-") as folder:
        results, tally = trio.run(partial(rounds, Path(folder), told.rounds, told.seed, tell=tell))
    print(
        f"{len(results)} rounds; messages: {tally.sent} sent, {tally.lost} lost, {tally.stranded} stranded, "
        f"{tally.duplicates} processed again ({tally.explained} of them begun by an instance that was killed), "
        f"{tally.concurrent} in two runs at once"
    )
    faulty = [result for result in results if result.faults]
    clean = not (faulty or tally.lost or tally.stranded or tally.concurrent or tally.duplicates - tally.explained)
    print("every round holds" if clean else f"{len(faulty)} round(s) do not hold")
    return 0 if clean else 1


if __name__ == "__main__":
    import os

    os.environ.update(_ENVIRONMENT)
    sys.exit(main())
