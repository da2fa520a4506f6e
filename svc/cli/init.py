"""`svc init`: creates the queue, its dead-letter queue and redrive policy, where they are absent."""

import sys
from functools import partial

import click
import trio

from svc.cli.commands import fail, first, settings_of
from svc.cli.progress import Progress


@click.command()
@click.option("--messages", type=click.IntRange(0, 10_000), default=0, help="Send so many first messages.")
def init(messages: int) -> None:
    """Create the queue, and with SQS_DLQ_NAME its dead-letter queue and redrive policy, where they are absent."""
    settings = settings_of()
    from svc.consumer.queue import QueueError
    from svc.sqs import creation

    try:
        with Progress(sys.stderr).step("setting the queue up") as tell:
            on_sent = lambda count: tell(f"{count}/{messages} messages sent")  # noqa: E731
            created = trio.run(partial(creation.create, settings, messages=messages, on_sent=on_sent))
    except* QueueError as group:
        fail(str(first(group)))
    click.echo(f"queue {created.queue_url}: {'created' if created.queue_is_new else 'was there'}")
    if created.dead_letter_url is not None:
        click.echo(
            f"dead-letter queue {created.dead_letter_url}: {'created' if created.dead_letter_is_new else 'was there'}, "
            f"redrive policy {created.redrive}"
        )
    if messages:
        click.echo(f"sent {len(created.sent)} messages")
