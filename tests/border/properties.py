"""What holds whatever is answered. Each takes one generated input, and raises when it does not hold."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio
import trio.testing
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from svc.consumer.queue import QueueError, Received
from svc.settings import Settings
from svc.sqs import answers, messages
from svc.sqs import queue as sqs
from svc.sqs.aws_client import Road
from svc.sqs.calls import Call
from tests.border.calls import USES, Canned, botocore, queue_of
from tests.border.generated import bodies, headers, raws, statuses, texts, values, wires
from tests.border.odd import Raw
from tests.roads import ROADS


@contextlib.contextmanager
def only_queue_errors() -> Iterator[None]:
    try:
        yield
    except QueueError as error:
        text = str(error)
        assert text.isprintable(), text
        assert len(text) < 1000, text


def parser(status: int, names: dict[str, str], body: bytes) -> None:
    with only_queue_errors():
        found = answers.answer("calling", status, names, body)
        assert isinstance(found, dict)


def as_the_standard_library_reads(body: bytes) -> None:
    """The parser that is used for its speed takes what the standard library's takes, and reads the same."""
    try:
        expected = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        expected = None
    try:
        found = answers.parsed(200, {}, body)
    except answers.OddAnswer:
        too_many = body.count(b"{") + body.count(b"[") > answers.MAX_CONTAINERS
        assert too_many or not isinstance(expected, dict)
    else:
        assert repr(found) == repr(expected)  # NaN is not equal to itself


def readers(value: Any) -> None:
    """Of a JSON object of any form."""
    answer = (
        value
        if isinstance(value, dict)
        else {"Messages": value, "Successful": value, "Failed": value, "Attributes": value}
    )
    with only_queue_errors():
        for delivery in messages.received(answer):
            assert isinstance(delivery, Received)
            told = delivery.message
            assert told.id
            assert told.id.isprintable()
            assert delivery.receipt
            assert isinstance(told.body, str)
            assert told.receive_count >= 1
            assert all(isinstance(one, str | bytes) for one in told.attributes.values())
    with only_queue_errors():
        refused = answers.unconfirmed("deleting", answer, ["one", "two", "three"])
        assert refused.keys() <= {"one", "two", "three"}
    with only_queue_errors():
        found = answers.attributes("reading", answer)
        assert all(isinstance(text, str) for text in found.values())
        answers.redrive_policy(found)
    with only_queue_errors():
        answers.queue_url("looking", answer)
    with only_queue_errors():
        answers.message_id("sending", answer)


def policy(text: str) -> None:
    found = answers.redrive_policy({"RedrivePolicy": text})
    assert found is None or found[1] > 0


def calls(name: str, at: int, raw: Raw) -> None:
    """A use of the queue, one of whose calls is answered with `raw`."""
    _run(name, at, raw, lambda canned: canned)


def _run(name: str, at: int, raw: Raw, through: Callable[[Canned], Call]) -> None:
    async def use() -> None:
        canned = Canned(raw, at)
        call = through(canned)
        with only_queue_errors():
            await USES[name](queue_of(call), call)

    trio.run(use, clock=trio.testing.MockClock(autojump_threshold=0))


def through_botocore(uses: list[tuple[str, int, Raw]]) -> None:
    """The same through a client of botocore; several, because it takes a moment to make."""

    async def use() -> None:
        async with botocore() as through:
            for name, at, raw in uses:
                call = through(Canned(raw, at))
                with only_queue_errors():
                    await USES[name](queue_of(call), call)

    trio.run(use, clock=trio.testing.MockClock(autojump_threshold=0))


def over_connections(road: Road, wires: list[bytes]) -> None:
    """Receives over connections of a road of this Python, each answered with such bytes."""

    async def use() -> None:
        now = b""

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                received = b""
                while not received.endswith(b"}"):  # the end of a request: all of it is sent before anybody reads
                    more = await stream.receive_some()
                    if not more:
                        return
                    received += more
                await stream.send_all(now)

        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            chosen = Settings(sqs_queue_url=f"{url}/000000000000/q", aws_endpoint=url, sqs_transport=road)
            async with sqs.opened(chosen, polls=1) as queue:
                for now in wires:  # noqa: B007 - the server reads it
                    with only_queue_errors(), trio.fail_after(10):
                        await queue.receive(limit=10, wait=0, visibility=30)
            nursery.cancel_scope.cancel()

    trio.run(use)


# aiohttp waits for the end of some answers until the call gives up after 5 s: tests/sqs/test_odd_answers.py is enough of that.
_ROADS = [road for road in ROADS if road != "asyncio"]

_use = (st.sampled_from(sorted(USES)), st.integers(0, 4), raws)

PROPERTIES: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...], int]] = {
    "parser": (parser, (statuses, headers, bodies()), 100),
    "json": (as_the_standard_library_reads, (bodies(),), 60),
    "readers": (readers, (values,), 200),
    "policy": (policy, (texts | st.text(),), 50),
    "calls": (calls, _use, 100),
    "over_connections": (over_connections, (st.sampled_from(_ROADS), st.lists(wires(), min_size=20, max_size=40)), 3),
    "through_botocore": (through_botocore, (st.lists(st.tuples(*_use), min_size=20, max_size=40),), 2),
}
"""Each with its input, and how many examples the tests try (an ordinary run: a third)."""


def check(name: str, most: int, number: int) -> int:
    """Try up to `most` examples, which the seed `number` chooses; returns how many were tried."""
    holds, inputs, _ = PROPERTIES[name]
    tried = 0

    @seed(number)
    @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*inputs))
    def one(arguments: tuple[Any, ...]) -> None:
        nonlocal tried
        tried += 1
        holds(*arguments)

    one()
    return tried
