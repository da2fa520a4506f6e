"""Processors that misbehave (troublesome.py), as seen from outside: nobody else's message suffers, and a drain ends on time."""

import signal

import trio

from tests.faults.rows import scenario
from tests.faults.rows_process import another_takes, at_work, held_by
from tests.faults.trial import Trial
from tests.faults.troublesome import RAISED

TROUBLESOME = "tests.faults.troublesome:handle"


@scenario(
    "processor-exceptions",
    "processors raise everything there is: " + ", ".join(f"`{name}`" for name in RAISED),
    "each is *failed* and tried again; the service goes on",
    MESSAGE_PROCESSOR=TROUBLESOME,
    SQS_VISIBILITY_TIMEOUT_SECONDS="5",
)
async def _(t: Trial) -> None:
    await t.start()
    bodies = [await t.send(**{"raise": name}) for name in RAISED] + [await t.send(scope=True)]
    began = trio.current_time()
    await t.told("message failed", None)
    await t.processes()
    await t.until(lambda: all(t.record.succeeded[body] for body in bodies))
    t.row.recovery = round(trio.current_time() - began, 1)
    failed = [line for line in t.service.logs if line["event"] == "message failed"]
    assert len(failed) == len(bodies)


@scenario(
    "processor-ignores-cancellation",
    "a processor ignores its cancellation while the service stops",
    "the drain ends on time and names it (`stubborn`); exit code 3; its message is visible at once",
    MESSAGE_PROCESSOR=TROUBLESOME,
    DRAIN_TIMEOUT="2s",
)
async def _(t: Trial) -> None:
    first = await t.start()
    await t.quiet()
    await t.send(ignore=3600)
    await at_work(t, first)
    held = held_by(t, first)
    began = trio.current_time()
    first.signal(signal.SIGTERM)
    await t.logged("drain ended")
    assert trio.current_time() - began < 2 + 1 + 2
    line = await t.logged("drain ended")
    assert set(line["sqs"]["stubborn"]) == held
    t.last_words = ["still not stopped: ending the process"]
    await t.told("drain ended", t.last_words[0])
    t.record.stopped[first.pid] = 0  # it is told to be no longer at work, and its message is given back
    assert await first.exit_code(within=60) == 3
    await another_takes(t, held, trio.current_time())


@scenario(
    "processor-blocks",
    "a processor blocks the event loop for 3 s",
    "everything waits for it (the API too), nothing is lost; the watchdog names it after a second",
    MESSAGE_PROCESSOR=TROUBLESOME,
)
async def _(t: Trial) -> None:
    await t.start()
    await t.send(block=3)
    await t.told("the event loop is blocked", "the event loop runs again")
    began = trio.current_time()
    await t.processes()
    t.row.recovery = round(trio.current_time() - began, 1)


@scenario(
    "processor-odd",
    "processors return garbage, try to change their message, leave threads behind",
    "nothing",
    MESSAGE_PROCESSOR=TROUBLESOME,
)
async def _(t: Trial) -> None:
    await t.start()
    for told in ("garbage", "change", "leak"):
        for _ in range(5):
            await t.send(**{told: True})
    t.row.recovery = round(await t.processes(), 1)


@scenario(
    "processor-thread-stuck",
    "a plain function never returns, and the service is stopped",
    "the drain ends on time and names it; exit code 3; its message is visible at once",
    MESSAGE_PROCESSOR="tests.faults.troublesome:in_thread",
    DRAIN_TIMEOUT="2s",
)
async def _(t: Trial) -> None:
    first = await t.start()
    await t.quiet()
    body = await t.send(stuck=True)
    await t.until(lambda: t.record.ids_of(body))
    held = t.record.ids_of(body)
    began = trio.current_time()
    first.signal(signal.SIGTERM)
    assert await first.exit_code() == 3
    ended = trio.current_time()
    assert ended - began < 2 + 1 + 3
    line = await t.logged("drain ended")
    assert all(id_ in line["error"] for id_ in held)
    await t.told("drain ended", "stopped")
    await another_takes(t, held, ended)


@scenario(
    "processor-poison",
    "a message fails at every delivery",
    "it goes to the dead-letter queue after `maxReceiveCount` receives; the others are not held up",
    SQS_MAX_RECEIVE_COUNT="3",
    SQS_VISIBILITY_TIMEOUT_SECONDS="2",
)
async def _(t: Trial) -> None:
    await t.start()
    poison = await t.send(fail=True)
    t.expected = lambda body: body != poison
    began = trio.current_time()
    await t.told("message failed", None)
    await t.processes()
    with trio.fail_after(30):
        while not await t.dead_letters():
            await trio.sleep(0.1)
    t.row.recovery = round(trio.current_time() - began, 1)
