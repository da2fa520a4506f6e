"""`svc dev`: the service on an embedded stack. Ctrl-C stops everything that it started."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import click
import trio

from svc import signals
from svc.cli.commands import settings_of, shell_prefix
from svc.cli.progress import Progress
from svc.cli.run import check_database, end, handlers_of, processor_of
from svc.settings import printable

FIRST_MESSAGES = 3
"""What `svc dev` sends for a start (SPEC)."""


@click.command()
@click.option(
    "--messages",
    type=click.IntRange(0, 10_000),
    default=FIRST_MESSAGES,
    show_default=True,
    help="Send so many first messages.",
)
@click.option(
    "--database",
    is_flag=True,
    help="With a local PostgreSQL. Each message is written into it, if MESSAGE_PROCESSOR does not say otherwise.",
)
def dev(messages: int, database: bool) -> None:
    """Run the service on an embedded stack: a local SQS (moto server) and a real local etcd. Ctrl-C stops everything."""
    if database:
        if os.environ.get("DATABASE_URL"):
            click.echo("svc: DATABASE_URL is set and not used: --database starts a PostgreSQL of its own", err=True)
        os.environ.update(
            {"DATABASE_URL": "postgresql://127.0.0.1", "DATABASE_PASSWORD": "", "DATABASE_PASSWORD_FILE": ""}
        )
        os.environ["MESSAGE_PROCESSOR"] = os.environ.get("MESSAGE_PROCESSOR") or _EXAMPLE
    # The faults first: the stack takes a second to start.
    settings = settings_of({**NOT_OURS, "SQS_QUEUE_URL": "", "AWS_ENDPOINT": "http://127.0.0.1"})
    check_database(settings)
    handlers = handlers_of(settings)
    processor = processor_of(settings)
    run = partial(_dev_on_a_stack, processor, handlers=handlers, messages=messages, database=database)
    end(partial(_dev, run))


async def _dev(run: Callable[[], Awaitable[int]]) -> int:
    """Until `service.run` opens a receiver of its own, a signal ends the start, and with it the stack."""
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                async for _ in received:
                    nursery.cancel_scope.cancel(reason="told to stop while starting")

            nursery.start_soon(end_on_signal)
            if signals.stop_asked():
                nursery.cancel_scope.cancel(reason="told to stop before the start")
            code = await run()
            nursery.cancel_scope.cancel(reason="the service has ended")
    return code


async def _dev_on_a_stack(
    processor: Callable[..., object], *, handlers: dict[str, Callable[..., object]], messages: int, database: bool
) -> int:
    from svc import service
    from svc.devstack import announcement as devstack_announced
    from svc.devstack import stack as devstack
    from svc.devstack.postgres import Postgres
    from svc.sqs import creation

    progress = Progress(sys.stderr)
    async with contextlib.AsyncExitStack() as held:
        with progress.step("starting a local SQS and a local etcd"):
            stack = await held.enter_async_context(devstack.stack())
        if database:
            with progress.step("starting a local PostgreSQL"):
                postgres = await held.enter_async_context(Postgres())
            os.environ["DATABASE_URL"] = postgres.url
        # AWS's credentials are found in the process's environment, by botocore.
        os.environ.update(stack.environ())
        settings = settings_of(
            {
                **NOT_OURS,
                "HTTP_PORT": os.environ.get("HTTP_PORT") or _free_port(8082),
                # A receive on the wire is waited for: here somebody sits and waits for Ctrl-C.
                "SQS_WAIT_TIME_SECONDS": os.environ.get("SQS_WAIT_TIME_SECONDS") or "2",
            }
        )
        with progress.step("creating the queue, with its first messages"):
            await creation.create(settings, messages=messages)
        if database:
            from svc.database import inbox

            await inbox.create_once(settings)
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
                click.echo(
                    told(settings.message_processor, url=url, sqs=stack.moto.url, etcd=stack.etcd.endpoint), err=True
                )
                if database:
                    block = _DATABASE_BLOCK if settings.message_processor == _EXAMPLE else _OWN_DATABASE_BLOCK
                    click.echo(block.format(url=os.environ["DATABASE_URL"]), err=True)

            return await service.run(settings, processor, handlers=handlers, on_ready=ready)


NOT_OURS = {"SQS_QUEUE": "", "SQS_QUEUE_OWNER": "", "SQS_ROLE_ARN": "", "SQS_ROLE_EXTERNAL_ID": ""}
"""What this shell says of another queue."""

_EXAMPLE = "svc.database.example:write_order"

_TAKE_ANY = ("svc.processors:simulated", _EXAMPLE)
"""Processors that take any body."""

_DEV_BLOCK = """
  svc runs on an embedded stack; Ctrl-C stops everything.

    API    {url}
    SQS    {sqs}  (moto)
    etcd   {etcd}

  Try, in another terminal of this folder{hint}:

    curl -s {url}/health
    curl -s -X POST {url}/messages/send -H 'Content-Type: application/json' -d '{{"message": {message}}}'
    curl -s {url}/messages/stats
    {bin}svc maintenance on
    {bin}svc maintenance off
"""


_DATABASE_BLOCK = """\
  PostgreSQL, in which each message is a row of the table orders:

    psql '{url}' -c 'SELECT * FROM orders'
"""

_OWN_DATABASE_BLOCK = """\
  PostgreSQL, empty but for the table svc_inbox (exactly_once):

    psql '{url}'
"""


def told(processor: str, *, url: str, sqs: str, etcd: str) -> str:
    """What is said when the service runs. A processor of the user's own takes no greeting, but most likely JSON."""
    hint, message = "", '"Hello from SQS!"'
    if processor not in _TAKE_ANY:
        hint = f' (in place of {{"id": 7}} a body that {printable(processor)} takes)'
        message = r'"{\"id\": 7}"'
    return _DEV_BLOCK.format(url=url, sqs=sqs, etcd=etcd, bin=shell_prefix(Path.cwd()), hint=hint, message=message)


def _free_port(wanted: int) -> str:
    """`wanted` if it can be had, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return "0"
    return str(wanted)
