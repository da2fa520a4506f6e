"""One suite for every queue: the simulated one in virtual time, moto's in real time, and any real SQS endpoint.

    SVC_CONTRACT_ENDPOINT=http://localhost:4566 pytest -m contract_endpoint tests/test_queue_contract.py

runs it against LocalStack; with `SVC_CONTRACT_ENDPOINT=aws` against AWS itself (region and credentials from `AWS_*` variables
that are named `SVC_CONTRACT_AWS_*`, because the tests scrub `AWS_*`). Queues are made for each test, and left behind.

Every test says what AWS documents. Where moto differs, `MOTO_DIFFERS` says so and names AWS's document; there the test asserts
that moto *does* differ, so that we notice when it no longer does.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from svc import sqs
from svc.queue import MessageRefused, MessageTooLong, Queue, QueueError, Received, Refusal
from svc.settings import Settings
from svc.testing import SimulatedQueue

_API = "Amazon SQS API Reference, "
MOTO_DIFFERS = {
    "old handle deletes": (
        "a delete with the handle of an earlier receive deletes the message, although it was received again",
        _API + "DeleteMessage: 'you must use the ReceiptHandle from the most recent time you received the message'",
    ),
    "old handle changes visibility": (
        "a change of visibility with the handle of an earlier receive works",
        _API + "ReceiveMessage and DeleteMessage: a handle stands for one receive of a message",
    ),
    "never not in flight": (
        "the visibility of a message that is visible again can be changed",
        _API + "ChangeMessageVisibility: error MessageNotInflight",
    ),
    "fifo expired handle deletes": (
        "a FIFO queue deletes with a handle whose lease is over",
        "Amazon SQS Developer Guide, 'Exactly-once processing'; observed on AWS: aws-sdk-js#1750, localstack#12442",
    ),
    "total visibility fails the batch": (
        "a lease beyond 12 hours fails the whole batch call instead of its entry",
        _API + "ChangeMessageVisibilityBatch: 'the result of the action on each message is reported individually'",
    ),
    "no batch limit": (
        "a batch of eleven deletes is accepted",
        _API + "DeleteMessageBatch: error TooManyEntriesInBatchRequest",
    ),
}


@dataclass
class Kingdom:
    """Where a queue lives, and what a test needs to know of it."""

    name: str
    make: Callable[..., Any]

    def differs(self, what: str) -> bool:
        """Whether this queue is known to differ from AWS's documentation in this point."""
        assert what in MOTO_DIFFERS
        return self.name == "moto"

    def queue(self, **options: Any) -> "contextlib.AbstractAsyncContextManager[Queue]":
        """A fresh queue. Options: `fifo`, `dead_letters` (with a redrive policy of two receives)."""
        return self.make(**options)  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def _simulated(*, fifo: bool = False, dead_letters: bool = False) -> AsyncIterator[Queue]:
    dead = SimulatedQueue("dead", fifo=fifo, content_deduplication=fifo) if dead_letters else None
    queue = SimulatedQueue(
        fifo=fifo, content_deduplication=fifo, dead_letters=dead, max_receive_count=2 if dead else None
    )
    queue.dead = dead  # type: ignore[attr-defined]
    yield queue


def _over_the_wire(endpoint: str, name: str) -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def make(*, fifo: bool = False, dead_letters: bool = False) -> AsyncIterator[Queue]:
        suffix = ".fifo" if fifo else ""
        settings = _settings(endpoint, f"{name}{suffix}", f"{name}-dead{suffix}" if dead_letters else None)
        created = await sqs.create(settings)
        async with sqs.opened(settings.model_copy(update={"sqs_queue_url": created.queue_url}), polls=2) as queue:
            if created.dead_letter_url:
                at = settings.model_copy(update={"sqs_queue_url": created.dead_letter_url})
                async with sqs.opened(at, polls=2) as dead:
                    queue.dead = dead  # type: ignore[attr-defined]
                    yield queue
            else:
                yield queue

    return make


def _settings(endpoint: str, name: str, dead: str | None) -> Settings:
    return Settings(
        sqs_queue_url=f"{endpoint or 'https://sqs.amazonaws.com'}/000000000000/{name}",
        aws_endpoint=endpoint,
        aws_region=os.environ.get("SVC_CONTRACT_AWS_REGION", "us-east-1"),
        sqs_wait_time_seconds=2,
        sqs_dlq_name=dead,
        sqs_max_receive_count=2,
    )


@pytest.fixture(params=["simulated", "moto", pytest.param("endpoint", marks=pytest.mark.contract_endpoint)])
def kingdom(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kingdom:
    if request.param == "simulated":
        return Kingdom("simulated", _simulated)
    if request.param == "moto":
        return Kingdom("moto", _over_the_wire(request.getfixturevalue("moto").url, _unique(request)))
    endpoint = os.environ.get("SVC_CONTRACT_ENDPOINT")
    if not endpoint:
        pytest.skip("SVC_CONTRACT_ENDPOINT names no endpoint")
    for name, value in os.environ.items():
        if name.startswith("SVC_CONTRACT_AWS_"):
            monkeypatch.setenv(name.removeprefix("SVC_CONTRACT_"), value)
    return Kingdom("endpoint", _over_the_wire("" if endpoint == "aws" else endpoint.rstrip("/"), _unique(request)))


@pytest.fixture
def clock(kingdom: Kingdom) -> trio.abc.Clock:
    """Virtual time for what is in memory, real time for what is not; never both (python-trio/trio#456).

    pytest-trio takes the clock of a test from its arguments: every test here has this one.
    """
    if kingdom.name == "simulated":
        return trio.testing.MockClock(autojump_threshold=0)
    return trio._core._run.SystemClock()


def _unique(request: pytest.FixtureRequest) -> str:
    return f"contract-{os.getpid()}-{abs(hash(request.node.name)) % 10**8}"
