"""One and the same order of events in every run: Trio picks at random among the tasks that can go on at the same instant."""

import contextlib
from collections.abc import Iterator
from typing import Any

import trio


@contextlib.contextmanager
def fixed_order(seed: int) -> Iterator[None]:
    """Around `trio.run`: within, Trio orders tasks by a Random of this seed. Another seed, another order.

    The only place in svc that touches Trio's internals, in the way in which pytest-trio and Hypothesis do
    (`trio._core._run._hypothesis_plugin_setup`, pytest_trio/plugin.py): each batch of tasks is sorted by their age and then
    shuffled by `_r`, where else it would be reversed every other time. Without these internals the order is Trio's.
    """
    run: Any = trio._core._run
    if not (hasattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING") and hasattr(run, "_r")):
        yield
        return
    before, state = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before
        run._r.setstate(state)
