"""Which dead letters a command of `svc dlq` is about: its options, read and put together."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from svc.settings import seconds

if TYPE_CHECKING:
    from svc.sqs.dead_letters import Matches
    from svc.sqs.letter_filters import Condition

SCAN = 1000
"""Letters that a command looks at where it has to choose: at ten a receive some seconds."""

MOST_SCANNED = 100_000


@dataclass(frozen=True, slots=True)
class Selection:
    conditions: "tuple[Condition, ...]"
    scan: int
    """Letters that are looked at, at most."""

    @property
    def is_everything(self) -> bool:
        return not self.conditions

    def matches(self) -> "Matches":
        """By the time of this moment."""
        from svc.sqs import letter_filters
        from svc.sqs.dead_letters import everything

        return everything if self.is_everything else letter_filters.every(self.conditions, datetime.now(UTC))

    def told(self) -> str:
        return " and ".join(condition.text for condition in self.conditions)


def _where(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> "list[Condition]":
    from svc.sqs.letter_filters import BadExpression, condition

    try:
        return [condition(text) for text in texts]
    except BadExpression as bad:
        raise click.BadParameter(str(bad)) from None


def _older_than(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = seconds(text)
    except ValueError:
        found = None
    if not isinstance(found, float):
        raise click.BadParameter(f"{text!r} is not a duration, such as 90s, 1h30m or 168h")
    return found


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose; the command gets them as one `selection`."""

    def gathered(
        ids: tuple[str, ...], where: "list[Condition]", older_than: float | None, scan: int, **others: Any
    ) -> None:
        from svc.sqs import letter_filters

        conditions = list(where)
        if ids:
            conditions.append(letter_filters.of_ids(ids))
        if older_than is not None:
            conditions.append(letter_filters.older_than(older_than))
        command(selection=Selection(tuple(conditions), scan), **others)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option(
            "--scan", type=click.IntRange(1, MOST_SCANNED), default=SCAN, show_default=True,
            help="Look at so many letters, at most, to find those that are meant.",
        ),
        click.option("--older-than", callback=_older_than, metavar="DURATION", help="Only those sent so long ago, such as 1h."),
        click.option(
            "--where", callback=_where, multiple=True, metavar="EXPRESSION",
            help="Only those for which it holds: 'reason~timeout', 'receives>3', 'attribute:tenant=acme'. Of several, all.",
        ),
        click.option("--id", "ids", multiple=True, help="Only this one, or the copy of this one; may be given several times."),
    ):  # fmt: skip
        gathered = option(gathered)
    return gathered
