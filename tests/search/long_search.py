"""The long search: schedule after schedule from a range of seeds, in one process or several."""

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator

from .random_schedules import random_schedule
from .run import muted, run_schedule

CHUNK = 200
"""Schedules per piece of work."""

Chunk = tuple[Counter[str], list[tuple[int, str]]]
"""What was tried, and the seed and first violation of each failure."""


def search(schedules: int, seed: int, seconds: float | None, jobs: int) -> int:
    began = time.monotonic()
    tried: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    ranges = [range(first, min(first + CHUNK, seed + schedules)) for first in range(seed, seed + schedules, CHUNK)]
    for part, failed in _pieces(ranges, jobs):
        tried.update(part)
        for one_seed, what in failed:
            print(f"seed {one_seed}: {what}", flush=True)
        failures += failed
        if seconds is not None and time.monotonic() - began > seconds:
            break
    took = time.monotonic() - began
    print(f"tried {tried.pop('schedules', 0)} schedules in {took:.0f} s ({jobs} at a time), seeds from {seed}:")
    print("  " + ", ".join(f"{count} {what}" for what, count in sorted(tried.items())))
    if not failures:
        print("no counter-example")
        return 0
    print(
        f"{len(failures)} failed; see one with --replay SEED: {' '.join(str(one_seed) for one_seed, _ in failures[:50])}"
    )
    return 1


def _pieces(ranges: list[range], jobs: int) -> Iterator[Chunk]:
    if jobs == 1:
        yield from map(_run_chunk, ranges)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_run_chunk, ranges)


def _run_chunk(seeds: range) -> Chunk:
    tried: Counter[str] = Counter()
    failed = []
    # A schedule makes much that is soon dead, and little of it in cycles: a tenth of the time was spent in looking for them.
    gc.set_threshold(100_000, 50, 50)
    with muted():
        for seed in seeds:
            result = run_schedule(random_schedule(seed))
            tried.update(result.tried)
            if result.violations:
                failed.append((seed, result.violations[0]))
    return tried, failed
