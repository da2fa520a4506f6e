"""A slice of the fleet's proof (`python -m tests.fleet`): one round with everything that happens in it, on real processes."""

from pathlib import Path

import pytest

from tests.fleet.__main__ import holds
from tests.fleet.proof import rounds


async def test_the_command_ends_with_0_only_when_everybody_has_drained_whatever_happens_meanwhile(
    tmp_path: Path,
) -> None:
    (result,), tally = await rounds(tmp_path, 1, seed=20261125)
    assert not result.faults
    assert result.code == 0
    assert holds(tally), tally
    assert tally.sent > 0
