"""The command line: arguments → settings → logging → `trio.run`, and exit codes. Nothing is decided or built here."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import click
import structlog
import trio

from svc import __version__
from svc.progress import Progress
from svc.settings import BadSettings, Settings, load, masked, seconds

log = structlog.get_logger("svc")

FAILED, UNUSABLE = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="svc")
def cli() -> None:
    """An SQS consumer service that can be stopped safely. Settings come from environment variables; `svc config` shows them."""


@cli.command()
def run() -> None:
    """Run the service against the queue and the etcd that the environment names."""
    settings = _settings()
    processor = _processor(settings)  # the faults first: what follows takes a second to import
    from svc import service

    _end(partial(service.run, settings, processor))


@cli.command()
def config() -> None:
    """Print the effective settings, secrets masked."""
    for variable, value in masked(_settings()).items():
        click.echo(f"{variable}={value}")


@cli.command()
@click.option("--messages", type=click.IntRange(0, 10_000), default=0, help="Send so many first messages.")
def init(messages: int) -> None:
    """Create the queue, and with SQS_DLQ_NAME its dead-letter queue and redrive policy, where they are absent."""
    settings = _settings()
    from svc import sqs
    from svc.queue import QueueError

    try:
        with Progress(sys.stderr).step("setting the queue up") as tell:
            on_sent = lambda count: tell(f"{count}/{messages} messages sent")  # noqa: E731
            created = trio.run(partial(sqs.create, settings, messages=messages, on_sent=on_sent))
    except* QueueError as group:
        _fail(str(_first(group)))
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
    processor = _processor(_settings())  # the faults first: the stack takes a second to start
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
    from svc import devstack, service, sqs

    progress = Progress(sys.stderr)
    async with contextlib.AsyncExitStack() as held:
        with progress.step("starting a local SQS and a local etcd"):
            stack = await held.enter_async_context(devstack.stack())
        # AWS's credentials are found in the process's environment, by botocore.
        os.environ.update(stack.environ())
        settings = _settings(
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
                    devstack.announced(
                        etcd_endpoints=stack.etcd.endpoint, maintenance_key=settings.maintenance_key, http_url=url
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


@cli.group()
def maintenance() -> None:
    """Set or read the maintenance key in etcd."""


@maintenance.command("on")
@click.option("--reason", help="Shown in /health and in the 503 answers.")
@click.option("--by", help="Who asks for it.")
@click.option("--for", "duration", help="How long, such as 30m; after that it ends by itself.")
def switch_on(reason: str | None, by: str | None, duration: str | None) -> None:
    """Stop taking messages, finish those in flight."""
    told: dict[str, object] = {name: value for name, value in (("reason", reason), ("by", by)) if value}
    ttl: float | None = None
    if duration is not None:
        ttl = _duration(duration)
        told["until"] = (
            (datetime.now(UTC) + timedelta(seconds=ttl)).isoformat(timespec="seconds").replace("+00:00", "Z")
        )
    value = json.dumps({"enabled": True, **told}) if told else "true"
    _write(value, ttl)


@maintenance.command("off")
def switch_off() -> None:
    """Take messages again."""
    _write("false", None)


@maintenance.command()
def status() -> None:
    """Print what the key says."""
    settings = _maintenance_settings()
    from svc import etcd
    from svc.maintenance import parse_switch

    state = _ask_etcd(partial(etcd.read, settings, settings.maintenance_key))
    try:
        switch = parse_switch(state.value)
    except ValueError as error:
        click.echo(f"maintenance: unknown, the services keep the state they have ({error})")
        return
    lines = [f"maintenance: {'on' if switch.on else 'off'}"]
    lines += [f"{name}: {told}" for name, told in (("reason", switch.reason), ("by", switch.by)) if told]
    if state.expires_in is not None:
        lines.append(f"ends by itself in: {state.expires_in:.0f} s")
    elif switch.until:
        lines.append(f"until: {switch.until}")
    lines.append(
        f"key: {settings.maintenance_key} ({'not set' if state.value is None else f'revision {state.mod_revision}'})"
    )
    click.echo("\n".join(lines))


# -- what the commands share --


def _settings(more: dict[str, str] | None = None) -> Settings:
    """The settings of the environment, with logging set up by them; ends the process when they are unusable."""
    from svc import logs

    try:
        settings = load({**os.environ, **(more or {})})
    except BadSettings as bad:
        _unusable(bad.faults)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def _maintenance_settings() -> Settings:
    """The settings, pointed at the running `svc dev` when the environment names no etcd."""
    if not os.environ.get("ETCD_ENDPOINTS"):
        from svc import devstack

        found = devstack.find_announced()
        if found is not None:
            click.echo(f"(the svc dev of process {found.pid}, {found.http_url})", err=True)
            return _settings({"ETCD_ENDPOINTS": found.etcd_endpoints, "MAINTENANCE_KEY": found.maintenance_key})
    return _settings()


def _processor(settings: Settings) -> Callable[..., object]:
    from svc import processors

    # As `python -m` does: a processor beside the working directory is found by the installed command too.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return processors.check(processors.find(settings.message_processor), settings.message_processor)
    except processors.UnusableProcessor as error:
        _unusable([f"MESSAGE_PROCESSOR holds {settings.message_processor!r}: {error}"])


def _end(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run the service and end the process with its exit code."""
    from svc import devstack, processors, server
    from svc.queue import QueueError

    code = FAILED
    try:
        code = trio.run(main)
    except* processors.UnusableProcessor as group:
        _unusable([f"MESSAGE_PROCESSOR: {_first(group)}"])
    except* (QueueError, devstack.DevstackError, server.CannotListen) as group:
        _fail(str(_first(group)))
    except* Exception as group:
        log.critical("the service has failed", exc_info=group)
    sys.exit(code)


def _write(value: str, ttl: float | None) -> None:
    settings = _maintenance_settings()
    from svc import etcd

    revision = _ask_etcd(partial(etcd.write, settings, settings.maintenance_key, value.encode(), ttl=ttl))
    state = "off" if value == "false" else "on"
    until = f", for {ttl:g} s" if ttl is not None else ""
    click.echo(f"maintenance is {state}{until} (key {settings.maintenance_key}, revision {revision})")


def _ask_etcd(ask: Callable[[], Awaitable[Any]]) -> Any:
    from svc.etcd import EtcdError

    try:
        return trio.run(ask)
    except* EtcdError as group:
        _fail(str(_first(group)))


def _duration(text: str) -> float:
    try:
        found = seconds(text)
    except ValueError:
        found = None
    if not isinstance(found, float) or not 1 <= found <= 30 * 86_400:
        raise click.BadParameter(f"{text!r} is not a duration from 1s to 720h, such as 30m", param_hint="--for")
    return found


def _free_port(wanted: int) -> str:
    """`wanted` if it can be had, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return "0"
    return str(wanted)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


def _unusable(faults: list[str]) -> NoReturn:
    for fault in faults:
        click.echo(f"svc: {fault}", err=True)
    sys.exit(UNUSABLE)


def _fail(message: str) -> NoReturn:
    click.echo(f"svc: {message}", err=True)
    sys.exit(FAILED)


def main() -> None:
    """Run the command that `sys.argv` names."""
    try:
        cli(prog_name="svc")
    except KeyboardInterrupt:
        sys.exit(130)
