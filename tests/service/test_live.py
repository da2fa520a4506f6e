"""The whole service as real processes against moto and etcd: drains, signals, kills, toggles. Real time."""

import contextlib
import signal
import time
from pathlib import Path

import pytest
import trio

from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd_client
from svc.settings import load
from tests.live import Instance, Stand, recorded, stand


@pytest.fixture
async def place(moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path):
    async with stand(moto, etcd.endpoint, queue_name, key_prefix + "maintenance", tmp_path / "record") as held:
        yield held


async def switch(place: Stand, value: str) -> float:
    """Set the maintenance key, as soon as etcd takes it: a machine that stands still for some seconds is no concern of these
    tests. Returns the wall time at which it was set."""
    settings = load(place.environ)
    with trio.fail_after(30):
        while True:
            with contextlib.suppress(etcd_client.EtcdError):
                await etcd_client.write(settings, settings.maintenance_key, value.encode())
                return time.time()


def numbered(count: int) -> list[str]:
    return [f"message {number}" for number in range(count)]


async def test_forty_messages_with_maintenance_in_the_middle(place: Stand, moto: Moto) -> None:
    with recorded(moto.url) as calls:
        await place.send(numbered(40))
        service = await place.start(MAX_CONCURRENCY="10", AWS_ENDPOINT=calls.url)
        await place.until(lambda: len(place.succeeded()) >= 10)
        switched = await switch(place, "true")
        health = await service.reaches("maintenance")
        assert health["drain"]["outcome"] == "drained"
        assert await place.depth() == (40 - len(place.succeeded()), 0)
        figures = await service.statistics()
        assert figures["messages_in_flight"] == 0
        assert (await service.get("/messages/stats")).status_code == 503
        assert max(calls.of("ReceiveMessage")) <= switched + 1

        await switch(place, "false")
        await place.until(lambda: len(place.succeeded()) >= 40)
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
    assert sorted(place.succeeded()) == sorted(numbered(40))
    assert await place.depth() == (0, 0)
    place.check_no_double_processing()


async def idle_in_a_long_poll(place: Stand) -> Instance:
    service = await place.start(SQS_WAIT_TIME_SECONDS="20")
    await service.figure("receives_outstanding", 1)
    return service


async def test_a_long_poll_lands_in_maintenance(place: Stand) -> None:
    service = await idle_in_a_long_poll(place)
    await switch(place, "on")
    await service.reaches("draining")
    await place.send(numbered(5))
    health = await service.reaches("maintenance")
    assert await place.depth() == (5, 0)
    assert health["drain"]["sqs"]["receives_outstanding"] == 1
    assert health["drain"]["sqs"]["receives_brought"] == health["drain"]["sqs"]["released"]
    assert place.events() == []


@pytest.mark.slow
async def test_a_long_poll_lands_at_sigterm(place: Stand) -> None:
    service = await idle_in_a_long_poll(place)
    service.signal(signal.SIGTERM)
    await service.logged("drain begins")
    await place.send(numbered(5))
    assert await service.exit_code() == 0
    assert await place.depth() == (5, 0)


async def test_a_processor_that_never_ends(place: Stand) -> None:
    await place.send(['{"seconds": 1000000}'] * 2)
    service = await place.start(DRAIN_TIMEOUT="3s")
    await place.until(lambda: len(place.events()) == 2)
    switched = await switch(place, "on")
    health = await service.reaches("maintenance")
    assert time.time() - switched < 10  # 3 of its own; the rest is for a busy machine
    ids = {event["id"] for event in place.events()}
    assert "2 messages unfinished" in health["drain"]["error"]
    assert all(message_id in health["drain"]["error"] for message_id in ids)
    assert set(health["drain"]["sqs"]["timed_out"]) == ids
    assert await place.depth() == (2, 0)

    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0  # this drain had nothing to do


@pytest.mark.slow
async def test_a_drain_that_runs_out_of_time_at_sigterm_exits_with_3(place: Stand) -> None:
    await place.send(['{"seconds": 1000000}'])
    service = await place.start(DRAIN_TIMEOUT="1s")
    await place.until(lambda: len(place.events()) == 1)
    service.signal(signal.SIGTERM)
    assert await service.exit_code(within=15) == 3
    assert await place.depth() == (1, 0)


async def test_a_thread_that_cannot_be_stopped_holds_up_neither_the_drain_nor_the_exit(place: Stand) -> None:
    await place.send(['{"seconds": 300}'])
    service = await place.start(DRAIN_TIMEOUT="1s", MESSAGE_PROCESSOR="tests.recording:stuck")
    await place.until(lambda: len(place.events()) == 1)
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    ended = await service.logged("drain ended")
    (message_id,) = ended["sqs"]["stubborn"]
    assert "stuck in thread " in ended["sqs"]["threads"][message_id]
    assert await service.exit_code(within=15) == 3
    assert time.monotonic() - began < 15
    assert await place.depth() == (1, 0)


async def test_a_processor_that_blocks_the_event_loop_is_told_with_its_stack(place: Stand) -> None:
    await place.send(['{"seconds": 2.5}'])
    service = await place.start(MESSAGE_PROCESSOR="tests.recording:blocking")
    told = await service.logged_like("the event loop is blocked")
    assert "in blocking" in told["stack"]
    over = await service.logged("the event loop runs again")
    assert over["blocked_seconds"] >= 1
    await place.until(lambda: len(place.events()) == 1)
    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0


async def test_a_second_signal_ends_the_drain_and_releases_first(place: Stand) -> None:
    await place.send(['{"seconds": 1000000}'] * 3)
    service = await place.start(SQS_WAIT_TIME_SECONDS="20")
    await place.until(lambda: len(place.events()) == 3)
    service.signal(signal.SIGINT)
    await service.logged("drain begins")
    began = time.time()
    service.signal(signal.SIGINT)
    assert await service.exit_code() == 3
    assert time.time() - began < 5
    assert await place.depth() == (3, 0)


async def test_a_signal_during_the_start_stops_it(place: Stand) -> None:
    instance = Instance({**place.environ, "ETCD_ENDPOINTS": "127.0.0.1:1"})
    place.instances.append(instance)
    await instance.started()  # serves, but has not read the key
    assert await instance.status() == "starting"
    instance.signal(signal.SIGTERM)
    assert await instance.exit_code() == 0


@pytest.mark.parametrize("toggles", [8, pytest.param(30, marks=pytest.mark.slow)])
async def test_toggles_under_load(place: Stand, toggles: int) -> None:
    service = await place.start(MAX_CONCURRENCY="20", WORK_SECONDS="0.3", SQS_VISIBILITY_TIMEOUT_SECONDS="30")
    sent = 0
    async with trio.open_nursery() as nursery:
        toggling_ended = trio.Event()

        async def load_up() -> None:
            nonlocal sent
            while not toggling_ended.is_set():
                await place.queue.send(f"message {sent}")
                sent += 1
                await trio.sleep(0.03)  # the rhythm of the senders: about what the service can do

        nursery.start_soon(load_up)
        for toggle in range(toggles):
            await switch(place, "true" if toggle % 2 == 0 else "false")
            await trio.sleep(0.5)  # the rhythm of the operator, not a wait for anything
        toggling_ended.set()
    await switch(place, "false")
    await place.until(lambda: len(place.succeeded()) >= sent, within=60)
    service.signal(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert sorted(place.succeeded()) == sorted(numbered(sent))
    assert await place.depth() == (0, 0)
    place.check_no_double_processing()


async def test_sigkill_under_load_and_a_restart(place: Stand) -> None:
    await place.send(numbered(40))
    options = {"MAX_CONCURRENCY": "10", "WORK_SECONDS": "0.5", "SQS_VISIBILITY_TIMEOUT_SECONDS": "4"}
    first = await place.start(**options)
    await place.until(lambda: len(place.succeeded()) >= 10)
    first.signal(signal.SIGKILL)
    assert await first.exit_code() == -signal.SIGKILL
    second = await place.start(**options)
    # What was finished but not deleted, or handed to the dead process, comes back when its visibility timeout ends.
    await place.empty()
    second.signal(signal.SIGTERM)
    assert await second.exit_code() == 0
    assert set(place.succeeded()) == set(numbered(40))
    assert await place.depth() == (0, 0)


async def test_etcd_killed_and_restarted_with_the_key_changed(
    moto: Moto, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    with Etcd() as etcd:
        async with stand(moto, etcd.endpoint, queue_name, key_prefix + "maintenance", tmp_path / "record") as place:
            service = await place.start(WORK_SECONDS="0.1")
            await service.ready()  # one that etcd does not know yet would wait for it
            await trio.to_thread.run_sync(etcd.kill)
            await service.logged("etcd lost; the last known state stands")
            health = (await service.get("/health")).json()
            assert (health["status"], health["etcd"]["connected"]) == ("healthy", False)
            await place.send(numbered(3))  # the last known state stands: work goes on
            await place.until(lambda: len(place.succeeded()) == 3)

            await trio.to_thread.run_sync(etcd.restart)
            back = await switch(place, "on")
            await service.reaches("maintenance")
            drained = await service.logged("drain begins")
            assert time.time() - back < 5
            assert drained["cause"] == "maintenance"


async def test_rejected_messages_go_to_the_dead_letter_queue(place: Stand, moto: Moto) -> None:
    await place.send(['{"seconds": 0, "reject": "not for us"}', '{"seconds": 0}'])
    service = await place.start()
    await service.figure("messages_rejected", 1)
    figures = await service.figure("messages_processed", 1)
    assert figures["recent_errors"][0]["error"] == "rejected: not for us"
    dead = load({**place.environ, "SQS_QUEUE_URL": place.environ["SQS_QUEUE_URL"] + "-dlq"})
    from svc.sqs import queue as sqs

    async with sqs.opened(dead, polls=1) as letters:
        (letter,) = await letters.receive(limit=10, wait=1, visibility=30)
    assert letter.message.attributes["RejectReason"] == "not for us"
    assert await place.depth() == (0, 0)


async def test_a_message_that_came_while_the_process_was_stopped_is_not_stranded(place: Stand, moto: Moto) -> None:
    """Its receive is long overdue when the process goes on, and its answer lies in the socket."""
    with recorded(moto.url) as calls:
        service = await place.start(
            SQS_WAIT_TIME_SECONDS="2", SQS_VISIBILITY_TIMEOUT_SECONDS="60", WORK_SECONDS="0", AWS_ENDPOINT=calls.url
        )
        await place.until(lambda: len(calls.of("ReceiveMessage")) >= 2)
        service.signal(signal.SIGSTOP)
        await place.send(["came meanwhile"])
        await place.until(lambda: calls.held)  # SQS has handed it out
        await trio.sleep(
            8
        )  # past the receive's wait and the time for its way: what is tested is that this time does not count
        service.signal(signal.SIGCONT)
        await place.until(lambda: place.succeeded() == ["came meanwhile"], within=30)  # its lease has 50 s
        await place.empty(within=10)
        assert not [line for line in service.logs if line["event"] == "receiving failed, trying again"]
