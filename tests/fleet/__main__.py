"""python -m tests.fleet [--rounds 20] [--seed N]: a fleet of real processes through maintenance after maintenance, then through a
rolling restart. Prints a line per round and the tally of all messages; exit code 1 when anything was not as it should be.

python -m tests.fleet --timing: how long fleets of 1, 5, 20 and 50 take to answer, and what they cost etcd.
python -m tests.fleet --quiet 50: how long three idle instances take to be quiet, in so many rounds; exit code 1 above a second.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from tests.conftest import _ENVIRONMENT
from tests.fleet import timing
from tests.fleet.proof import RoundResult, Tally, rolling, rounds


def tell(result: RoundResult) -> None:
    verdict = "; ".join(result.faults) or "holds"
    if result.late:
        verdict += f" (at the thaw: {'; '.join(result.late)})"
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
    parser.add_argument("--timing", action="store_true")
    parser.add_argument("--quiet", type=int, metavar="ROUNDS")
    told = parser.parse_args()
    if told.quiet:
        timing.tell_quiet(found := trio.run(timing.quiet, told.quiet))
        return 0 if sorted(found)[-1 - len(found) // 100] <= 1 else 1
    if not told.timing:
        print(f"seed {told.seed}")
    if told.timing:
        trio.run(timing.table)
        return 0
    with tempfile.TemporaryDirectory(prefix="svc-fleet-") as folder:
        results, tally = trio.run(partial(rounds, Path(folder), told.rounds, told.seed, tell=tell))
    print(f"{len(results)} rounds; {said(tally)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="svc-fleet-") as folder:
        faults, restarted = trio.run(rolling, Path(folder), told.seed)
    print(f"rolling restart: {'; '.join(faults) or 'holds'}; {said(restarted)}")
    faulty = [result for result in results if result.faults]
    clean = not faults and not faulty and holds(tally) and holds(restarted)
    print("everything holds" if clean else f"{len(faulty)} of {len(results)} rounds do not hold, or the tally does not")
    return 0 if clean else 1


def said(tally: Tally) -> str:
    return (
        f"messages: {tally.sent} sent, {tally.lost} lost, {tally.stranded} stranded, {tally.duplicates} processed again "
        f"({tally.explained} of them begun by an instance that was killed), {tally.concurrent} in two runs at once"
    )


def holds(tally: Tally) -> bool:
    return not (tally.lost or tally.stranded or tally.concurrent or tally.duplicates - tally.explained)


if __name__ == "__main__":
    import os

    os.environ.update(_ENVIRONMENT)
    sys.exit(main())
