"""The bounded slice of the search over exactly once, and its seeded mistakes. `python -m tests.search.inbox` is the long one."""

import pytest

from tests.search.inbox import inbox_schedule, run_with_inbox
from tests.search.mutations import VOID, mutated
from tests.search.mutations_inbox import MUTATIONS
from tests.search.run import muted

SEEDS = [range(12), pytest.param(range(12, 500), marks=pytest.mark.slow)]

WITHIN = 200
"""Schedules in which each mistake is caught."""

FIRST_SEEDS = {
    "key_after_effect": 17,
    "lease_not_checked": 18,
    "retention_shorter_than_redelivery": 17,
    "pool_closed_before_the_worker": 12,
    "busy_is_a_duplicate": 17,
    "a_duplicate_is_processed": 17,
    "a_lost_commit_is_a_success": 13,
    "a_lost_answer_is_tried_again": 12,
}
"""Where an ordinary run's search begins, to keep it short; `-m slow` begins with the first schedule."""


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_no_schedule_commits_an_effect_twice_or_never(seeds: range) -> None:
    with muted():
        failed = {seed: found for seed in seeds if (found := run_with_inbox(inbox_schedule(seed)).violations)}
    assert not failed


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["near", "from the first"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_search_catches(name: str, whole: bool) -> None:
    first = 0 if whole else FIRST_SEEDS.get(name, 0)
    with muted():
        for seed in range(first, first + WITHIN):
            result = run_with_inbox(inbox_schedule(seed), mutated(MUTATIONS[name]))
            assert not [error for error in result.errors if isinstance(error, VOID)]
            if result.violations:
                return
    pytest.fail(f"not caught in {WITHIN} schedules")
