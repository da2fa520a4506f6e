"""Looking into the dead-letter queue and moving messages back: exact in virtual time, and the commands against moto."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL

import pytest
import trio

from svc.consumer.queue import QueueError, Received
from svc.devstack.announcement import announced
from svc.settings import Settings, load
from svc.sqs import creation
from svc.sqs import queue as sqs
from svc.sqs.dead_letters import Depth, Moved, Purged, Sifted, depth, look, purge, redrive
from svc.sqs.wire import REJECT_REASON
from svc.testing import Fault, SimulatedQueue
from svc.testing.history import Deleted, Sent
from tests import preloaded


async def pair(count: int, *, fifo: bool = False, **options: object) -> tuple[SimulatedQueue, SimulatedQueue]:
    """A queue and its dead-letter queue with so many rejected messages."""
    dead = SimulatedQueue("dead", fifo=fifo, **options)  # type: ignore[arg-type]
    queue = SimulatedQueue(fifo=fifo, dead_letters=dead, max_receive_count=5)
    for number in range(count):
        await queue.send(
            f"body {number}",
            attributes={"number": number, "kind": "test"},
            group_id=str(number % 2) if fifo else None,
            deduplication_id=str(number) if fifo else None,
        )
    while batch := await queue.receive(limit=10, wait=0, visibility=30):
        for delivery in batch:
            assert await queue.dead_letter(delivery, "no good")
        await queue.delete([delivery.receipt for delivery in batch])
    return queue, dead


async def bodies(queue: SimulatedQueue) -> list[Received]:
    found: list[Received] = []
    while batch := await queue.receive(limit=10, wait=0, visibility=1000):
        found += batch
        if queue.fifo:
            await queue.delete([delivery.receipt for delivery in batch])
    return found


async def test_a_look_shows_each_message_once_and_hides_none(autojump_clock) -> None:
    _, dead = await pair(25)
    assert await depth(dead) == Depth(25, 0)
    seen = await look(dead, 100)
    assert sorted(delivery.message.body for delivery in seen) == sorted(f"body {number}" for number in range(25))
    assert seen[0].message.attributes[REJECT_REASON] == "no good"
    assert len(dead.visible()) == 25
    assert len(await look(dead, 7)) == 7
    assert await depth(dead) == Depth(25, 0)


async def test_a_look_at_nothing(autojump_clock) -> None:
    _, dead = await pair(0)
    assert await look(dead, 10) == []


async def test_a_look_that_is_cut_off_releases_what_it_holds(autojump_clock) -> None:
    _, dead = await pair(5)
    with trio.move_on_after(0.5):
        await look(dead, 100)  # it waits a second for more
    assert len(dead.visible()) == 5


async def test_a_look_whose_second_receive_fails_releases_the_first(autojump_clock) -> None:
    _, dead = await pair(15)
    dead.faults = [Fault("error", "receive", nth=2)]
    with pytest.raises(QueueError):
        await look(dead, 100)
    assert len(dead.visible()) == 15


async def test_moving_back_keeps_attributes_and_drops_the_reason(autojump_clock) -> None:
    queue, dead = await pair(25)
    moved, told = Moved(), []
    await redrive(dead, queue, 100, moved, told.append)
    assert (moved.count, moved.twice, told) == (25, [], [10, 20, 25])
    assert await depth(dead) == Depth(0, 0)
    back = await bodies(queue)
    assert sorted(delivery.message.body for delivery in back) == sorted(f"body {number}" for number in range(25))
    for delivery in back:
        number = delivery.message.body.split()[1]
        assert dict(delivery.message.attributes) == {"number": number, "kind": "test"}
        assert delivery.native["number"]["DataType"] == "Number"  # type: ignore[index]


async def test_moving_back_takes_no_more_than_was_asked_for(autojump_clock) -> None:
    queue, dead = await pair(25)
    moved = Moved()
    await redrive(dead, queue, 13, moved)
    assert (moved.count, len(dead.visible()), len(queue.visible())) == (13, 12, 13)


async def test_a_fifo_queue_gets_its_groups_back_in_order(autojump_clock) -> None:
    queue, dead = await pair(14, fifo=True)
    await redrive(dead, queue, 100, Moved())
    back = await bodies(queue)
    for group in "01":
        numbers = [int(one.message.body.split()[1]) for one in back if one.message.group_id == group]
        assert numbers == list(range(int(group), 14, 2))


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("what", ["error", "timeout-before", "timeout-after", "error-after", "denied"])
@pytest.mark.parametrize("nth", [1, 4])
async def test_a_send_that_fails_loses_nothing(autojump_clock, what, nth: int, fifo: bool) -> None:
    queue, dead = await pair(8, fifo=fifo)
    queue.faults = [Fault(what, "send", nth=8 + nth)]  # eight made them
    moved = Moved()
    with pytest.raises(QueueError):
        await redrive(dead, queue, 100, moved)
    assert moved.count == nth - 1
    # The one on its way is named, unless it was refused: nobody knows whether it was taken.
    assert [dead.bodies.count(f"body {nth - 1}"), len(moved.twice)] == [1, what != "denied"]
    assert set(moved.twice) <= set(dead.visible())
    assert len(dead.visible()) == 8 - (nth - 1)  # released, not only hidden
    again = Moved()
    await redrive(dead, queue, 100, again)
    assert moved.count + again.count == 8
    found = [delivery.message.body for delivery in await bodies(queue)]
    assert set(found) == {f"body {number}" for number in range(8)}
    # The one whose answer was lost came twice, except where the queue knows it again.
    acted = what in ("timeout-after", "error-after") and not fifo
    assert len(found) == 8 + acted


async def test_a_delete_that_fails_is_tried_again(autojump_clock) -> None:
    queue, dead = await pair(5)
    dead.faults = [Fault("error", "delete", nth=1), Fault("partial", "delete", nth=2, entries=(0, 2))]
    moved = Moved()
    await redrive(dead, queue, 100, moved)
    assert (moved.count, moved.twice) == (5, [])
    assert await depth(dead) == Depth(0, 0)


async def test_what_cannot_be_deleted_is_named(autojump_clock) -> None:
    queue, dead = await pair(3)
    dead.faults = [Fault("denied", "delete")]
    ids = set(dead.visible())
    moved = Moved()
    await redrive(dead, queue, 3, moved)
    assert (moved.count, set(moved.twice)) == (0, ids)
    assert len(queue.visible()) == 3


@pytest.mark.parametrize("after", [0.05, 0.55, 1.05, 1.55])
async def test_an_interruption_at_any_point_loses_nothing(autojump_clock, after: float) -> None:
    queue, dead = await pair(8)
    queue._request_seconds = queue._answer_seconds = (0.1, 0.1)
    moved = Moved()
    with trio.move_on_after(after):
        await redrive(dead, queue, 100, moved)
    sent = sum(isinstance(event, Sent) and event.at > 0 for event in queue.history)
    deleted = sum(isinstance(event, Deleted) for event in dead.history)
    assert sent >= deleted == moved.count
    assert len(dead.visible()) == 8 - deleted


async def test_a_stop_ends_it_after_the_message_on_its_way(autojump_clock) -> None:
    queue, dead = await pair(30)
    moved = Moved()

    def stop(count: int) -> None:
        moved.stop = True

    await redrive(dead, queue, 100, moved, stop)
    assert (moved.count, len(dead.visible()), len(queue.visible())) == (10, 20, 10)


# -- only some of them --


def even(letter: Received) -> bool:
    return int(letter.message.body.split()[1]) % 2 == 0


async def test_a_look_for_some_hides_none_and_sees_each_once(autojump_clock) -> None:
    _, dead = await pair(40)
    sifted = Sifted()
    seen = await look(dead, 100, matches=even, scan=100, sifted=sifted)
    assert {delivery.message.body for delivery in seen} == {f"body {number}" for number in range(0, 40, 2)}
    assert (sifted.looked_at, sifted.cut_short, len(dead.visible())) == (40, False, 40)
    assert max(dead.receive_count(one) for one in dead.visible()) == 1


async def test_a_look_is_bounded_in_number_and_in_time(autojump_clock) -> None:
    _, dead = await pair(40)
    sifted = Sifted()
    assert len(await look(dead, 100, matches=even, scan=25, sifted=sifted)) <= 13
    assert (sifted.looked_at, sifted.cut_short, len(dead.visible())) == (25, True, 40)
    dead._request_seconds = (1.0, 1.0)
    began, sifted = trio.current_time(), Sifted()
    found = await look(dead, 40, seconds=2.5, sifted=sifted)
    assert (len(found), sifted.cut_short, len(dead.visible())) == (30, True, 40)
    assert trio.current_time() - began == 3 + 1  # three receives, and the releases side by side


async def test_moving_some_back_leaves_the_others(autojump_clock) -> None:
    queue, dead = await pair(40)
    moved = Moved()
    await redrive(dead, queue, 100, moved, matches=even, scan=100)
    assert (moved.count, moved.looked_at, moved.cut_short) == (20, 40, False)
    assert {delivery.message.body for delivery in await bodies(queue)} == {f"body {one}" for one in range(0, 40, 2)}
    assert len(dead.visible()) == 20
    assert not any(even(delivery) for delivery in await bodies(dead))


async def test_of_a_fifo_queue_some_are_moved_in_their_order(autojump_clock) -> None:
    """What is not meant holds its group up in the dead-letter queue, and is given back with what is behind it."""
    queue, dead = await pair(14, fifo=True)
    moved = Moved()
    await redrive(dead, queue, 100, moved, matches=lambda letter: letter.message.group_id == "1", scan=100)
    numbers = [int(letter.message.body.split()[1]) for letter in await bodies(queue)]
    assert numbers == [1, 3, 5, 7, 9, 11, 13]
    assert (moved.count, moved.twice, len(dead.visible())) == (7, [], 7)


async def test_no_more_are_moved_than_were_asked_for(autojump_clock) -> None:
    queue, dead = await pair(40)
    moved = Moved()
    await redrive(dead, queue, 3, moved, matches=even, scan=100)
    assert (moved.count, len(queue.visible()), len(dead.visible())) == (3, 3, 37)


async def test_a_purge_deletes_what_is_meant_and_nothing_else(autojump_clock) -> None:
    queue, dead = await pair(40)
    purged, told = Purged(), []
    await purge(dead, 100, purged, told.append, matches=even, scan=100)
    assert (purged.count, purged.unconfirmed, told[-1]) == (20, [], 20)
    assert len(dead.visible()) == 20
    assert not any(even(delivery) for delivery in await bodies(dead))
    assert queue.visible() == []


@pytest.mark.parametrize("what", ["error", "denied"])
async def test_a_purge_whose_delete_fails_says_what_may_be_left(autojump_clock, what) -> None:
    _, dead = await pair(15)
    dead.faults = [Fault(what, "delete")]
    purged = Purged()
    await purge(dead, 15, purged)
    assert (purged.count, len(purged.unconfirmed)) == (0, 15)
    assert len(dead.bodies) == 15


TODO = {
    "look": lambda queue, dead, so_far: look(dead, 100, matches=even, scan=100),
    "redrive": lambda queue, dead, so_far: redrive(dead, queue, 100, so_far, matches=even, scan=100),
    "purge": lambda queue, dead, so_far: purge(dead, 100, so_far, matches=even, scan=100),
}


@pytest.mark.parametrize("after", [0.05, 0.55, 1.05, 1.55, 2.05])
@pytest.mark.parametrize("todo", TODO)
async def test_what_is_held_is_given_back_whatever_ends_it(autojump_clock, after: float, todo: str) -> None:
    queue, dead = await pair(40)
    dead._request_seconds = dead._answer_seconds = (0.1, 0.1)
    so_far = Purged() if todo == "purge" else Moved()
    with trio.move_on_after(after):
        await TODO[todo](queue, dead, so_far)
    assert len(dead.visible()) == len(dead.bodies) == 40 - so_far.count
    if isinstance(so_far, Purged):
        assert so_far.unconfirmed == []
    else:
        assert len(so_far.twice) <= 1  # the one whose send was cut off


async def test_a_release_that_fails_is_tried_again(autojump_clock) -> None:
    _, dead = await pair(25)
    dead.faults = [Fault("error", "change_visibility", nth=1), Fault("error", "change_visibility", nth=4)]
    assert len(await look(dead, 25)) == 25
    assert len(dead.visible()) == 25


@pytest.mark.parametrize("todo", TODO)
async def test_a_receive_that_fails_gives_back_what_the_others_brought(autojump_clock, todo: str) -> None:
    queue, dead = await pair(40)
    dead.faults = [Fault("error", "receive", nth=3)]
    with pytest.raises(QueueError):
        await TODO[todo](queue, dead, Purged() if todo == "purge" else Moved())
    assert len(dead.visible()) == len(dead.bodies)


# -- the commands, against moto --


@pytest.fixture
def surroundings(svc_stack: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    ours = {field.upper() for field in Settings.model_fields}
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("XDG_")}
    return {**kept, **svc_stack, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "NO_COLOR": "1"}


async def fill(environ: Mapping[str, str], count: int) -> None:
    async with sqs.opened_with_dead_letters(load(environ)) as (_, dead, _):
        for number in range(count):
            await dead.send(f"letter {number}\u202e", attributes={REJECT_REASON: f"reason {number}", "kept": "yes"})


async def svc(*arguments: str, environ: Mapping[str, str]) -> tuple[int, str, str]:
    with trio.fail_after(40):
        ended = await preloaded.run(*arguments, env=environ)
    out, err = ended.stdout.decode(), ended.stderr.decode()
    assert "Traceback" not in out + err, err
    return ended.returncode, out, err


async def test_the_commands(surroundings: dict[str, str]) -> None:
    await fill(surroundings, 12)
    code, out, err = await svc("dlq", "list", environ=surroundings)
    assert (code, err) == (0, "")
    *letters, summary = out.splitlines()
    assert len(letters) == 12
    assert "about 12 messages, 0 more hidden; 12 shown" in summary
    assert all("rejected: reason " in letter and "letter " in letter for letter in letters)
    assert "\u202e" not in out

    code, out, _ = await svc("dlq", "list", "--max", "3", environ=surroundings)
    assert (code, len(out.splitlines())) == (0, 4)

    code, out, err = await svc("dlq", "redrive", "--max", "5", environ=surroundings)
    assert (code, err) == (0, "")
    assert out.endswith("5 of about 12 messages moved back\n")
    code, out, _ = await svc("dlq", "redrive", environ=surroundings)
    assert out.endswith("7 of about 7 messages moved back\n")
    code, out, _ = await svc("dlq", "list", environ=surroundings)
    assert (code, out.splitlines()[-1].split("; ")[1]) == (0, "nothing to show")

    async with sqs.opened(load(surroundings), polls=1) as queue:
        back: list[Received] = []
        while batch := await queue.receive(limit=10, wait=0, visibility=60):
            back += batch
    assert len(back) == 12
    assert all(dict(delivery.message.attributes) == {"kept": "yes"} for delivery in back)


async def test_the_queue_names_its_dead_letters(surroundings: dict[str, str]) -> None:
    await fill(surroundings, 2)
    async with sqs.opened(load(surroundings), polls=1) as queue:
        found = await queue.dead_letter_queue()
    assert found is not None
    assert found.url.endswith(surroundings["SQS_DLQ_NAME"])
    assert found.arn.endswith(surroundings["SQS_DLQ_NAME"])
    assert found.attributes["ApproximateNumberOfMessages"] == "2"


async def test_without_dead_letters_it_is_said(surroundings: dict[str, str]) -> None:
    bare = {**surroundings, "SQS_QUEUE_URL": surroundings["SQS_QUEUE_URL"] + "-bare"}
    bare.pop("SQS_DLQ_NAME")
    await creation.create(load(bare))
    async with sqs.opened(load(bare), polls=1) as queue:
        assert await queue.dead_letter_queue() is None
    code, _, err = await svc("dlq", "list", environ=bare)
    assert code == 1
    assert "has no dead-letter queue" in err
    code, _, err = await svc("dlq", "list", environ={**bare, "SQS_QUEUE_URL": bare["SQS_QUEUE_URL"] + "-no"})
    assert code == 1
    assert "does not exist" in err or "no such queue" in err.lower()


async def test_bad_arguments_and_settings_end_with_2(surroundings: dict[str, str]) -> None:
    for arguments in (("dlq", "list", "--max", "0"), ("dlq", "redrive", "--max", "none"), ("dlq", "empty")):
        assert (await svc(*arguments, environ=surroundings))[0] == 2
    assert (await svc("dlq", "list", environ={**surroundings, "SQS_QUEUE_URL": "no queue"}))[0] == 2


async def test_it_finds_the_running_svc_dev(surroundings: dict[str, str]) -> None:
    await fill(surroundings, 1)
    bare = {name: value for name, value in surroundings.items() if not name.startswith(("SQS_", "AWS_", "ETCD_"))}
    with announced(
        etcd_endpoints="127.0.0.1:1",
        maintenance_key="/m",
        http_url="http://127.0.0.1:1",
        sqs_url=surroundings["AWS_ENDPOINT"],
        queue_url=surroundings["SQS_QUEUE_URL"],
        environ=bare,
    ):
        code, out, err = await svc("dlq", "list", environ=bare)
    assert code == 0
    assert "svc dev of process" in err
    assert "letter 0" in out


async def test_an_interrupted_redrive_loses_nothing(surroundings: dict[str, str]) -> None:
    await fill(surroundings, 60)
    process = preloaded.popen(["dlq", "redrive"], env=surroundings, stdout=DEVNULL, stderr=DEVNULL)
    async with sqs.opened_with_dead_letters(load(surroundings)) as (queue, dead, _):
        with trio.fail_after(30):
            while not int((await queue.attributes())["ApproximateNumberOfMessages"]):  # until it has begun
                await trio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            code = await preloaded.exited(process)
        there, back = await depth(dead), await depth(queue)
    assert there.visible + back.visible == 60
    assert there.hidden == back.hidden == 0
    assert code == (1 if there.visible else 0)
