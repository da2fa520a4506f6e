"""docs/reference/commands.md, from the commands of `svc/cli/`."""

from collections.abc import Iterator

import click

from docs.generate.markdown import code, fenced, head, joined, table
from svc.cli.main import cli

EXIT_CODES = (
    ("0", "`svc run`, `svc dev`: stopped after a complete drain; every other command: done"),
    ("1", "failure at run time: something cannot be reached or used; the reason is on stderr"),
    ("2", "unusable settings or arguments; a line for each fault"),
    ("3", "a drain ran out of time, or was cut short by a second signal; with `--wait`: that of an instance"),
    ("4", "with `--wait`: not done within `--timeout`; the instances that are missing are listed"),
    (
        "5",
        "with `--wait`: an instance is not heard of any more (killed, frozen, cut off); `--allow-vanished` makes it 0",
    ),
    ("6", "with `--wait`: there is no instance; `--allow-none` makes it 0"),
    ("130", "interrupted by Ctrl-C, for commands that do not drain"),
)


def page() -> str:
    parts = [
        head(
            "Commands",
            "svc/cli/",
            "`svc COMMAND --help` says the same. `python -m svc` is another name for `svc`. Settings come from "
            "[environment variables](settings.md).",
            table(("exit code", "means"), EXIT_CODES).rstrip(),
        )
    ]
    for path, command in _commands("svc", cli):
        usage = " ".join([path, *(parameter.make_metavar(click.Context(command)) for parameter in _arguments(command))])
        parts.append(f"## {path}\n\n{' '.join((command.help or '').split())}\n")
        options = [one for one in command.params if isinstance(one, click.Option)]
        parts.append(fenced(f"{usage}{' [OPTIONS]' if options else ''}", "text"))
        if options:
            parts.append(table(("option", "what"), ((_option(one), one.help or "") for one in options)))
    return joined(parts)


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, depth first; a group only holds some."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _commands(f"{path} {name}", inner)


def _arguments(command: click.Command) -> list[click.Argument]:
    return [one for one in command.params if isinstance(one, click.Argument)]


def _option(option: click.Option) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return code(names)
    if isinstance(option.type, click.Choice):
        value = " / ".join(map(str, option.type.choices))
    else:
        value = "NUMBER" if isinstance(option.type, click.types.IntParamType) else "TEXT"
    return code(f"{names} {value}") + (f" (default {option.default})" if option.show_default else "")
