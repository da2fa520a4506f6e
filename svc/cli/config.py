"""`svc config`: prints the effective settings, secrets masked."""

import click

from svc.cli.commands import settings_of
from svc.settings import masked


@click.command()
def config() -> None:
    """Print the effective settings, secrets masked."""
    for variable, value in masked(settings_of()).items():
        click.echo(f"{variable}={value}")
