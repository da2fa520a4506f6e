"""The search for counter-examples: thousands of schedules in virtual time, each held against what the service promises.

- `schedule.py`: what a schedule is (plain data). `random_schedules.py`: how one is drawn, by Hypothesis or from a seed.
  `shapes.py`: those of a shape of their own, for what is rare.
- `run.py`: runs one schedule; the same schedule always runs the same way.
- `witness.py`: what is seen of a run. `invariants.py`: what must hold, at each step and at the end.
- `mutations.py`: seeded mistakes, to show that the search finds them.

    python -m tests.search --schedules 100000     # search; exit code 1 when something was found
    python -m tests.search --replay 4711          # one schedule again, with its story
    python -m tests.search --mutations            # how many schedules catch each mistake
"""
