"""`svc dlq redrive --with-aws`: SQS's own move task, started, watched, and cancelled by Ctrl-C."""

import signal
import sys
from typing import TYPE_CHECKING

import click
import trio

from svc.cli.commands import FAILED, complain
from svc.cli.progress import Progress
from svc.settings import Settings

if TYPE_CHECKING:
    from svc.sqs.move_tasks import MoveTask, MoveTasks

EVERY = 2.0
"""Seconds between two questions how far it is."""

PATIENCE = 5
"""Questions in a row without an answer, before nobody watches any more."""


async def follow(settings: Settings, per_second: int | None) -> int:
    """Start one and watch it to its end; returns the exit code. Raises `QueueError` when it cannot be started, or is not heard of
    any more."""
    from svc.sqs import queue as sqs

    cancelled = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with sqs.opened_move_tasks(settings) as (tasks, arn):
            handle = await tasks.start(per_second)
            async with trio.open_nursery() as nursery:

                async def cancel_on_signal() -> None:
                    nonlocal cancelled
                    from svc.consumer.queue import QueueError

                    async for _ in signals:
                        cancelled = True
                        try:
                            await tasks.stop(handle)
                        except QueueError as error:  # ended meanwhile, or out of reach: again with the next Ctrl-C
                            complain(str(error))

                nursery.start_soon(cancel_on_signal)
                task = await _watch(tasks)
                nursery.cancel_scope.cancel(reason="done")
    total = "" if task.total is None else f" of about {task.total}"
    click.echo(f"{arn}: {task.moved}{total} messages moved back by SQS ({task.status.lower()})")
    if task.failure is not None:
        complain(f"SQS ended the move task: {task.failure}")
    if cancelled:
        complain("stopped; what was not moved is where it was")
    return 0 if task.status == "COMPLETED" and not cancelled else FAILED


async def _watch(tasks: "MoveTasks") -> "MoveTask":
    from svc.consumer.queue import QueueError, QueueUnavailable

    silent = 0
    with Progress(sys.stderr).count("moving back, by SQS") as tell:
        while True:
            try:
                task = await tasks.last()
                silent = 0
            except QueueError:
                silent += 1
                if silent == PATIENCE:
                    raise
                task = None
            if task is not None:
                tell(task.moved)
                if not task.is_running:
                    return task
            elif silent == 0:
                raise QueueUnavailable("SQS does not list the move task that it has started; it may go on all the same")
            await trio.sleep(EVERY)
