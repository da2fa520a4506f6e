"""The service with its page in a thread of its own, between a simulated queue and a simulated switch, on a real port.

For browsers: time is real while they look, and may be skipped before (`skip`), so that a quarter of an hour of charts takes
seconds. Everything but the edges is what production runs.
"""

import json
import math
import random
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio
from quart_trio import QuartTrio
from trio.testing import MockClock

from svc import Message, Reject, Retry
from svc.api import app as api
from svc.api.feed import Feed
from svc.core import Core
from svc.settings import load
from svc.testing import Outage, SimulatedQueue, SimulatedSwitch
from svc.testing.faults import Fault

T = TypeVar("T")
TOKEN = "only-for-the-stage"


class Stage:
    def __init__(self, outages: Sequence[Outage] = (), **settings: str) -> None:
        self.settings = load(
            {
                "SQS_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/orders",
                "HTTP_PORT": "0",
                "DRAIN_TIMEOUT": "30s",
                "SQS_WAIT_TIME_SECONDS": "2",
                "API_TOKEN": TOKEN,
                **settings,
            }
        )
        self.clock = MockClock(rate=1)
        self.dead_letters = SimulatedQueue("orders-dlq")
        self.faults: list[Fault] = []
        self.queue = SimulatedQueue(
            "orders",
            dead_letters=self.dead_letters,
            max_receive_count=5,
            faults=self._fault,
            request_seconds=(0.01, 0.03),
        )
        self.switch = SimulatedSwitch(outages=outages)
        self.core: Core
        self.app: QuartTrio
        self.feed: Feed
        self.url = ""
        self._gates: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._nursery: trio.Nursery
        self._thread = threading.Thread(target=self._run, name="stage")
        self._failure: BaseException | None = None

    async def handle(self, message: Message) -> None:
        """Does what the body says: {"seconds": 1, "until": "name", "fail": "text", "retry": 1, "reject": "text"}."""
        todo = json.loads(message.body)
        await trio.sleep(todo.get("seconds", 0))
        if "until" in todo:
            await self._gates[todo["until"]].wait()
        if "fail" in todo:
            raise RuntimeError(todo["fail"])
        if "retry" in todo:
            raise Retry(after=todo["retry"])
        if "reject" in todo:
            raise Reject(todo["reject"])

    def _fault(self, call: object) -> Fault | None:
        return next((fault for fault in self.faults if fault.hits(call)), None)  # type: ignore[arg-type]

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self.clock)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        self.core = Core(self.settings, self.queue, self.handle, self.switch.watcher, rng=random.Random(1))
        self.feed = Feed(self.core)
        self.app = api.make(self.core, feed=self.feed)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.feed.run, self._stop)
            self.url = await nursery.start(api.serve, self.app, self.settings, self._stop)
            async with trio.open_nursery() as working:
                await working.start(self.core.run)
                self._ready.set()
                await self._stop.wait()
                working.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    # -- from the test's thread --

    def do(self, what: Callable[[], T]) -> T:
        """Call it within the service's thread."""
        return trio.from_thread.run_sync(what, trio_token=self._token)

    def put(self, *todo: dict[str, object]) -> list[str]:
        return self.do(lambda: [self.queue.put(json.dumps(one)) for one in todo])

    def spawn(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run it beside the service, until the stage stops."""
        self.do(lambda: self._nursery.start_soon(task))

    def let_go(self, name: str) -> None:
        """Whatever waits `until` that name goes on."""
        self.do(lambda: self._gates[name].set())

    def skip(self, seconds: float) -> None:
        """Virtual seconds from one event to the next, however slow the machine is. Only while no browser is connected."""

        async def wait() -> None:
            self.clock.rate, self.clock.autojump_threshold = 0, 0
            await trio.sleep(seconds)
            self.clock.rate, self.clock.autojump_threshold = 1, math.inf

        trio.from_thread.run(wait, trio_token=self._token)

    def stop(self) -> None:
        self.do(self._end)
        self._thread.join(10)
        if self._failure is not None:
            raise self._failure

    def _end(self) -> None:
        self._stop.set()
        self.clock.rate = 100  # what the core waits for at its end is simulated

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)
        if self._failure is not None:
            raise self._failure


@contextmanager
def stage(outages: Sequence[Outage] = (), **settings: str) -> Iterator[Stage]:
    held = Stage(outages, **settings)
    held.start()
    try:
        yield held
    finally:
        if held._thread.is_alive():
            held.stop()
