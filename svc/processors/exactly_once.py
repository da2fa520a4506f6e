"""`@processor(exactly_once=…)`: which parameter gets the transaction, what the key is, and the function around the processor.

`around()` wraps a processor of whatever form in one of the same form, which calls it within a `UnitOfWork`.
"""

import asyncio
import functools
import hashlib
import inspect
import re
import uuid
from collections.abc import Callable
from typing import Any

import trio

from svc.processors.arguments import Prepare
from svc.processors.batch import Batch, Item
from svc.processors.finding import UnusableProcessor, kind, not_done
from svc.processors.message import Message
from svc.processors.one_process import OneProcess
from svc.processors.options import Options, Runtime
from svc.processors.transaction import transaction_of
from svc.processors.unit_of_work import UnitOfWork

LONGEST_KEY = 200
"""Characters. A longer key stands in the inbox as its SHA-256: a row of PostgreSQL's index takes some 2700 bytes."""

_WANTED: dict[Runtime, str] = {
    "trio": "svc.Transaction",
    "asyncio": "psycopg.AsyncConnection",
    "thread": "psycopg.Connection",
}


def around(
    function: Callable[..., object],
    prepare: Prepare,
    options: Options,
    unit: UnitOfWork | None,
    *,
    runtime: Runtime,
    name: str,
) -> tuple[Callable[..., object], Prepare]:
    """The function that is called in place of the processor, and what makes its arguments. Raises `UnusableProcessor` where there
    is no database, and for a processor that has no parameter for the transaction, or one of the wrong type."""
    parameter = _parameter(function, runtime, name)
    if unit is None:
        raise UnusableProcessor(f"{name!r} says exactly_once, which needs a database: set DATABASE_URL")
    call = _Call(function, parameter.name)

    async def on_trio(message: Message, key: str, arguments: tuple[object, ...]) -> object:
        work = functools.partial(call.on_trio, arguments)
        return await unit.run(unit.inbox.on_trio, trio.sleep, message, key, work)

    async def on_asyncio(message: Message, key: str, arguments: tuple[object, ...]) -> object:
        work = functools.partial(call.until_done, arguments)
        return await unit.run(unit.inbox.on_asyncio, asyncio.sleep, message, key, work)

    def in_thread(message: Message, key: str, arguments: tuple[object, ...]) -> object:
        return unit.run_in_thread(message, key, functools.partial(call.once, arguments))

    forms: dict[Runtime, Callable[..., object]] = {"trio": on_trio, "asyncio": on_asyncio, "thread": in_thread}
    return functools.wraps(function)(forms[runtime]), _keyed(prepare, options)


def around_batch(
    function: Callable[..., object], options: Options, unit: UnitOfWork | None, *, runtime: Runtime, name: str
) -> Callable[..., object]:
    """The same for a processor of batches: one transaction for each batch."""
    parameter = _parameter(function, runtime, name)
    if unit is None:
        raise UnusableProcessor(f"{name!r} says exactly_once, which needs a database: set DATABASE_URL")
    call = _Call(function, parameter.name)

    async def done(batch: Batch[Any], transaction: object) -> None:
        _nothing(await call.until_done((batch,), transaction))

    async def done_on_trio(batch: Batch[Any], transaction: object) -> None:
        _nothing(await call.on_trio((batch,), transaction))

    async def on_trio(batch: Batch[Any]) -> None:
        if items := _by_key(batch, options):
            await unit.run_batch(unit.inbox.on_trio, trio.sleep, items, done_on_trio)

    async def on_asyncio(batch: Batch[Any]) -> None:
        if items := _by_key(batch, options):
            await unit.run_batch(unit.inbox.on_asyncio, asyncio.sleep, items, done)

    def in_thread(batch: Batch[Any]) -> None:
        if items := _by_key(batch, options):
            unit.run_batch_in_thread(items, lambda some, transaction: _nothing(call.once((some,), transaction)))

    forms: dict[Runtime, Callable[..., object]] = {"trio": on_trio, "asyncio": on_asyncio, "thread": in_thread}
    return functools.wraps(function)(forms[runtime])


def _nothing(result: object) -> None:
    """As for all processors of batches, and before the commit."""
    if result is not None:
        raise TypeError(f"the processor returned {kind(result)}: say what becomes of an item at the item")


def _by_key(batch: Batch[Any], options: Options) -> dict[str, list[Item[Any]]]:
    """The items by their keys. One that can have none has failed."""
    of: Any = options.exactly_once
    items: dict[str, list[Item[Any]]] = {}
    for item in batch:
        try:
            key = item.message.id if of is True else key_text(of(item.payload))
        except Exception as error:
            item.fail(error)
            continue
        items.setdefault(key, []).append(item)
    return items


def _parameter(function: Callable[..., object], runtime: Runtime, name: str) -> inspect.Parameter:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    found = {kind: one for one in parameters if (kind := transaction_of(one)) is not None}
    wanted = _WANTED[runtime]
    where = {"trio": "an async def on Trio", "asyncio": "an asyncio processor", "thread": "a plain def"}[runtime]
    if not found:
        raise UnusableProcessor(
            f"{name!r} says exactly_once, but none of its parameters is annotated {wanted}: what it does outside of the "
            "transaction could happen twice"
        )
    if len(found) > 1 or wanted not in found:
        raise UnusableProcessor(f"{name!r} is {where}: its transaction is one {wanted}, not {' and '.join(found)}")
    return found[wanted]


class _Call:
    """The processor, called with its transaction. A child that it has forked must not end the transaction of its parent."""

    def __init__(self, function: Callable[..., object], parameter: str) -> None:
        self._function = function
        self._parameter = parameter
        self._stay = OneProcess()

    def once(self, arguments: tuple[object, ...], transaction: object) -> object:
        try:
            return _checked(self._function(*arguments, **{self._parameter: transaction}))
        finally:
            self._stay.leave_if_forked()

    async def on_trio(self, arguments: tuple[object, ...], transaction: object) -> object:
        """And see that it leaves nothing open: its message fails by that, and so must not be committed."""
        task = trio.lowlevel.current_task()
        before = len(task.child_nurseries)
        result = await self.until_done(arguments, transaction)
        if len(task.child_nurseries) > before:
            raise RuntimeError("the processor returned and left a nursery open; what runs in it is cancelled")
        return result

    async def until_done(self, arguments: tuple[object, ...], transaction: object) -> object:
        """And wait for what it has begun, within the transaction."""
        try:
            result = self._function(*arguments, **{self._parameter: transaction})
            while inspect.isawaitable(result):
                result = await result
            return _checked(result)
        finally:
            self._stay.leave_if_forked()


def _checked(result: object) -> object:
    """What looks like a slip rolls back: the work is not done (`calling._Direct` says the same of all processors)."""
    if isinstance(result, BaseException):
        raise result
    if not_done(result):
        raise TypeError(f"the processor returned {kind(result)} instead of doing the work")
    return result


def _keyed(prepare: Prepare, options: Options) -> Prepare:
    """The arguments of the function around: the message as the service knows it, the key, and the processor's arguments."""
    of: Any = options.exactly_once

    def prepare_with_key(message: Message) -> tuple[object, ...] | None:
        arguments = prepare(message)
        if arguments is None:
            return None
        return message, message.id if of is True else key_text(of(arguments[0])), arguments

    return prepare_with_key


def key_text(key: object) -> str:
    """A key as it stands in the inbox. Raises `TypeError` for anything but a text, an integer and a UUID, `ValueError` for a text
    that PostgreSQL cannot keep."""
    if isinstance(key, bool) or not isinstance(key, (str, int, uuid.UUID)):
        raise TypeError(f"the key of exactly_once is {kind(key)}, not a text, an integer or a UUID")
    text = str(key)
    if not text or re.search("[\0\ud800-\udfff]", text):
        raise ValueError("the key of exactly_once is empty, or holds characters that PostgreSQL has no place for")
    return text if len(text) <= LONGEST_KEY else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
