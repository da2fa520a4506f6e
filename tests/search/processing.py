"""What the processors of a schedule do: with one message or with a batch of them, on Trio or on asyncio."""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import trio

from svc import Batch, Message, Reject, Retry, processor
from svc.processors import Item

from .schedule import Schedule, Work
from .witness import Instance, Running, Witness

AFTERWARDS = Work("succeed", 0.1)
"""What the processor does in runs that the schedule says nothing about."""

FAILS = ("fail", "exit", "leave")

RAISES = ("exit", "leave")
"""What ends a whole batch."""


class Processing:
    def __init__(self, schedule: Schedule, witness: Witness, instance: Callable[[int], Instance]) -> None:
        self._arrivals = schedule.arrivals
        self._setup = schedule.setup
        self._witness = witness
        self._instance = instance
        self.runs: Counter[str] = Counter()
        """By message id: how often it was run, anywhere."""
        # trio-asyncio cannot be imported on Python 3.14.
        self._on_asyncio = schedule.setup.asyncio and sys.version_info < (3, 14)

    def of(self, number: int) -> Callable[..., object]:
        """The processor of this instance."""
        runtime: Literal["asyncio"] | None = "asyncio" if self._on_asyncio else None
        if not self._setup.batching:
            one = (_of_payload if self._setup.typed else _function)(partial(self._one, number))
            return processor(runtime=runtime)(one)

        async def handle(batch: Batch) -> None:
            await self._several(number, batch)

        async def handle_numbers(batch: Batch[int]) -> None:
            await self._several(number, batch)

        size = min(self._setup.batching, self._setup.concurrency)
        made = processor(runtime=runtime, batch=size, linger=self._setup.lingering)
        return made(handle_numbers) if self._setup.typed else made(handle)

    def _work(self, message: Message) -> Work:
        runs, nth = self._arrivals[int(message.body)].runs, self.runs[message.id]
        self.runs[message.id] += 1
        return runs[nth] if nth < len(runs) else AFTERWARDS

    async def _take(self, seconds: float, stubborn: float, interrupted: Callable[[], None]) -> None:
        """Work for so many seconds; cancelled, go on for `stubborn`."""
        if self._on_asyncio:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                if not stubborn:
                    raise
                interrupted()
                await asyncio.sleep(stubborn)
            return
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            if not stubborn:
                raise
            interrupted()
            with trio.CancelScope(shield=True):
                await trio.sleep(stubborn)

    async def _raise(self, does: str, again: int) -> None:
        match does:
            case "fail":
                raise ValueError("the processor failed")
            case "retry":
                raise Retry(after=again)
            case "reject":
                raise Reject("no good")
            case "exit":
                raise SystemExit(3)
            case "leave" if self._on_asyncio or self._setup.threads:
                raise OSError("left behind")
            case "leave":
                nursery = await trio.open_nursery().__aenter__()
                nursery.start_soon(trio.sleep_forever)

    async def _one(self, number: int, message: Message) -> None:
        work, witness = self._work(message), self._witness
        run = witness.began(self._instance(number), message)
        finished = rejected = failed = False
        try:
            await self._take(work.seconds, work.stubborn, partial(witness.interrupted, run))
            finished = work.does in ("succeed", "reject")
            rejected = work.does == "reject"
            failed = not finished
            await self._raise(work.does, work.again)
        finally:
            witness.ends(run, finished=finished, rejected=rejected, failed=failed)

    async def _several(self, number: int, batch: Batch[Any]) -> None:
        """All works at once. Every other message is marked at the beginning, if it is; what is to succeed is marked so, or left
        to the end of the function. A work that ends the function otherwise fails for all that are not marked."""
        witness, instance = self._witness, self._instance(number)
        works = [self._work(item.message) for item in batch]
        runs = witness.batch_began(instance, [item.message for item in batch])
        raising = next((work for work in works if work.does in RAISES), None)
        stubborn = max(work.stubborn for work in works)
        returned = failed = False

        def mark(when: int) -> None:
            for item, work in zip(batch, works, strict=True):
                if int(item.message.body) % 2 == when:
                    _mark(item, work, certain=int(item.message.body) % 4 < 2)

        try:
            mark(0)
            await self._take(max(work.seconds for work in works), stubborn, lambda: _all(witness.interrupted, runs))
            mark(1)
            returned, failed = raising is None, raising is not None
            if raising is not None:
                await self._raise(raising.does, 0)
        finally:
            witness.batch_ends(runs, batch, returned=returned, failed=failed)


def _mark(item: Item[Any], work: Work, *, certain: bool) -> None:
    match work.does:
        case "fail":
            item.fail(ValueError("the processor failed"))
        case "retry":
            item.retry(after=work.again)
        case "reject":
            item.reject("no good")
        case "succeed" if certain:
            item.done()


def _all(tell: Callable[[Running], None], runs: list[Running]) -> None:
    for run in runs:
        tell(run)


def _function(one: Callable[[Message], Awaitable[None]]) -> Callable[..., object]:
    async def handle(message: Message) -> None:
        await one(message)

    return handle


def _of_payload(one: Callable[[Message], Awaitable[None]]) -> Callable[..., object]:
    async def handle(number: int, message: Message) -> None:
        assert number == int(message.body)
        await one(message)

    return handle
