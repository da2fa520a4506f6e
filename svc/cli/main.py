"""The command line: arguments → settings → logging → `trio.run`, and exit codes. One file for each command beside this one."""

import sys

import click

from svc import __version__
from svc.cli.config import config
from svc.cli.database import database
from svc.cli.dev import dev
from svc.cli.dlq import dlq
from svc.cli.iam import iam
from svc.cli.init import init
from svc.cli.maintenance import maintenance
from svc.cli.new import new
from svc.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="svc")
def cli() -> None:
    """An SQS consumer service that can be stopped safely. Settings come from environment variables; `svc config` shows them."""


for command in (run, dev, new, init, config, maintenance, dlq, database, iam):
    cli.add_command(command)


def main() -> None:
    """Run the command that `sys.argv` names."""
    try:
        cli(prog_name="svc")
    except KeyboardInterrupt:
        sys.exit(130)
