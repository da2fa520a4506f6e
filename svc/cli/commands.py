"""What all commands share: the settings of the environment, and how a command ends that cannot do its work."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import click

from svc.settings import BadSettings, Profile, Settings, load, printable

FAILED, UNUSABLE = 1, 2


def settings_of(more: dict[str, str] | None = None) -> Settings:
    """The settings of the environment, with logging set up by them; ends the process when they are unusable."""
    from svc.telemetry import logs

    environ = {**os.environ, **(more or {})}
    try:
        settings = load(environ, profile_of(environ))
    except BadSettings as bad:
        unusable(bad.faults)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def profile_of(environ: dict[str, str]) -> Callable[[], Profile]:
    """What the AWS profile says, read (and botocore imported) when it is asked for, and once."""

    @cache
    def look() -> Profile:
        path = environ.get("AWS_CONFIG_FILE") or os.path.join("~", ".aws", "config")
        if not os.path.exists(os.path.expanduser(path)):
            return Profile()
        from svc.sqs import profile

        return profile.profile(environ)

    return look


def first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


def shell_prefix(folder: Path, search: str | None = None) -> str:
    """What stands before `svc` in a shell in that folder: nothing where it is on the PATH (`search`; None: the process's)."""
    ours = Path(sys.executable).parent
    found = shutil.which("svc", path=search)
    if found is not None and Path(found).parent == ours:
        return ""
    return min(os.path.relpath(ours, folder), str(ours), key=len) + "/"


def unusable(faults: list[str]) -> NoReturn:
    for fault in faults:
        click.echo(f"svc: {fault}", err=True)
    sys.exit(UNUSABLE)


def fail(message: str) -> NoReturn:
    complain(message)
    sys.exit(FAILED)


def complain(message: str) -> None:
    """On standard error; what a message says may come from etcd or SQS, and must not tell the terminal anything."""
    click.echo("\n".join(printable(line) for line in f"svc: {message}".split("\n")), err=True)
