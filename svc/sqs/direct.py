"""The direct road: calls of SQS in its JSON protocol, over connections of our own on Trio's sockets.

A call costs some 150 µs this way, where the SDK's takes more than a millisecond. What it does is what the SDK does: the same
requests, signed the same way, the same errors, the same second attempt. The SDK stays in charge of everything around them
(`handover.py`).

What may be sent twice. A *receive* never, once all of it has gone out: SQS may have handed messages to the first one, which would
stay hidden while the second one looks fine. Everything else has two attempts (`Pool.attempts`):
- a delete, done twice, is done;
- a change of visibility sets the same time again, counted from the second one;
- a look (attributes, a queue's URL), a creation and a setting of attributes change nothing the second time;
- a message may be sent twice, which standard queues allow for, and FIFO queues notice by its deduplication id. Who has to know
  whether there may be two (`svc dlq redrive`) opens a client of one attempt, for which the same holds as for a receive.
A request that SQS refused because of our clock was not acted on, and is sent again, whatever it is, signed by SQS's clock.
"""

import json
import logging
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import trio
from botocore import exceptions as boto
from pydantic_core import to_json

from svc.sqs import answers, pool
from svc.sqs.connection import Answer, ConnectionBroke, NotAnAnswer
from svc.sqs.credentials import Credentials
from svc.sqs.handover import Handover
from svc.sqs.pool import CannotConnect, CertificatesUnreadable, Endpoint, Network, TlsFailed, World
from svc.sqs.signing import Form, Keys, host
from svc.sqs.wire import refuses_credentials, short_code

log = logging.getLogger(__name__)

SKEW_SECONDS = 240.0
"""How far our clock may be from SQS's, before signatures go by SQS's. SQS refuses what differs by five minutes."""

_YEARS = range(2006, 2200)
"""Those that SQS may live in. At the ends of the calendar a clock that is taken over cannot be read any more: no call would ever
work again."""

RETRY_SECONDS = 1.0
"""The longest pause before a second attempt; it is a random part of this, as the SDK's is."""

_ONCE = "receive_message"

_CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture", "InvalidSignature",
                          "SignatureDoesNotMatch", "AuthFailure"})  # fmt: skip
"""What a wrong clock may be answered with: a signature that is not yet, or no longer, good counts as a wrong one too."""

_TRY_AGAIN_STATUS = frozenset({500, 502, 503, 504})
_TRY_AGAIN_CODES = frozenset({"RequestThrottled", "Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown",
                              "TooManyRequests", "RequestTimeout", "RequestTimeoutException"})  # fmt: skip


def _base64(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return b64encode(value).decode("ascii")
    raise TypeError(f"a {type(value).__name__} cannot be sent to SQS")


# No request of ours is a cycle, and to look for one is half of the cost.
_encode = json.JSONEncoder(separators=(",", ":"), default=_base64, check_circular=False).encode

_OF_TEXTS = frozenset({"delete_message_batch", "change_message_visibility_batch"})
"""Requests of texts and numbers, which pydantic's serializer writes in a quarter of the time. (Bytes it writes as text.)"""


class Clock:
    """SQS's clock, as far as it differs from ours."""

    def __init__(self) -> None:
        self._offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._offset

    def second(self) -> int:
        """Whole seconds since 1970, UTC."""
        return int(time.time() + self._offset.total_seconds()) if self._offset else int(time.time())

    @property
    def is_corrected(self) -> bool:
        return bool(self._offset)

    def learn(self, date: str | None) -> bool:
        """Take over what an answer's `Date` says, where it is far from what was thought. Returns whether it was."""
        try:
            told = parsedate_to_datetime(date or "")
        except (TypeError, ValueError, OverflowError):
            return False
        if told.year not in _YEARS:
            return False
        if told.tzinfo is None:
            told = told.replace(tzinfo=UTC)
        if abs((told - self.now()).total_seconds()) < SKEW_SECONDS:
            return False
        offset = told - datetime.now(UTC)
        self._offset = timedelta(0) if abs(offset.total_seconds()) < SKEW_SECONDS else offset
        log.warning(
            "this machine's clock is %s from SQS's; requests are signed by SQS's",
            f"{abs(offset.total_seconds()):.0f} s" if self._offset else "no longer far",
        )
        return True


class Client:
    """Calls of SQS with their own number of requests at once; the connections are those of the pool."""

    def __init__(self, sent_by: "Sender", *, connections: int, attempts: int) -> None:
        self._sender = sent_by
        self._attempts = attempts
        self._free = trio.Semaphore(connections)

    async def __call__(self, operation: str, **request: Any) -> dict[str, Any]:
        """For what it raises see `calls.Call`. No checkpoint comes after the answer."""
        body = self._sender.encoded(operation, request)
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            await self._free.acquire()
        try:
            return await self._call(operation, body)
        finally:
            self._free.release()

    async def _call(self, operation: str, body: bytes) -> dict[str, Any]:
        attempts = 1 if operation == _ONCE else self._attempts
        for attempt in range(1, attempts + 1):
            try:
                # Where there is one attempt, none is made unheard because a kept connection broke: SQS may have acted.
                return await self._sender.answer(operation, body, repeatable=attempts > 1)
            except (answers.ErrorAnswer, boto.HTTPClientError) as error:
                if attempt == attempts or not _may_pass(error):
                    raise
            await trio.sleep(random.random() * RETRY_SECONDS)
        raise AssertionError("a call has at least one attempt")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, answers.ErrorAnswer):
        return error.status in _TRY_AGAIN_STATUS or short_code(error.code) in _TRY_AGAIN_CODES or error.status == 429
    return isinstance(error, boto.EndpointConnectionError | boto.ConnectionClosedError)


class Sender:
    """Makes requests, signs them, sends them and reads their answers."""

    def __init__(self, handover: Handover, keys: Credentials, connections: pool.Pool, clock: Clock) -> None:
        self._handover = handover
        self._keys = keys
        self._connections = connections
        self._clock = clock
        self._heads: dict[str, tuple[str, Form]] = {}
        self._asked: dict[str, Any] | None = None  # the last receive, and its body
        self._asked_as = b""

    def encoded(self, operation: str, request: dict[str, Any]) -> bytes:
        """The body of a request. One receive asks for what the one before has asked for: its body is made once."""
        if operation in _OF_TEXTS:
            try:
                return to_json(request)
            except ValueError:  # halves of characters, in an emulator's receipt handle
                pass
        if operation != _ONCE:
            return _encode(request).encode("ascii")
        if request != self._asked:
            self._asked, self._asked_as = request, _encode(request).encode("ascii")
        return self._asked_as

    async def answer(self, operation: str, body: bytes, *, repeatable: bool) -> dict[str, Any]:
        """One attempt; a second one only where the first was refused for our clock, and, where it is `repeatable`, where a kept
        connection broke. Raises what the SDK raises where nobody has answered, and what `answers.parsed` raises."""
        keys = await self._keys.current()
        try:
            found = await self._sent(operation, body, keys, repeatable)
            if found.status >= 300 and self._was_the_clock(found):
                found = await self._sent(operation, body, keys, repeatable)
        except CertificatesUnreadable as error:
            raise boto.HTTPClientError(error=error.__cause__) from None
        except TlsFailed as error:
            raise boto.SSLError(endpoint_url=self._handover.url, error=error) from None
        except CannotConnect as error:
            raise boto.EndpointConnectionError(endpoint_url=self._handover.url, error=error) from None
        except ConnectionBroke as error:
            raise boto.ConnectionClosedError(endpoint_url=self._handover.url, error=error) from None
        except NotAnAnswer as error:
            raise answers.OddAnswer(str(error)) from None
        if self._clock.is_corrected:
            self._clock.learn(found.header(b"date"))
        if found.status < 300:
            return answers.parsed(found.status, {}, found.body, may_be_empty=operation in _WITHOUT_OUTPUT)
        try:
            return answers.parsed(found.status, found.texts(), found.body)
        except answers.ErrorAnswer as error:
            if refuses_credentials(error.code):
                self._keys.refused(keys)  # there may be others by now
            raise

    async def _sent(self, operation: str, body: bytes, keys: Keys, repeatable: bool) -> Answer:
        head, form = self._heads.get(operation) or self._make_head(operation)
        lines = form.lines(body, keys=keys, second=self._clock.second())
        request = f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
        return await self._connections.exchange(request, repeatable=repeatable)

    def _make_head(self, operation: str) -> tuple[str, Form]:
        """What is the same for each call of an operation."""
        action = "".join(word.capitalize() for word in operation.split("_"))
        signed = [("X-Amz-Target", f"AmazonSQS.{action}"), ("Content-Type", "application/x-amz-json-1.0")]
        plain = [
            ("Host", host(self._handover.url)),
            ("User-Agent", self._handover.user_agent),
            ("Accept-Encoding", "identity"),
            ("X-Amzn-Query-Mode", "true"),  # errors tell the older protocol's code too, which says more
        ]
        head = "".join(f"{name}: {value}\r\n" for name, value in (*plain, *signed))
        form = Form(self._handover.url, signed, region=self._handover.region, service="sqs")
        made = self._heads[operation] = (f"POST / HTTP/1.1\r\n{head}", form)
        return made

    def _was_the_clock(self, found: Answer) -> bool:
        try:
            answers.parsed(found.status, found.texts(), found.body)
        except answers.ErrorAnswer as error:
            return short_code(error.code) in _CLOCK_CODES and self._clock.learn(found.header(b"date"))
        except answers.OddAnswer:
            pass
        return False


_WITHOUT_OUTPUT = frozenset({"set_queue_attributes", "delete_message", "change_message_visibility", "purge_queue"})


@asynccontextmanager
async def opened(
    handover: Handover, keys: Credentials, limits: Sequence[tuple[int, int]], *, world: World | None = None
) -> AsyncIterator[list[Client]]:
    """A client for each pair of `limits`: how many requests at once, and how many attempts. Connections are closed at the end."""
    endpoint = Endpoint.of(handover.url)
    async with pool.opened(endpoint, world or Network(handover.ca_bundle)) as connections:
        sender = Sender(handover, keys, connections, Clock())
        yield [Client(sender, connections=most, attempts=attempts) for most, attempts in limits]
