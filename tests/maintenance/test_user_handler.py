"""Handlers of the user's own: whatever one does, it is bounded and named, and harms no other."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from svc.defects import Defects
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.manager import Manager
from svc.maintenance.user_handler import UnusableHandler, UserHandler


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


@pytest.mark.parametrize(
    ("handler", "fault"),
    [
        (SimpleNamespace(), "has the name None"),
        (SimpleNamespace(name="sqs"), "has the name 'sqs'"),
        (SimpleNamespace(name="my cache"), "has the name 'my cache'"),
        (SimpleNamespace(name="cache", after="sqs"), "must be a tuple of names"),
        (SimpleNamespace(name="cache"), "the handler 'cache' has no method enter"),
    ],
)
async def test_what_is_no_handler_is_told(handler: Any, fault: str) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(UnusableHandler, match=fault):
            UserHandler(handler, "m:a", nursery, Defects())
