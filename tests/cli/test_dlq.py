"""`svc dlq` with a choice, against moto; SQS's own move task against a small server, because moto has none."""

import json
import re
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from subprocess import DEVNULL

import pytest
import trio
from click.testing import CliRunner

from svc.cli.main import cli
from svc.settings import load
from svc.sqs import queue as sqs
from svc.sqs.wire import REJECT_REASON
from tests import preloaded
from tests.sqs.small_server import Server, answer, error
from tests.sqs.test_dead_letters import surroundings, svc

__all__ = ["surroundings"]  # a fixture

ODD = "two\nlines\x7f\u202e and \U0001f600 \x85"


async def fill(environ: Mapping[str, str]) -> None:
    async with sqs.opened_with_dead_letters(load(environ)) as (_, dead, _):
        for number in range(12):
            reason = "read timeout" if number % 3 == 0 else "no such article"
            await dead.send(f"letter {number}", attributes={REJECT_REASON: reason, "number": number})
        await dead.send(ODD, attributes={"odd": "a\u202eb\n"})


async def depths(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """Of the queue, of the dead-letter queue, and what is hidden in either."""
    async with sqs.opened_with_dead_letters(load(environ)) as (queue, dead, _):
        both = [await one.attributes() for one in (queue, dead)]
    counts = [int(one["ApproximateNumberOfMessages"]) for one in both]
    return counts[0], counts[1], sum(int(one["ApproximateNumberOfMessagesNotVisible"]) for one in both)


async def test_a_choice(surroundings: dict[str, str]) -> None:
    await fill(surroundings)
    code, out, err = await svc("dlq", "list", "--json", "--where", "reason~TIMEOUT", environ=surroundings)
    letters = [json.loads(line) for line in out.splitlines()]
    assert (code, [one["reason"] for one in letters]) == (0, ["read timeout"] * 4)
    assert letters[0]["attributes"]["number"]["type"] == "Number"
    assert "4 shown, of 13 looked at" in err

    chosen = ["--id", letters[0]["id"], "--id", letters[1]["id"]]
    code, out, err = await svc("dlq", "redrive", *chosen, environ=surroundings)
    assert (code, err) == (0, "")
    assert re.search(r": 2 of about 13 messages moved back, 13 looked at\n", out)

    where = ["--where", "reason~article", "--where", "attribute:number>5"]  # 7, 8, 10, 11
    code, out, err = await svc("dlq", "purge", "--yes", *where, environ=surroundings)
    assert (code, err) == (0, "")
    assert re.search(r": 4 of about 11 messages deleted, 11 looked at\n", out)
    assert await depths(surroundings) == (2, 7, 0)


async def test_a_copy_is_found_by_the_id_that_the_log_names(surroundings: dict[str, str]) -> None:
    async with sqs.opened_with_dead_letters(load(surroundings)) as (queue, _, _):
        sent = [await queue.send(f"letter {number}") for number in range(3)]
        while not (held := await queue.receive(limit=10, wait=1, visibility=60)) or len(held) < 3:
            await queue.change_visibility({one.receipt: 0 for one in held})
        for one in held:
            assert await queue.dead_letter(one, "no good")
        await queue.delete([one.receipt for one in held])
    code, out, _ = await svc("dlq", "list", environ=surroundings)
    assert (code, all(f"copy of {one}" in out for one in sent)) == (0, True)
    code, out, _ = await svc("dlq", "show", "--json", sent[1], environ=surroundings)
    shown = json.loads(out)
    assert (code, shown["body"], shown["original_id"]) == (0, "letter 1", sent[1])
    assert shown["id"] not in sent
    code, out, _ = await svc("dlq", "purge", "--yes", "--id", sent[0], environ=surroundings)
    assert (code, ": 1 of about 3 messages deleted" in out) == (0, True)
    code, out, _ = await svc("dlq", "redrive", "--id", sent[1], "--id", sent[2], environ=surroundings)
    assert (code, ": 2 of about 2 messages moved back" in out) == (0, True)
    async with sqs.opened_with_dead_letters(load(surroundings)) as (queue, _, _):
        back = await queue.receive(limit=10, wait=1, visibility=60)
    assert all(one.message.attributes == {} for one in back)
    assert {one.message.body for one in back} <= {"letter 1", "letter 2"}


@pytest.mark.slow
async def test_the_other_ways_to_say_it(surroundings: dict[str, str]) -> None:
    await fill(surroundings)
    code, out, err = await svc("dlq", "list", "--older-than", "1h", environ=surroundings)
    assert (code, out.count("\n"), "nothing to show, of 13 looked at" in out) == (0, 1, True)
    code, out, err = await svc("dlq", "list", "--json", "--where", "attribute:odd~a", environ=surroundings)
    [odd] = [json.loads(line) for line in out.splitlines()]
    assert (odd["body"], odd["attributes"]["odd"]["value"]) == (ODD, "a\u202eb\n")
    code, out, err = await svc("dlq", "show", odd["id"], environ=surroundings)
    assert (code, err) == (0, "")
    assert out.endswith("attribute odd (String): a\\u202eb\\n\n\ntwo\nlines\\x7f\\u202e and \U0001f600 \\x85\n")
    code, out, _ = await svc("dlq", "show", "--json", odd["id"], environ=surroundings)
    assert json.loads(out)["body"] == ODD
    code, out, err = await svc("dlq", "show", "nobody", environ=surroundings)
    assert (code, out) == (1, "")
    assert "nobody is not among the 13 that were looked at" in err
    code, out, _ = await svc("dlq", "purge", "--all", "--yes", environ=surroundings)
    assert (code, "13 of about 13 messages deleted\n" in out) == (0, True)
    assert await depths(surroundings) == (0, 0, 0)


@pytest.mark.slow
async def test_a_purge_asks(surroundings: dict[str, str], log_level_kept: None) -> None:
    await fill(surroundings)
    code, _, err = await svc("dlq", "purge", "--all", environ=surroundings)  # its standard input is at its end
    assert (code, "--yes deletes without asking" in err) == (2, True)
    assert await depths(surroundings) == (0, 13, 0)
    ask = partial(command, "purge", "--all", **surroundings)
    code, said = await trio.to_thread.run_sync(lambda: ask(said="n\n"))
    assert (code, "Delete all of them for good?" in said, "nothing was deleted" in said) == (1, True, True)
    assert await depths(surroundings) == (0, 13, 0)


@pytest.mark.slow
async def test_what_is_not_looked_at_is_said(surroundings: dict[str, str]) -> None:
    await fill(surroundings)
    code, out, err = await svc("dlq", "list", "--where", "body~x", "--scan", "5", environ=surroundings)
    assert (code, "of 5 looked at" in out) == (0, True)
    assert "only 5 were looked at" in err
    code, out, err = await svc("dlq", "purge", "--yes", "--where", "body=x", "--scan", "5", environ=surroundings)
    assert (code, "0 of about 13 messages deleted, 5 looked at" in out) == (1, True)
    assert await depths(surroundings) == (0, 13, 0)


@pytest.mark.slow
async def test_an_interrupted_look_gives_everything_back(surroundings: dict[str, str]) -> None:
    await fill(surroundings)
    process = preloaded.popen(
        ["dlq", "list", "--where", "body=x"], env=surroundings, stdout=DEVNULL, stderr=DEVNULL
    )  # fmt: skip
    with trio.fail_after(30):
        while not (await depths(surroundings))[2]:  # until it holds some
            await trio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert await preloaded.exited(process) == 1
    assert await depths(surroundings) == (0, 13, 0)


def command(*arguments: str, said: str = "", **environ: str) -> tuple[int, str]:
    ended = CliRunner().invoke(cli, ["dlq", *arguments], input=said, env={"AWS_CONFIG_FILE": "/nowhere", **environ})
    return ended.exit_code, ended.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["list", "--where", "resaon~x"], "resaon~x\n  ^"),
        (["redrive", "--where", "age > 1 day"], "  age > 1 day\n        ^"),
        (["list", "--older-than", "a day"], "not a duration"),
        (["purge"], "say which"),
        (["purge", "--yes"], "say which"),
        (["purge", "--all", "--id", "x"], "--all goes with neither"),
        (["redrive", "--with-aws", "--id", "x"], "--with-aws moves everything"),
        (["redrive", "--with-aws", "--max", "3"], "--with-aws moves everything"),
        (["redrive", "--per-second", "3"], "--per-second goes with --with-aws"),
        (["list", "--scan", "0"], "--scan"),
        (["show"], "ID"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: list[str], why: str, log_level_kept: None) -> None:
    code, said = command(*arguments)
    assert code == 2
    assert why in said


# -- what a small server answers --


class Tasks:
    """SQS with one queue, its dead-letter queue, and move tasks."""

    def __init__(self, *steps: dict[str, object], running: bool = False) -> None:
        self.steps = list(steps)
        self.running = running
        self.cancelled = trio.Event()
        self.server = Server(self._respond)

    def _respond(self, operation: str, nth: int) -> bytes:
        match operation:
            case "GetQueueAttributes":
                policy = json.dumps({"deadLetterTargetArn": "arn:aws:sqs:us-east-1:1:dead", "maxReceiveCount": 3})
                held = {"QueueArn": "arn:aws:sqs:us-east-1:1:q", "RedrivePolicy": policy}
                return answer({"Attributes": {**held, "ApproximateNumberOfMessages": "7"}})
            case "GetQueueUrl":
                return answer({"QueueUrl": "http://127.0.0.1/1/dead"})
            case "StartMessageMoveTask" if not self.running:
                return answer({"TaskHandle": "handle"})
            case "StartMessageMoveTask":
                return error(
                    "UnsupportedOperation", text="There is already a task running. Only one active task is allowed"
                )
            case "CancelMessageMoveTask":
                self.cancelled.set()
                return answer({"ApproximateNumberOfMessagesMoved": 3})
            case "ListMessageMoveTasks" if self.cancelled.is_set():
                return answer({"Results": [task("CANCELLED", 3)]})
            case "ListMessageMoveTasks":
                step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
                old = {**task("FAILED", 0), "StartedTimestamp": 5}
                return answer({"Results": [old, step]}) if step else error("InternalError", 500)
        raise AssertionError(operation)


def task(status: str, moved: int, **more: object) -> dict[str, object]:
    return {
        "Status": status, "ApproximateNumberOfMessagesMoved": moved, "ApproximateNumberOfMessagesToMove": 7,
        "StartedTimestamp": 1_700_000_000_000, "SourceArn": "arn:aws:sqs:us-east-1:1:dead", **more,
    }  # fmt: skip


async def with_aws(tasks: Tasks, tmp_path: Path, *, interrupt: bool = False) -> tuple[int, str, str]:
    async with trio.open_nursery() as nursery:
        url = await tasks.server.start(nursery)
        environ = {
            "AWS_ENDPOINT": url, "SQS_QUEUE_URL": f"{url}/1/q", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
            "HOME": str(tmp_path), "NO_COLOR": "1",
        }  # fmt: skip
        out, err = tmp_path / "out", tmp_path / "err"
        with trio.fail_after(40), out.open("wb") as told, err.open("wb") as complained:
            process = preloaded.popen(["dlq", "redrive", "--with-aws"], env=environ, stdout=told, stderr=complained)
            if interrupt:
                while "ListMessageMoveTasks" not in tasks.server.requests:
                    await trio.sleep(0.01)
                process.send_signal(signal.SIGINT)
            code = await preloaded.exited(process)
        nursery.cancel_scope.cancel()
    return code, out.read_text(), err.read_text()


async def test_aws_moves_everything(tmp_path: Path) -> None:
    tasks = Tasks(task("RUNNING", 2), task("COMPLETED", 7))
    code, out, err = await with_aws(tasks, tmp_path)
    assert (code, err) == (0, "")
    assert out == "arn:aws:sqs:us-east-1:1:dead: 7 of about 7 messages moved back by SQS (completed)\n"
    assert tasks.server.requests["StartMessageMoveTask"] == 1


@pytest.mark.slow
async def test_ctrl_c_cancels_the_task(tmp_path: Path) -> None:
    tasks = Tasks(task("RUNNING", 2), {}, task("RUNNING", 2))
    code, out, err = await with_aws(tasks, tmp_path, interrupt=True)
    assert tasks.cancelled.is_set()
    assert (code, "3 of about 7" in out, "(cancelled)" in out) == (1, True, True)
    assert "stopped; what was not moved is where it was" in err


@pytest.mark.slow
async def test_a_task_that_fails_and_one_that_cannot_begin(tmp_path: Path) -> None:
    failed = Tasks(task("FAILED", 1, FailureReason="AWS.SimpleQueueService.\x1b[31mNoSuchQueue"))
    code, out, err = await with_aws(failed, tmp_path)
    assert (code, "1 of about 7" in out) == (1, True)
    assert err == "svc: SQS ended the move task: AWS.SimpleQueueService.\\x1b[31mNoSuchQueue\n"
    code, out, err = await with_aws(Tasks({}, running=True), tmp_path)
    assert (code, out) == (1, "")
    assert "There is already a task running" in err
