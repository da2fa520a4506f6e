"""What `svc` costs, measured beside what a user would pick instead: `python -m tests.bench` (see `--help`).

Every consumer runs as one process pinned to one core, against a local SQS stub (`stub.py`) on the other core. Figures of one
table come from one run, the consumers taking turns, with medians over the repeats; a figure of another run or machine is no
match for them.

| file | what is in it |
| --- | --- |
| `stub.py`, `stub_queue.py` | the SQS stub: a process of its own, counts every call |
| `stubbed.py` | the bench's handle on it |
| `consumers.py` | how each consumer is made and started |
| `floor.py`, `peer_*.py` | the consumers: a bare loop, and the peers, each run by the Python of its own environment |
| `processors.py` | the processors that `svc run` is given |
| `processes.py` | pinning; CPU and memory of a process tree |
"""
