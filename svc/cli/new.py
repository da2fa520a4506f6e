"""`svc new`: a small project for a processor of one's own."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click

from svc.cli.commands import fail, shell_prefix, unusable
from svc.cli.project import BadProject, Project, Runtime, files


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Choice(get_args(Runtime)), default="trio", help="Where the function runs.")
@click.option(
    "--envelope",
    "envelopes",
    multiple=True,
    type=click.Choice(["sns", "eventbridge", "s3"]),
    help="What is around the payload; twice for one in another, the outer one first.",
)
@click.option("--batch", type=click.IntRange(1, 10_000), help="So many messages at a time; without it, one.")
def new(folder: Path, runtime: Runtime, envelopes: tuple[str, ...], batch: int | None) -> None:
    """Write a project into FOLDER, which must be new or empty: a processor with its test, Dockerfile, compose.yml and README."""
    try:
        project = Project(folder.resolve().name, runtime, envelopes, batch)
    except BadProject as bad:
        unusable([str(bad)])
    if project.module == "tests" or _is_taken(project.module):
        unusable(
            [
                f"there is a Python module {project.module!r} already, which would be found in its place: choose another name"
            ]
        )
    try:
        written = _write(folder, files(project))
    except OSError as error:
        fail(f"{folder} could not be written: {error.strerror or error}")
    if not written:
        unusable([f"{folder} is there and not empty: choose another folder"])
    tests = "" if importlib.util.find_spec("pytest_trio") else "   # comes with svc's extra `test`"
    click.echo(_SAID.format(folder=folder, variables=project.variables, bin=shell_prefix(folder), tests=tests))


def _is_taken(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return True
    return found is not None and found.origin is not None  # else a folder: perhaps the empty one that is to be filled


def _write(folder: Path, texts: Mapping[str, str]) -> bool:
    """Whether there was room. Written aside and renamed: nobody finds half of it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".svc-new-", dir=folder.parent))
    try:
        aside.chmod(0o755)
        for path, text in texts.items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_text(text, encoding="utf-8")
        os.replace(aside, folder)  # onto an empty folder, or none
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return True


_SAID = """\
{folder} is written. Try:

    cd {folder}
    {bin}pytest{tests}
    {variables} {bin}svc dev --messages 0

and in another terminal, in the same folder:

    curl -s -X POST http://127.0.0.1:8082/messages/send -H 'Content-Type: application/json' -d @sample.json
    {bin}svc maintenance on --wait
    {bin}svc maintenance off"""
