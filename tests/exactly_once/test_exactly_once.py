"""A slice of the proof: some messages, with everything that goes wrong. `python -m tests.exactly_once` is the long one."""

import pytest

from tests.exactly_once.proof import run


@pytest.mark.slow
def test_each_message_has_its_effects_exactly_once() -> None:
    found = run(600, instances=2, every=2.0, seconds=120, seed=1)
    assert found.faults == []
    assert found.did["killed"] > 0
