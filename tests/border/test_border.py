"""Generated answers, a bounded number of them: `python -m tests.border --minutes 10` tries more."""

import gc

import pytest

from tests.border.properties import PROPERTIES, check


# httpcore2 leaves an answer that it cannot decode to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning", "ignore:.*PoolByteStream")
@pytest.mark.expects_errors
@pytest.mark.parametrize("name", PROPERTIES)
def test_nothing_but_the_border_s_errors_comes_out(name: str) -> None:
    assert check(name, PROPERTIES[name][2], 1)
    gc.collect()  # what is left to it complains here, and in no other test
