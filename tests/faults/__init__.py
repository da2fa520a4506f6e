"""The fault suite: what breaks around the service is broken for real, and the promises are looked at from outside.

    pytest tests/faults -m faults -n 4 --faults-table docs/faults.md      every row, and the table made of them
    python -m tests.faults.soak --minutes 30 --seed 1                     all of it at random, for as long as is wanted

`proxy.py` is the line that can be broken, `trial.py` a trial and its judgement, `rows_*.py` the faults, one function each.
"""
