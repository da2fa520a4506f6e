"""The bounded slice of the search that every test run does; `python -m tests.search --schedules 100000` is the long one."""

import datetime
import re

import pytest
from hypothesis import HealthCheck, given, settings

from svc.testing import Outage
from svc.testing.faults import Fault
from tests.search.long_search import search
from tests.search.random_schedules import random_schedule, schedules
from tests.search.run import muted, run_schedule
from tests.search.schedule import Arrival, Ask, Flip, Life, Nap, Schedule, Setup, Work
from tests.search.troubles import EtcdSetup, EtcdTrouble

SEEDS = [range(20), pytest.param(range(20, 600), marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_no_seeded_schedule_is_a_counter_example(seeds: range):
    with muted():
        failed = {seed: found for seed in seeds if (found := run_schedule(random_schedule(seed)).violations)}
    assert not failed


@pytest.mark.parametrize("examples", [10, pytest.param(250, marks=pytest.mark.slow)])
def test_no_schedule_that_hypothesis_draws_is_a_counter_example(examples: int):
    @settings(
        derandomize=True,
        database=None,
        max_examples=examples,
        deadline=datetime.timedelta(seconds=10),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(schedules())
    def holds(schedule: Schedule) -> None:
        assert run_schedule(schedule).violations == []

    with muted():
        holds()


def test_a_schedule_runs_in_the_same_way_each_time():
    schedule = random_schedule(15)
    with muted():
        first, second = run_schedule(schedule), run_schedule(schedule)
    assert first.queue is not None
    assert second.queue is not None
    assert len(first.queue.history) > 20
    assert first.queue.history == second.queue.history


def test_a_schedule_prints_as_what_makes_it():
    names = {
        cls.__name__: cls
        for cls in (Schedule, Setup, Arrival, Ask, Work, Flip, Life, Nap, Outage, Fault, EtcdSetup, EtcdTrouble)
    }
    for seed in range(50):
        schedule = random_schedule(seed)
        assert eval(repr(schedule), names) == schedule


def test_the_search_says_what_it_tried(capsys: pytest.CaptureFixture[str]):
    assert search(3, 0, None, 1) == 0
    said = capsys.readouterr().out
    for what in (
        "lapses",
        "threads",
        "suspensions",
        "resurrections",
        "old receipts",
        "landings held",
        "copies",
        "receipts twice",
    ):
        assert re.search(rf"\d+ {what}\b", said), what
