"""The search can fail: each seeded mistake is caught within a bounded number of schedules.

`python -m tests.search --mutations` tells in how many.
"""

import pytest

from tests.search.mutations import MUTATIONS, caught
from tests.search.run import muted

WITHIN = 150
"""Schedules."""

FIRST_SEEDS = {
    "settle_within_the_work": 70,
    "lease_from_task_start": 80,
    "lost_wake_up": 84,
    "successor_after_failure": 46,
    "edge_triggered_switch": 27,
    "acknowledge_what_was_not_acted_on": 30,
    "receive_before_registration": 30,
}
"""Where the search for the rarer ones begins, to keep this short."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_search_catches(name: str):
    first = FIRST_SEEDS.get(name, 0)
    with muted():
        found = next(caught(MUTATIONS[name], range(first, first + WITHIN)), None)
    assert found is not None
