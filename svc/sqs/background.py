"""Tasks that run beside a block and end with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background(ended: str) -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled at the end of the block; `ended` is the reason they are given. An `Exception` raised
    inside comes out as it is, and not in the group that a nursery makes of it."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel(reason=ended)
    if failure is not None:
        raise failure
