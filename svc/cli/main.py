"""The command line: arguments → settings → logging → `trio.run`, and exit codes. Nothing is decided or built here."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import click
import structlog
import trio

from svc import __version__
from svc.cli.commands import FAILED, fail, first, settings_of, unusable
from svc.cli.dlq import dlq
from svc.cli.maintenance import maintenance
from svc.cli.progress import Progress
from svc.settings import Settings, masked

log = structlog.get_logger("svc")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="svc")
def cli() -> None:
    """An SQS consumer service that can be stopped safely. Settings come from environment variables; `svc config` shows them."""


@cli.command()
def run() -> None:
    """Run the service against the queue and the etcd that the environment names."""
    settings = settings_of()
    processor = _processor(settings)  # the faults first: what follows takes a second to import
    from svc import service

    _end(partial(service.run, settings, processor))


@cli.command()
def config() -> None:
    """Print the effective settings, secrets masked."""
    for variable, value in masked(settings_of()).items():
        click.echo(f"{variable}={value}")


@cli.command()
@click.option("--messages", type=click.IntRange(0, 10_000), default=0, help="Send so many first messages.")
def init(messages: int) -> None:
    """Create the queue, and with SQS_DLQ_NAME its dead-letter queue and redrive policy, where they are absent."""
    settings = settings_of()
    from svc.consumer.queue import QueueError
    from svc.sqs import queue as sqs

    try:
        with Progress(sys.stderr).step("setting the queue up") as tell:
            on_sent = lambda count: tell(f"{count}/{messages} messages sent")  # noqa: E731
            created = trio.run(partial(sqs.create, settings, messages=messages, on_sent=on_sent))
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


@cli.command()
def dev() -> None:
    """Run the service on an embedded stack: a local SQS (moto server) and a real local etcd. Ctrl-C stops everything."""
    processor = _processor(settings_of())  # the faults first: the stack takes a second to start
    _end(partial(_dev, processor))


async def _dev(processor: Callable[..., object]) -> int:
    """Until `service.run` opens a receiver of its own, a signal ends the start, and with it the stack."""
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel(reason="told to stop while starting")

            nursery.start_soon(end_on_signal)
            code = await _dev_on_a_stack(processor)
            nursery.cancel_scope.cancel(reason="the service has ended")
    return code


async def _dev_on_a_stack(processor: Callable[..., object]) -> int:
    from svc import service
    from svc.devstack import announcement as devstack_announced
    from svc.devstack import stack as devstack
    from svc.sqs import queue as sqs

    progress = Progress(sys.stderr)
    async with contextlib.AsyncExitStack() as held:
        with progress.step("starting a local SQS and a local etcd"):
            stack = await held.enter_async_context(devstack.stack())
        # AWS's credentials are found in the process's environment, by botocore.
        os.environ.update(stack.environ())
        settings = settings_of(
            {
                "HTTP_PORT": os.environ.get("HTTP_PORT") or _free_port(8082),
                # A receive on the wire is waited for: here somebody sits and waits for Ctrl-C.
                "SQS_WAIT_TIME_SECONDS": os.environ.get("SQS_WAIT_TIME_SECONDS") or "2",
            }
        )
        with progress.step("creating the queue, with its first messages"):
            await sqs.create(settings, messages=FIRST_MESSAGES)
        with contextlib.ExitStack() as announcement:

            def ready(url: str) -> None:
                announcement.enter_context(
                    devstack_announced.announced(
                        etcd_endpoints=stack.etcd.endpoint,
                        maintenance_key=settings.maintenance_key,
                        http_url=url,
                        sqs_url=stack.moto.url,
                        queue_url=settings.sqs_queue_url,
                    )
                )
                click.echo(_DEV_BLOCK.format(url=url, sqs=stack.moto.url, etcd=stack.etcd.endpoint), err=True)

            return await service.run(settings, processor, on_ready=ready)


FIRST_MESSAGES = 3
"""What `svc dev` sends for a start (SPEC)."""

_DEV_BLOCK = """
  svc runs on an embedded stack; Ctrl-C stops everything.

    API    {url}
    SQS    {sqs}  (moto)
    etcd   {etcd}

  Try, in another terminal of this folder:

    curl -s {url}/health
    curl -s -X POST {url}/messages/send -H 'Content-Type: application/json' -d '{{"message": "Hello from SQS!"}}'
    curl -s {url}/messages/stats
    .venv/bin/svc maintenance on
    .venv/bin/svc maintenance off
"""


cli.add_command(maintenance)
cli.add_command(dlq)


# -- the processor, and the end of the process --


def _processor(settings: Settings) -> Callable[..., object]:
    from svc import processors

    # As `python -m` does: a processor beside the working directory is found by the installed command too.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return processors.check(processors.find(settings.message_processor), settings.message_processor)
    except processors.UnusableProcessor as error:
        unusable([f"MESSAGE_PROCESSOR holds {settings.message_processor!r}: {error}"])


def _end(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run the service and end the process with its exit code."""
    from svc import processors
    from svc.api import server
    from svc.consumer.queue import QueueError
    from svc.devstack.child import DevstackError

    code = FAILED
    try:
        code = trio.run(main)
    except* processors.UnusableProcessor as group:
        unusable([f"MESSAGE_PROCESSOR: {first(group)}"])
    except* (QueueError, DevstackError, server.CannotListen) as group:
        fail(str(first(group)))
    except* Exception as group:
        log.critical("the service has failed", exc_info=group)
    sys.exit(code)


def _free_port(wanted: int) -> str:
    """`wanted` if it can be had, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return "0"
    return str(wanted)


def main() -> None:
    """Run the command that `sys.argv` names."""
    try:
        cli(prog_name="svc")
    except KeyboardInterrupt:
        sys.exit(130)
