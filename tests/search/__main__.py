"""The command line of the search; see `tests/search/__init__.py`."""

import argparse
import sys

from .long_search import search
from .random_schedules import random_schedule
from .run import Result, muted, run_schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.search", description="Search for counter-examples.")
    parser.add_argument("--schedules", type=int, default=1000, help="how many schedules (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first; the others follow it (default 0)")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one schedule and tell its story")
    parser.add_argument(
        "--mutations", action="store_true", help="show in how many schedules each seeded mistake is caught"
    )
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    if options.mutations:
        from .mutations import report

        return report(options.schedules, options.seed)
    return search(options.schedules, options.seed, options.seconds, options.jobs)


def replay(seed: int) -> int:
    schedule = random_schedule(seed)
    print(schedule)
    with muted():
        result = run_schedule(schedule)
    tell(result)
    return 1 if result.violations else 0


def tell(result: Result) -> None:
    """Print the story of a run, in the order of time."""
    assert result.queue is not None
    assert result.witness is not None
    story = [(event.at, 1, str(event)) for event in result.queue.history]
    for runs in result.witness.runs.values():
        for run in runs:
            story.append((run.began, 2, f"a run on {run.receipt} begins at {run.instance}"))
            if run.until is not None:
                what = "finished" if run.finished else "ended"
                story.append((run.until, 0, f"the run on {run.receipt} at {run.instance} {what}"))
    for at, _, what in sorted(story, key=lambda one: one[:2]):
        print(f"{at:10.3f}  {what}")
    print("\n".join(result.violations) or "nothing is wrong")


if __name__ == "__main__":
    sys.exit(main())
