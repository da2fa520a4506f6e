"""The door to SQS: the one place that imports aiobotocore, botocore, trio_asyncio and httptools.

Lives here: calls over connections of our own (`direct.py`, `pool.py`, `connection.py`, `tcp.py`) and by the AWS SDK (`sdk.py`),
credentials, signatures, SQS's language (`answers.py`: answers → our types or a `QueueError`), the dead-letter queue.
Never here: loops and decisions about messages (`svc.consumer`).
Journey: a message enters and leaves here. Begin reading at `queue.py`.
The names below are the modules that other suites may use.
"""

__all__ = [
    "access", "answers", "aws_client", "creation", "dead_letters", "letter_filters", "letters", "permissions",
    "profile", "queue", "wire",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """`svc.sqs.opened`, which users' tests call: found on first use, because aiobotocore takes half a second to import."""
    if name == "opened":
        from svc.sqs.queue import opened

        return opened
    raise AttributeError(f"module 'svc.sqs' has no attribute {name!r}")
