"""`svc run`: the service against the queue and the etcd that the environment names. And what `svc dev` shares with it."""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import click
import structlog
import trio

from svc import signals
from svc.cli.commands import FAILED, fail, first, settings_of, unusable
from svc.settings import Settings, is_aws, misspelled

log = structlog.get_logger("svc")


@click.command()
def run() -> None:
    """Run the service against the queue and the etcd that the environment names."""
    gc.disable()  # what is loaded from here on stays
    settings = settings_of()
    refuse_the_simulated_one(settings)
    check_database(settings)
    handlers = handlers_of(settings)
    processor = processor_of(settings)  # the faults first: what follows takes a second to import
    for sentence in misspelled(os.environ, AWS_VARIABLES):
        log.warning(sentence)
    from svc import service

    # The collector need never look at what is there by now. It looks at the rest less often than it would by itself: nothing of
    # ours is a cycle, and it runs in the middle of the messages.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    gc.enable()
    end(partial(service.run, settings, processor, handlers=handlers))


YOUNG_OBJECTS = 20_000
"""How many more objects than before there may be until the garbage collector looks for cycles."""


AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL_CLOUDWATCH", "AWS_ENDPOINT_URL_STS",
)  # fmt: skip
"""Those of the AWS SDK in which a typing error hurts."""


def refuse_the_simulated_one(settings: Settings) -> None:
    """At AWS itself the default processor would delete messages that somebody needs."""
    if is_aws(settings.aws_endpoint) and "message_processor" not in settings.model_fields_set:
        unusable(
            [
                "MESSAGE_PROCESSOR is not set; against AWS itself it must be module:attribute of a processor. "
                f"{settings.message_processor}, on purpose, deletes every message after a pretence of work"
            ]
        )


def found_processor(settings: Settings) -> Callable[..., object]:
    """What `MESSAGE_PROCESSOR` names. Raises `UnusableProcessor`."""
    from svc import processors

    # As `python -m` does: a processor beside the working directory is found by the installed command too.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return processors.check(processors.find(settings.message_processor), settings.message_processor)


def processor_of(settings: Settings) -> Callable[..., object]:
    """The same; ends the process when it cannot be used."""
    from svc import processors

    try:
        return found_processor(settings)
    except processors.UnusableProcessor as error:
        unusable([f"MESSAGE_PROCESSOR holds {settings.message_processor!r}: {error}"])


def handlers_of(settings: Settings) -> dict[str, Callable[..., object]]:
    """What `MAINTENANCE_HANDLERS` names; ends the process when one cannot be used."""
    from svc import processors

    found = {}
    for name in settings.maintenance_handlers or ():
        try:
            if "" not in sys.path and os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            found[name] = processors.find(name)
            if not processors.opens(found[name]):
                raise processors.UnusableProcessor("it is no async context manager function")
        except processors.UnusableProcessor as error:
            unusable([f"MAINTENANCE_HANDLERS names {name!r}: {error}"])
    return found


def check_database(settings: Settings) -> None:
    """Ends the process when `DATABASE_URL` is set and cannot be used, whatever the database says later."""
    if settings.database_url is None:
        return
    for library in ("psycopg", "psycopg_pool"):
        if importlib.util.find_spec(library) is None:
            unusable([f"DATABASE_URL is set, and {library} is not installed: pip install 'svc[database]'"])
    try:
        from svc import database
    except ImportError as error:  # psycopg without libpq
        unusable([f"DATABASE_URL is set, and psycopg cannot be used: {error}"])
    try:
        database.check(settings)
    except database.UnusableDatabase as error:
        unusable([f"DATABASE_URL: {error}"])


def end(main: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run the service and end the process with its exit code."""
    from svc import processors
    from svc.api import server
    from svc.consumer.queue import QueueError
    from svc.defects import PartFailed
    from svc.devstack.child import DevstackError
    from svc.maintenance.user_handler import UnusableHandler

    code = FAILED
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # From here on Trio's own code runs, which takes an exception out of nowhere for its own failure.
            if signal.getsignal(number) is signals.end_early:
                signal.signal(number, signals.remember)
        code = trio.run(main)
    except* processors.UnusableProcessor as group:
        unusable([f"MESSAGE_PROCESSOR: {first(group)}"])
    except* UnusableHandler as group:
        unusable([f"MAINTENANCE_HANDLERS: {first(group)}"])
    except* (QueueError, DevstackError, server.CannotListen) as group:
        fail(str(first(group)))
    except* PartFailed:
        pass  # it has been told, with its traceback
    except* Exception as group:
        log.critical("the service has failed", exc_info=group)
    sys.exit(code)
