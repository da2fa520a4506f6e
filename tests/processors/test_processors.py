"""The user's side of the fence: every form of a processor, and every thing that is none."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from svc import Message, Reject, Retry, processors
from svc.processors import UnusableProcessor, check, find, opened
from svc.settings import Settings, load

MESSAGE = Message("id-1", "body")
seen: list[Any] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    seen.clear()


# -- the forms --


async def asynchronous(message: Message) -> None:
    await trio.lowlevel.checkpoint()
    seen.append((message.id, threading.current_thread() is threading.main_thread()))


def synchronous(message: Message) -> None:
    seen.append((message.id, threading.current_thread() is threading.main_thread()))


async def with_default(message: Message, more: int = 3) -> None:
    await asynchronous(message)


async def with_any(*args: Message, **more: object) -> None:
    await asynchronous(*args)


async def with_prefix(prefix: str, message: Message) -> None:
    seen.append(prefix)
    await asynchronous(message)


def with_prefix_in_thread(prefix: str, message: Message) -> None:
    seen.append(prefix)
    synchronous(message)


class Asynchronous:
    async def __call__(self, message: Message) -> None:
        await asynchronous(message)

    async def method(self, message: Message) -> None:
        await asynchronous(message)


class Synchronous:
    def __call__(self, message: Message) -> None:
        synchronous(message)

    def method(self, message: Message) -> None:
        synchronous(message)


def logged(function: Callable[[Message], Awaitable[None]]) -> Callable[[Message], Awaitable[None]]:
    @functools.wraps(function)
    async def wrapper(message: Message) -> None:
        seen.append("wrapped")
        await function(message)

    return wrapper


def plainly_logged(function: Callable[[Message], Awaitable[None]]) -> Callable[[Message], Awaitable[None]]:
    @functools.wraps(function)
    def wrapper(message: Message) -> Awaitable[None]:
        seen.append("wrapped")
        return function(message)

    return wrapper


@asynccontextmanager
async def holding() -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    seen.append("entered")
    try:
        yield asynchronous
    finally:
        seen.append("left")


@asynccontextmanager
async def holding_thread() -> AsyncIterator[Callable[[Message], None]]:
    yield synchronous


@asynccontextmanager
async def holding_with_settings(settings: Settings) -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    seen.append(settings.max_concurrency)
    yield asynchronous


@asynccontextmanager
async def holding_with_default(settings: Settings | None = None) -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    seen.append(settings is not None)
    yield asynchronous


@asynccontextmanager
async def holding_an_object() -> AsyncIterator[Asynchronous]:
    yield Asynchronous()


@asynccontextmanager
async def holding_with_keyword(settings: Settings, *, word: str) -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    seen.append((settings.max_concurrency, word))
    yield asynchronous


class Service:
    @asynccontextmanager
    async def held(self, settings: Settings) -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
        seen.append(settings.max_concurrency)
        yield asynchronous


HERE, THREAD = ("id-1", True), ("id-1", False)

FORMS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "async def": (asynchronous, [HERE]),
    "def": (synchronous, [THREAD]),
    "lambda": (lambda message: synchronous(message), [THREAD]),
    "default argument": (with_default, [HERE]),
    "any arguments": (with_any, [HERE]),
    "partial of async def": (functools.partial(with_prefix, "p"), ["p", HERE]),
    "partial of a partial": (functools.partial(functools.partial(with_prefix), "p"), ["p", HERE]),
    "partial of def": (functools.partial(with_prefix_in_thread, "p"), ["p", THREAD]),
    "partial of a callable object": (functools.partial(Asynchronous()), [HERE]),
    "callable object, async": (Asynchronous(), [HERE]),
    "callable object": (Synchronous(), [THREAD]),
    "method, async": (Asynchronous().method, [HERE]),
    "method": (Synchronous().method, [THREAD]),
    "wrapped": (logged(asynchronous), ["wrapped", HERE]),
    "wrapped by a def": (plainly_logged(asynchronous), ["wrapped", HERE]),
    "lambda that makes a coroutine": (lambda message: asynchronous(message), [HERE]),
    "context manager": (holding, ["entered", HERE, "left"]),
    "context manager of a def": (holding_thread, [THREAD]),
    "context manager with settings": (holding_with_settings, [7, HERE]),
    "context manager with settings by default": (holding_with_default, [True, HERE]),
    "context manager of a callable object": (holding_an_object, [HERE]),
    "context manager in a partial": (functools.partial(holding_with_keyword, word="w"), [(7, "w"), HERE]),
    "context manager as a method": (Service().held, [7, HERE]),
}


@pytest.mark.parametrize("name", FORMS)
async def test_form(name: str) -> None:
    form, expected = FORMS[name]
    async with opened(check(form, name), load({"MAX_CONCURRENCY": "7"}), threads=2) as process:
        await process(MESSAGE)
    assert seen == expected


async def test_a_context_manager_is_entered_once_and_left_after_the_last_message() -> None:
    async with opened(holding, None, threads=1) as process:
        for _ in range(3):
            await process(MESSAGE)
    assert seen == ["entered", HERE, HERE, HERE, "left"]


async def test_a_context_manager_is_left_when_a_part_fails() -> None:
    with pytest.raises(KeyError):
        async with opened(holding, None, threads=1):
            raise KeyError
    assert seen == ["entered", "left"]


@pytest.mark.parametrize("error", [ValueError("x"), Retry(after=3), Reject("no")])
async def test_what_a_thread_raises_arrives_as_it_is(error: Exception) -> None:
    def fail(message: Message) -> None:
        raise error

    async with opened(fail, None, threads=1) as process:
        with pytest.raises(type(error)) as raised:
            await process(MESSAGE)
    assert raised.value is error


async def test_a_function_that_only_makes_a_context_manager_is_no_success() -> None:
    async with opened(check(lambda message: holding(), "m:f"), None, threads=1) as process:
        with pytest.raises(TypeError, match="returned a _AsyncGeneratorContextManager instead of doing the work"):
            await process(MESSAGE)


async def test_threads_are_bounded() -> None:
    together, most = 0, 0
    lock = threading.Lock()

    def work(message: Message) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        threading.Event().wait(0.05)
        with lock:
            together -= 1

    async with opened(work, None, threads=3) as process, trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(process, MESSAGE)
    assert most == 3


async def test_a_thread_is_abandoned_when_its_message_is_cancelled() -> None:
    release = threading.Event()

    def stuck(message: Message) -> None:
        release.wait(10)

    try:
        async with opened(stuck, None, threads=1) as process:
            with trio.fail_after(2), trio.move_on_after(0.1) as scope:
                await process(MESSAGE)
            assert scope.cancelled_caught
    finally:
        release.set()


async def test_the_default_processor_works_for_a_random_time(autojump_clock: MockClock) -> None:
    async with opened(find("svc.processors:simulated"), load({"SIMULATED_WORK_SECONDS": "2-4"}), threads=1) as process:
        times = []
        for _ in range(20):
            began = trio.current_time()
            await process(MESSAGE)
            times.append(trio.current_time() - began)
    assert all(2 <= one <= 4 for one in times)
    assert len(set(times)) > 10


# -- what is none --


class Class:
    def __init__(self, message: Message) -> None: ...

    def __call__(self, message: Message) -> None: ...


async def no_arguments() -> None: ...


async def two_arguments(message: Message, other: object) -> None: ...


async def keyword_only(*, message: Message) -> None: ...


async def undecorated() -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    yield asynchronous


async def undecorated_with_message(message: Message) -> AsyncIterator[int]:
    yield 1


def generator(message: Message) -> Iterator[int]:
    yield 1


@asynccontextmanager
async def greedy(settings: Settings, other: object) -> AsyncIterator[Callable[[Message], Awaitable[None]]]:
    yield asynchronous


@contextlib.contextmanager
def synchronous_manager() -> Iterator[Callable[[Message], None]]:
    yield synchronous


number = 3
nested = Asynchronous()

UNUSABLE = {
    "": "is not of the form module:attribute",
    "module": "is not of the form module:attribute",
    ":handle": "is not of the form module:attribute",
    "module:": "is not of the form module:attribute",
    "there.is.none:handle": "there is no module 'there' (is its folder the working directory, or on PYTHONPATH?)",
    "svc.there_is_none:handle": "there is no module 'svc.there_is_none'",
    "{here}:nothing": "has no attribute 'nothing'",
    "{here}:nested.nothing": "has no attribute 'nested.nothing'",
    "{here}:number": "is a int, not a function",
    "{here}:Class": "is the class Class, not a function",
    "{here}:no_arguments": "cannot be called with one message: its signature is ()",
    "{here}:two_arguments": "cannot be called with one message: its signature is (message",
    "{here}:keyword_only": "cannot be called with one message",
    "{here}:undecorated": "is a generator function: decorate it with contextlib.asynccontextmanager",
    "{here}:undecorated_with_message": "is a generator function",
    "{here}:generator": "is a generator function",
    "{here}:synchronous_manager": "asynccontextmanager",
    "{here}:greedy": "settings",
    "svc": "is not of the form",
    "os:path": "is a module, not a function",
    "..:x": "'..'",
    ".x:y": "'.x'",
}


@pytest.mark.parametrize("path", UNUSABLE)
def test_unusable(path: str) -> None:
    named = path.format(here=__name__)
    with pytest.raises(UnusableProcessor) as raised:
        find(named)
    assert UNUSABLE[path] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import there_is_none_of_this", "importing 'broken' failed: No module named 'there_is_none_of_this'"),
        ("1 / 0", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("def handle(:", "importing 'broken' failed: SyntaxError"),
        ("from svc import Nothing", "importing 'broken' failed: ImportError"),
        ("raise SystemExit(3)", "importing 'broken' failed: SystemExit: 3"),
        ("def __getattr__(name): raise RuntimeError('no such thing')", "RuntimeError: no such thing"),
    ],
)
def test_modules_that_cannot_be_loaded(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnusableProcessor) as raised:
        find("broken:handle")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_attributes_of_attributes_are_found() -> None:
    assert find(f"{__name__}:nested.method") == nested.method


@pytest.mark.parametrize("held", [None, 3, "handle", Asynchronous])
async def test_a_context_manager_that_yields_no_function(held: object) -> None:
    @asynccontextmanager
    async def wrong() -> AsyncIterator[object]:
        yield held

    with pytest.raises(UnusableProcessor, match=r"'what .*wrong yields' is .*, not a function"):
        async with opened(check(wrong, "m:wrong"), None, threads=1):
            pytest.fail("opened")


async def test_a_context_manager_that_yields_a_context_manager_function() -> None:
    @asynccontextmanager
    async def wrong() -> AsyncIterator[object]:
        yield holding

    with pytest.raises(UnusableProcessor, match="one more context manager function"):
        async with opened(check(wrong, "m:wrong"), None, threads=1):
            pytest.fail("opened")


async def test_a_context_manager_that_yields_a_function_without_arguments() -> None:
    @asynccontextmanager
    async def wrong() -> AsyncIterator[object]:
        yield no_arguments

    with pytest.raises(UnusableProcessor, match="one message"):
        async with opened(check(wrong, "m:wrong"), None, threads=1):
            pytest.fail("opened")


# -- Message, Retry, Reject --


def test_message() -> None:
    sent = datetime(2026, 1, 1, tzinfo=UTC)
    message = Message("id", '{"a": [1, "é"]}', {"kind": "x"}, 2, sent, "g")
    assert message.json() == {"a": [1, "é"]}
    assert (message.attributes["kind"], message.receive_count, message.sent_at, message.group_id) == ("x", 2, sent, "g")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.body = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Message("id", "body").attributes["x"] = "y"  # type: ignore[index]


@pytest.mark.parametrize("body", ["", "hello", "{", "{'a': 1}"])
def test_a_body_that_is_not_json(body: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        Message("id", body).json()


@pytest.mark.parametrize("after", [0, 0.5, 43_200])
def test_retry(after: float) -> None:
    assert Retry(after=after).after == after
    assert str(Retry(after=after)) == f"retry in {after:g} s"
    assert str(Retry("the disk is full", after=after)) == "the disk is full"


@pytest.mark.parametrize("after", [-1, -0.001, 43_200.001, float("inf"), float("nan")])
def test_retry_out_of_range(after: float) -> None:
    with pytest.raises(ValueError, match="SQS takes 0 to 43200 seconds"):
        Retry(after=after)


def test_retry_takes_its_time_by_name_only() -> None:
    assert Retry().after == 0
    with pytest.raises(TypeError):
        Retry("reason", 3)  # type: ignore[misc]


def test_reject() -> None:
    assert Reject("bad order").reason == str(Reject("bad order")) == "bad order"
    assert Reject().reason == "rejected by the processor"


def test_what_users_import() -> None:
    import svc

    assert (svc.Message, svc.Retry, svc.Reject) == (processors.Message, processors.Retry, processors.Reject)
    assert svc.Settings is Settings
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        svc.nothing  # noqa: B018


# -- a processor that forks --

children: list[int] = []


def forked() -> bool:
    """Whether this is the child, which is killed if nothing else ends it."""
    if child := os.fork():
        children.append(child)
        return False
    signal.alarm(5)
    return True


async def forks_on_trio(message: Message) -> None:
    await trio.lowlevel.checkpoint()
    forked()


async def forks_on_asyncio(message: Message) -> None:
    forked()


def forks_in_a_thread(message: Message) -> None:
    forked()


async def forks_and_exits(message: Message) -> None:
    await trio.lowlevel.checkpoint()
    if forked():
        sys.exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("processor", [forks_on_trio, forks_on_asyncio, forks_in_a_thread, forks_and_exits])
async def test_a_forked_child_does_not_go_on_as_the_service(processor: Callable[..., object]) -> None:
    runtime: Any = "asyncio" if processor is forks_on_asyncio else "auto"
    async with opened(processor, Settings(), threads=1, runtime=runtime) as process:
        await process(MESSAGE)
    _, status = await trio.to_thread.run_sync(os.waitpid, children.pop(), 0)
    assert os.waitstatus_to_exitcode(status) == 1
