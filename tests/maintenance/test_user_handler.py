"""Handlers of the user's own: whatever one does, it is bounded and named, and harms no other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from svc.defects import Defects
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.manager import Manager
from svc.maintenance.user_handler import UnusableHandler, UserHandler
from svc.service import _handlers
from svc.settings.loading import load


class Good:
    """As a user writes it."""

    name = "cache"
    after = ("sqs",)

    def __init__(self) -> None:
        self.told: list[str] = []

    def enter(self) -> None:
        self.told.append("enter")

    async def wait_drained(self, deadline: float) -> str | None:
        self.told.append("drained")
        return None

    def leave(self) -> None:
        self.told.append("leave")

    async def health(self) -> bool:
        return True

    def statistics(self) -> object:
        return {"entries": 3, "odd": {1, 2}}

    def drain(self) -> object:
        return {"flushed": 3}


class Raises(Good):
    name = "raises"
    after = ()

    def enter(self) -> None:
        raise ZeroDivisionError

    leave = statistics = drain = enter  # type: ignore[assignment]

    async def wait_drained(self, deadline: float) -> str | None:
        raise ZeroDivisionError

    async def health(self) -> bool:
        raise ZeroDivisionError


class Hangs(Good):
    name = "hangs"
    after = ()

    async def wait_drained(self, deadline: float) -> str | None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1000)
        return None

    async def health(self) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(1000)
        return True


@pytest.mark.expects_errors
async def test_one_that_raises_and_one_that_hangs_are_named_and_harm_no_other(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        defects, good, sqs = Defects(), Good(), Good()
        sqs.name, sqs.after = "worker", ()
        good.after = ("worker",)
        handlers = [UserHandler(one, "m:a", nursery, defects) for one in (Raises(), Hangs(), good, sqs)]  # type: ignore[arg-type]
        manager = Manager(handlers, drain_timeout=10)
        nursery.start_soon(manager.run)
        manager.on_value(None, 1)
        await trio.sleep(1)
        manager.on_value(b"on", 2)
        await trio.sleep(20)
        report = manager.state().drain
        assert report is not None
        assert (report.outcome, report.ended) == (DrainOutcome.EXPIRED, 12)
        assert report.error == (
            "not everything was finished within 10 s: hangs: wait_drained() had not returned 1 s after its deadline; "
            "raises: wait_drained() raised ZeroDivisionError"
        )
        assert report.handlers["cache"] == {"flushed": 3}
        assert report.handlers["raises"] == {}
        assert good.told == sqs.told == ["leave", "enter", "drained"]
        began = trio.current_time()
        assert [await one.health() for one in handlers] == [False, False, True, True]
        assert trio.current_time() == began + 5
        assert handlers[2].statistics() == {"entries": 3, "odd": "{1, 2}"}
        assert defects.counts["handler"] == 5
        manager.stop()
        nursery.cancel_scope.cancel(reason="the test is over")


def with_methods(**methods: Any) -> Any:
    handler: Any = Good()
    handler.after = ()
    vars(handler).update(methods)
    return handler


def raising(error: BaseException) -> Any:
    def method(*_: object) -> None:
        raise error

    return method


async def drained(handler: Any) -> Any:
    """The report of a drain, in which its figures and its health are asked for."""
    async with trio.open_nursery() as nursery:
        made = UserHandler(handler, "m:a", nursery, Defects())
        manager = Manager([made], drain_timeout=10)
        nursery.start_soon(manager.run)
        manager.on_value(None, 1)
        await trio.sleep(1)
        manager.on_value(b"on", 2)
        manager.state()
        await made.health()
        await trio.sleep(20)
        nursery.cancel_scope.cancel(reason="the test is over")
    return manager.state().drain


class Unspeakable:
    def __repr__(self) -> str:
        raise AttributeError


@pytest.mark.expects_errors
@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), BaseExceptionGroup("", [GeneratorExit()])])
@pytest.mark.parametrize("method", ["enter", "wait_drained", "leave", "health", "statistics", "drain"])
async def test_whatever_one_raises_ends_nothing(autojump_clock: Any, method: str, error: BaseException) -> None:
    report = await drained(with_methods(**{method: raising(error)}))
    failed = method in ("enter", "wait_drained")
    assert report.outcome is (DrainOutcome.EXPIRED if failed else DrainOutcome.DRAINED)
    assert (f"{method}() raised {type(error).__name__}" in str(report.error)) is failed


@pytest.mark.expects_errors
@pytest.mark.parametrize("figures", [{"a": Unspeakable()}, {Unspeakable(): 1}, {"a": 10**5000}])
async def test_figures_that_cannot_be_shown_are_none(autojump_clock: Any, figures: object) -> None:
    report = await drained(with_methods(drain=lambda: figures, statistics=lambda: figures))
    assert (report.outcome, report.handlers) == (DrainOutcome.DRAINED, {"cache": {}})


@pytest.mark.expects_errors
async def test_what_must_not_wait_and_would_is_not_taken_for_done(autojump_clock: Any) -> None:
    """Its coroutine would never be run: it would take work in maintenance."""
    report = await drained(with_methods(enter=lambda: Good().health()))
    assert report.outcome is DrainOutcome.EXPIRED
    assert report.error.endswith("cache: enter() raised TypeError")


@pytest.mark.expects_errors
async def test_an_answer_that_is_no_sentence_is_named(autojump_clock: Any) -> None:
    async def wait_drained(deadline: float) -> Any:
        return Unspeakable()

    report = await drained(with_methods(wait_drained=wait_drained))
    assert report.error.endswith("cache: wait_drained() returned a Unspeakable, neither None nor a sentence")


@pytest.mark.parametrize(
    ("handler", "fault"),
    [
        (SimpleNamespace(), "has the name None"),
        (SimpleNamespace(name="sqs"), "has the name 'sqs'"),
        (SimpleNamespace(name="my cache"), "has the name 'my cache'"),
        (SimpleNamespace(name="cache", after="sqs"), "must be a tuple of names"),
        (SimpleNamespace(name="cache"), "the handler 'cache' has no method enter"),
        (with_methods(enter=Good().health), r"the handler 'cache': enter\(\) must be a plain def"),
    ],
)
async def test_what_is_no_handler_is_told(handler: Any, fault: str) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(UnusableHandler, match=fault):
            UserHandler(handler, "m:a", nursery, Defects())


async def test_what_yields_a_handler_may_hold_a_nursery_and_clean_up() -> None:
    """As what works in the background does on Trio. Closed in the wrong order, it would end the service by an error."""
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def cache() -> AsyncIterator[Good]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield Good()
            await trio.lowlevel.checkpoint()
            told.append("clean")
            nursery.cancel_scope.cancel(reason="it is over")

    async with _handlers({"m:cache": cache}, load({"SQS_QUEUE_URL": "http://h/1/q"}), Defects()) as handlers:
        assert [one.name for one in handlers] == ["cache"]
        assert await handlers[0].health()
    assert told == ["clean"]
