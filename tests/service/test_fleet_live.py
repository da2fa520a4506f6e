"""A slice of the fleet's proof (`python -m tests.fleet`): one round with everything that happens in it, on real processes."""

from pathlib import Path

import pytest

from tests.fleet.__main__ import holds
from tests.fleet.proof import rounds


@pytest.mark.slow
async def test_zero_means_that_everybody_has_drained(tmp_path: Path) -> None:
    (result,), tally = await rounds(tmp_path, 1, seed=20261125)
    assert not result.faults
    assert result.code == 0
    assert holds(tally), tally
    assert tally.sent > 0
