"""`svc config`: prints the effective settings, secrets masked."""

import os

import click

from svc.cli.commands import profile_of, settings_of
from svc.cli.run import AWS_VARIABLES, found_processor
from svc.settings import Settings, is_aws, masked, misspelled, origins


@click.command()
def config() -> None:
    """Print the effective settings, secrets masked, and where each came from that is not a default."""
    settings = settings_of()
    from_where = origins(os.environ, profile_of(dict(os.environ)))
    shown = masked(settings)
    for variable, value in shown.items():
        click.echo(f"{variable}={value}")
    # As comments, so that all of it can be an environment again.
    for sentence in misspelled(os.environ, AWS_VARIABLES):
        click.echo(f"# {sentence}")
    for variable, origin in from_where.items():
        if origin != "default":
            click.echo(f"# {variable}: {'set' if origin == 'set' else f'from {origin}'}")
    if from_where.get("MESSAGE_PROCESSOR") == "set":
        click.echo(f"# MESSAGE_PROCESSOR: {_said_by_the_processor(settings)}")
    if is_aws(settings.aws_endpoint):
        from svc.consumer.queue import QueueMisconfigured
        from svc.sqs import access

        try:
            click.echo(f"# requests go to {access.endpoint(settings)}")
        except QueueMisconfigured as error:
            click.echo(f"# {error}")


def _said_by_the_processor(settings: Settings) -> str:
    """What its `@processor` says, or why it cannot be used."""
    from svc import processors

    try:
        options = processors.options_of(found_processor(settings))
    except processors.UnusableProcessor as error:
        return f"cannot be used: {error}"
    said = options.described() if options is not None else {}
    return ", ".join(f"{name}={value}" for name, value in said.items()) or "says nothing of how it is called"
