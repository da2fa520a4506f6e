"""`svc config`: prints the effective settings, secrets masked."""

import os

import click

from svc.cli.commands import profile_of, settings_of
from svc.settings import is_aws, masked, origins


@click.command()
def config() -> None:
    """Print the effective settings, secrets masked, and where each came from that is not a default."""
    settings = settings_of()
    from_where = origins(os.environ, profile_of(dict(os.environ)))
    shown = masked(settings)
    for variable, value in shown.items():
        click.echo(f"{variable}={value}")
    # As comments, so that all of it can be an environment again.
    for variable, origin in from_where.items():
        if origin != "default":
            click.echo(f"# {variable}: {'set' if origin == 'set' else f'from {origin}'}")
    if is_aws(settings.aws_endpoint):
        from svc.consumer.queue import QueueMisconfigured
        from svc.sqs import access

        try:
            click.echo(f"# requests go to {access.endpoint(settings)}")
        except QueueMisconfigured as error:
            click.echo(f"# {error}")
