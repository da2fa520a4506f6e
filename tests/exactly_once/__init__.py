"""Exactly once, with real processes: instances of the service, a real PostgreSQL, and everything that kills and cuts.

    python -m tests.exactly_once --messages 100000

Several instances work on one queue (the bench's stub of SQS, which hands a share of the messages out twice). Their processors,
one of each colour in turn and one of batches, write two rows for each message. Meanwhile instances are killed (SIGKILL) and
frozen past their leases (SIGSTOP), the connections to the database are cut in the middle of whatever they carry, and backends are
terminated. When the queue is empty, the two tables are compared with what was sent. It ends by itself; the exit code is 0 when
each message is there exactly once in both.

- `processors.py`: what the instances run.
- `proof.py`: the run, and what it finds.
"""
