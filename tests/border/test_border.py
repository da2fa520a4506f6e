"""Generated answers, a bounded number of them, of which an ordinary run tries a third.

`python -m tests.border --minutes 10` tries more."""

import gc

import pytest

from tests.border.properties import PROPERTIES, check


# httpcore2 leaves an answer that it cannot decode to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning", "ignore:.*PoolByteStream")
@pytest.mark.expects_errors
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["a third", "whole"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_nothing_but_the_border_s_errors_comes_out(name: str, whole: bool) -> None:
    most = PROPERTIES[name][2]
    assert check(name, most if whole else max(1, most // 3), 1)
    gc.collect()  # what is left to it complains here, and in no other test
