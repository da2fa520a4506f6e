"""`svc dlq`: arguments → a look into the dead-letter queue, or its messages moved back → exit code. Nothing is decided here."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import trio

from svc.cli.commands import fail, first, settings_of
from svc.cli.progress import Progress
from svc.settings import Settings

if TYPE_CHECKING:
    from svc.consumer.queue import Received
    from svc.sqs.dead_letters import Moved

SHOWN = 60
"""Characters of a body that are shown."""


@click.group()
def dlq() -> None:
    """Look into the dead-letter queue, or move its messages back."""


@dlq.command("list")
@click.option("--max", "most", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many at most.")
def list_(most: int) -> None:
    """Show messages of the dead-letter queue. Each look counts as one receive of what it shows."""
    _ask(partial(_list, _settings(), most))


@dlq.command()
@click.option(
    "--max", "most", type=click.IntRange(1), help="So many at most; without it, as many as there are at the start."
)
def redrive(most: int | None) -> None:
    """Move messages of the dead-letter queue back to the queue, without their RejectReason."""
    if _ask(partial(_redrive, _settings(), most)):
        sys.exit(1)


async def _list(settings: Settings, most: int) -> None:
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs

    async with sqs.opened_with_dead_letters(settings) as (_, dead, url):
        found = await dead_letters.look(dead, most)
        there = await dead_letters.depth(dead)
    for delivery in found:
        click.echo(_line(delivery))
    shown = f"{len(found)} shown" if found else "nothing to show"
    click.echo(f"{url}: about {there.visible} messages, {there.hidden} more hidden; {shown}")


def _line(delivery: "Received") -> str:
    from svc.sqs.wire import REJECT_REASON

    message = delivery.message
    sent = "-" if message.sent_at is None else message.sent_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    reason = message.attributes.get(REJECT_REASON)
    told = f"  rejected: {_short(str(reason))}" if reason is not None else ""
    return f"{message.id}  sent {sent}  receives {message.receive_count}{told}  {_short(message.body)}"


def _short(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:SHOWN])
    return shown + ("…" if len(text) > SHOWN else "")


async def _redrive(settings: Settings, most: int | None) -> bool:
    """True when it was ended before it was done."""
    from svc.consumer.queue import QueueError
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs
    from svc.sqs.dead_letters import Moved

    moved, failure = Moved(), None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with sqs.opened_with_dead_letters(settings) as (queue, dead, url), trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    moved.stop = True

            nursery.start_soon(stop_on_signal)
            there = await dead_letters.depth(dead)
            limit = there.visible if most is None else most
            with Progress(sys.stderr).count("moving back", total=min(limit, max(there.visible, 1))) as tell:
                try:
                    await dead_letters.redrive(dead, queue, limit, moved, tell)
                except QueueError as error:
                    failure = error
            nursery.cancel_scope.cancel(reason="done")
    _tell(moved, there.visible, url)
    if failure is not None:
        click.echo(f"svc: {failure}", err=True)
    return failure is not None or moved.stop


def _tell(moved: "Moved", there: int, url: str) -> None:
    click.echo(f"{url}: {moved.count} of about {there} messages moved back")
    if moved.twice:
        told = ", ".join(moved.twice)
        click.echo(
            f"svc: sent, but perhaps not deleted from the dead-letter queue, so perhaps in both: {told}", err=True
        )
    if moved.stop:
        click.echo("svc: stopped; what was not moved is where it was", err=True)


def _settings() -> Settings:
    """The settings, pointed at the running `svc dev` when the environment names no queue."""
    if not os.environ.get("SQS_QUEUE_URL"):
        from svc.devstack import announcement

        found = announcement.find_announced()
        if found is not None and found.queue_url:
            click.echo(f"(the svc dev of process {found.pid}, {found.http_url})", err=True)
            # AWS's credentials are found in the process's environment, by botocore.
            os.environ.update(found.queue_environ())
    return settings_of()


def _ask(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run it, and end the process with a sentence when it cannot be done."""
    from svc.consumer.queue import QueueError

    try:
        return trio.run(ask)
    except* QueueError as group:
        fail(str(first(group)))
    except* KeyboardInterrupt:
        sys.exit(130)
