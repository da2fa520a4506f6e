"""`svc database`: what has to be in the database that processors use."""

import importlib.util

import click
import trio

from svc.cli.commands import fail, settings_of, unusable
from svc.cli.run import check_database


@click.group()
def database() -> None:
    """The database of DATABASE_URL."""


@database.command("init")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL in place of running it.")
def init(only_print: bool) -> None:
    """Create the table in which processors with exactly_once leave the keys of what is done, if it is not there."""
    if importlib.util.find_spec("psycopg") is None:
        unusable(["the database's library is not installed: pip install 'svc[database]'"])
    from svc.database import inbox

    if only_print:
        click.echo(inbox.CREATE, nl=False)
        return
    settings = settings_of()
    if settings.database_url is None:
        unusable(["DATABASE_URL is not set: the database in which the table is to be created"])
    check_database(settings)
    try:
        where, is_new = trio.run(inbox.create_once, settings)
    except inbox.Failed as failure:
        fail(str(failure))
    click.echo(f"table svc_inbox in {where}: {'created' if is_new else 'it was there already'}")
