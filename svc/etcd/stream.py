"""A watch as it is used: what it says arrives as `News`, and how it ends as a `Trouble`.

Nothing here may decide what an answer means.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Self, TypeVar

import trio

from svc.etcd import messages
from svc.etcd.errors import CHECK_ENDPOINT, Trouble
from svc.etcd.grpc_calls import Call
from svc.etcd.keys import encoded, range_end

T = TypeVar("T")

_BEGIN = 3.0
"""Seconds that sending the requests may take."""


class Stream(Generic[T]):
    """A two-way call to which these requests are sent, as an async context manager; entering it raises `Trouble`. `read` parses
    an answer, `hidden` takes out of a trouble what must not be told. Our half of the call stays open: etcd's gRPC proxy ends its
    own with it, before it has answered."""

    def __init__(
        self,
        call: AbstractAsyncContextManager[Call],
        requests: Sequence[Any],
        read: Callable[[bytes], T],
        hidden: Callable[[Trouble], Trouble],
    ) -> None:
        self._making = call
        self._requests = requests
        self._read = read
        self._hidden = hidden

    async def __aenter__(self) -> Self:
        with trio.move_on_after(_BEGIN):
            try:
                self._call = await self._making.__aenter__()
            except Trouble as trouble:
                raise self._hidden(trouble) from None
            try:
                for request in self._requests:
                    await self._call.send(request.SerializeToString())
                return self
            except BaseException as error:
                await self._making.__aexit__(type(error), error, error.__traceback__)
                raise
        raise Trouble(f"no answer within {_BEGIN:g} s", CHECK_ENDPOINT)

    async def __aexit__(self, *raised: Any) -> None:
        await self._making.__aexit__(None, None, None)

    async def receive(self) -> T | Trouble:
        """The next answer, or the `Trouble` with which the call ended."""
        try:
            answer = await self._call.receive()
            return Trouble("etcd ended the call", "") if answer is None else self._read(answer)
        except Trouble as trouble:
            return self._hidden(trouble)

    def end(self, trouble: Trouble) -> None:
        """Let `receive()` give this trouble next."""
        self._call.end(trouble)


def watch_requests(names: Sequence[str], prefixes: Sequence[str], revision: int) -> list[Any]:
    """What is sent to watch these keys, and all whose names begin so, from a revision on."""
    asked = [(encoded(name), b"") for name in names] + [(encoded(prefix), range_end(prefix)) for prefix in prefixes]
    return [
        messages.WatchRequest(
            create_request=messages.WatchCreateRequest(key=key, range_end=end, start_revision=revision)
        )
        for key, end in asked
    ]
