"""`svc dlq`: arguments → a look into the dead-letter queue, its letters moved back or deleted → exit code. Nothing is decided
here."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import trio

from svc.cli.commands import FAILED, complain, fail, first, settings_of, unusable
from svc.cli.dlq_selection import MOST_SCANNED, SCAN, Selection, selecting
from svc.cli.progress import Progress
from svc.settings import Settings, printable

if TYPE_CHECKING:
    from svc.consumer.queue import Received
    from svc.sqs.dead_letters import Depth, Sifted

SHOWN = 60
"""Characters of a body that are shown."""

Found = tuple[list["Received"], "Sifted", "Depth", str]
"""Letters, how far the look came, the depth after it, and the queue's URL."""


@click.group()
def dlq() -> None:
    """Look into the dead-letter queue, move its messages back, or delete them."""


@dlq.command("list")
@selecting
@click.option("--max", "most", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object per line, with everything.")
def list_(selection: Selection, most: int, as_json: bool) -> None:
    """Show messages of the dead-letter queue. Each look counts as one receive of what it looks at."""
    letters, sifted, there, url = _ask(partial(_look, _settings(), selection, most))
    for letter in letters:
        click.echo(_as_json(letter) if as_json else _line(letter))
    shown = f"{len(letters)} shown" if letters else "nothing to show"
    if not selection.is_everything:
        shown += f", of {sifted.looked_at} looked at"
    click.echo(f"{url}: about {there.visible} messages, {there.hidden} more hidden; {shown}", err=as_json)
    if sifted.cut_short and not selection.is_everything:
        complain(_cut_short(sifted))
    if sifted.stop:
        fail("stopped")


@dlq.command()
@click.argument("message_id", metavar="ID")
@click.option(
    "--scan", type=click.IntRange(1, MOST_SCANNED), default=SCAN, show_default=True,
    help="Look at so many letters, at most, to find it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As a JSON object, exact to the last character.")
def show(message_id: str, scan: int, as_json: bool) -> None:
    """Show one message of the dead-letter queue, whole. ID: its own, or that of the message that it is a copy of."""
    from svc.sqs import letter_filters

    selection = Selection((letter_filters.of_ids([message_id]),), scan)
    letters, sifted, _, url = _ask(partial(_look, _settings(), selection, 1))
    if not letters:
        fail(f"{url}: {message_id} is not among the {sifted.looked_at} that were looked at; it may be hidden, or gone")
    click.echo(_as_json(letters[0]) if as_json else _whole(letters[0]))


@dlq.command()
@selecting
@click.option(
    "--max", "most", type=click.IntRange(1), help="So many at most; without it, as many as there are at the start."
)
@click.option("--with-aws", is_flag=True, help="Let SQS itself move everything (StartMessageMoveTask), and watch it.")
@click.option(
    "--per-second", type=click.IntRange(1, 500), help="With --with-aws: so many messages a second, at most."
)  # fmt: skip
def redrive(selection: Selection, most: int | None, with_aws: bool, per_second: int | None) -> None:
    """Move messages of the dead-letter queue back to the queue, without their RejectReason."""
    if per_second is not None and not with_aws:
        unusable(["--per-second goes with --with-aws"])
    if with_aws:
        if most is not None or not selection.is_everything:
            unusable(["--with-aws moves everything: it goes with neither --max nor --id, --where and --older-than"])
        from svc.cli.dlq_move_task import follow

        settings = _settings()
        sys.exit(_ask(partial(follow, settings, per_second)))
    sys.exit(_ask(partial(_redrive, _settings(), selection, most)))


@dlq.command()
@selecting
@click.option(
    "--max", "most", type=click.IntRange(1), help="So many at most; without it, as many as there are at the start."
)
@click.option("--all", "everything", is_flag=True, help="All of them; needed where nothing else says which.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(selection: Selection, most: int | None, everything: bool, yes: bool) -> None:
    """Delete messages of the dead-letter queue, for good."""
    if selection.is_everything and not everything:
        unusable(["say which: --id, --where or --older-than, or --all for everything"])
    if everything and not selection.is_everything:
        unusable(["--all goes with neither --id, --where nor --older-than"])
    settings = _settings()
    there, url = _ask(partial(_depth, settings))
    if not yes:
        limit = "" if most is None else f", {most} at most,"
        _confirm(f"{url}: about {there.visible} messages. Delete {selection.told() or 'all of them'}{limit} for good?")
    sys.exit(_ask(partial(_purge, settings, selection, most)))


def _confirm(question: str) -> None:
    try:
        agreed = click.confirm(printable(question), err=True)
    except click.Abort:
        unusable(["nobody answers; --yes deletes without asking"])
    if not agreed:
        fail("nothing was deleted")


# -- what is done --


async def _look(settings: Settings, selection: Selection, most: int) -> Found:
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs
    from svc.sqs.dead_letters import Sifted

    sifted = Sifted()
    async with sqs.opened_with_dead_letters(settings) as (_, dead, url), _stop_on_signal(sifted):
        scan = most if selection.is_everything else selection.scan
        letters = await dead_letters.look(dead, most, matches=selection.matches(), scan=scan, sifted=sifted)
        return letters, sifted, await dead_letters.depth(dead), url


async def _depth(settings: Settings) -> "tuple[Depth, str]":
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs

    async with sqs.opened_with_dead_letters(settings) as (_, dead, url):
        return await dead_letters.depth(dead), url


async def _redrive(settings: Settings, selection: Selection, most: int | None) -> int:
    from svc.consumer.queue import QueueError
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs
    from svc.sqs.dead_letters import Moved

    moved, failure = Moved(), None
    async with sqs.opened_with_dead_letters(settings) as (queue, dead, url), _stop_on_signal(moved):
        there = await dead_letters.depth(dead)
        limit = _limit(selection, most, there)
        with Progress(sys.stderr).count("moving back", total=min(limit, max(there.visible, 1))) as tell:
            try:
                scan = None if selection.is_everything else selection.scan
                await dead_letters.redrive(
                    dead, queue, limit, moved, tell, matches=selection.matches(), scan=scan
                )  # fmt: skip
            except QueueError as error:
                failure = error
    click.echo(f"{url}: {moved.count} of about {there.visible} messages moved back{_looked_at(selection, moved)}")
    if moved.twice:
        told = ", ".join(moved.twice)
        complain(f"perhaps in both queues, because SQS has not confirmed the send or the delete: {told}")
    return _ended(selection, moved, failure, "what was not moved is where it was") or bool(moved.twice)


async def _purge(settings: Settings, selection: Selection, most: int | None) -> int:
    from svc.consumer.queue import QueueError
    from svc.sqs import dead_letters
    from svc.sqs import queue as sqs
    from svc.sqs.dead_letters import Purged

    purged, failure = Purged(), None
    async with sqs.opened_with_dead_letters(settings) as (_, dead, url), _stop_on_signal(purged):
        there = await dead_letters.depth(dead)
        limit = _limit(selection, most, there)
        with Progress(sys.stderr).count("deleting", total=min(limit, max(there.visible, 1))) as tell:
            try:
                scan = None if selection.is_everything else selection.scan
                await dead_letters.purge(dead, limit, purged, tell, matches=selection.matches(), scan=scan)
            except QueueError as error:
                failure = error
    click.echo(f"{url}: {purged.count} of about {there.visible} messages deleted{_looked_at(selection, purged)}")
    if purged.unconfirmed:
        complain(f"perhaps not deleted, because SQS has not confirmed it: {', '.join(purged.unconfirmed)}")
    return _ended(selection, purged, failure, "what was not deleted is where it was") or bool(purged.unconfirmed)


def _limit(selection: Selection, most: int | None, there: "Depth") -> int:
    """Without a number, what there is at the start, so that it ends even where letters come in meanwhile. What is chosen is
    bounded by the scan: the depth is approximate."""
    if most is not None:
        return most
    return there.visible if selection.is_everything else selection.scan


def _ended(selection: Selection, sifted: "Sifted", failure: Exception | None, rest: str) -> int:
    """Tell why it ended before it was done; returns the exit code."""
    if failure is not None:
        complain(str(failure))
    if sifted.stop:
        complain(f"stopped; {rest}")
    if sifted.cut_short:
        complain(_cut_short(sifted))
    return FAILED if failure is not None or sifted.stop or sifted.cut_short else 0


def _looked_at(selection: Selection, sifted: "Sifted") -> str:
    return "" if selection.is_everything else f", {sifted.looked_at} looked at"


def _cut_short(sifted: "Sifted") -> str:
    return f"only {sifted.looked_at} were looked at, and there may be more that are meant: --scan looks at more"


@contextlib.asynccontextmanager
async def _stop_on_signal(sifted: "Sifted") -> AsyncIterator[None]:
    """The first Ctrl-C ends it after the letter that is on its way; everything is given back."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                async for _ in signals:
                    sifted.stop = True

            nursery.start_soon(stop)
            yield
            nursery.cancel_scope.cancel(reason="done")


# -- what is shown --


def _as_json(letter: "Received") -> str:
    from svc.sqs import letters

    return json.dumps(letters.described(letter, datetime.now(UTC)))


def _line(letter: "Received") -> str:
    from svc.sqs import letters

    told = letters.described(letter, datetime.now(UTC))
    sent = "-" if letter.message.sent_at is None else _second(letter.message.sent_at)
    copy = [] if told["original_id"] is None else [f"copy of {_short(told['original_id'])}"]
    parts = [told["id"], *copy, f"sent {sent}", f"receives {told['receives']}"]
    parts += [f"{name}: {_short(told[field])}" for name, field in _WHY if told[field] is not None]
    return "  ".join([*parts, _short(letter.message.body)])


_WHY = (("rejected", "reason"), ("error", "error"))


def _whole(letter: "Received") -> str:
    from svc.sqs import letters

    told = letters.described(letter, datetime.now(UTC))
    lines = [f"{name}: {printable(str(told[name]))}" for name in told if name not in ("body", "attributes")
             and told[name] is not None]  # fmt: skip
    lines += [
        f"attribute {printable(name)} ({printable(held['type'])}): {printable(held.get('value') or held.get('base64') or '')}"
        for name, held in told["attributes"].items()
    ]
    return "\n".join([*lines, "", *(printable(line) for line in letter.message.body.split("\n"))])


def _second(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _short(text: str) -> str:
    """On one line, and nothing in it that a terminal would obey."""
    return printable(text[:SHOWN]) + ("…" if len(text) > SHOWN else "")


def _settings() -> Settings:
    """The settings, pointed at the running `svc dev` when the environment names no queue."""
    if not os.environ.get("SQS_QUEUE_URL"):
        from svc.devstack import announcement

        found = announcement.find_announced()
        if found is not None and found.queue_url:
            click.echo(f"(the svc dev of process {found.pid}, {found.http_url})", err=True)
            # AWS's credentials are found in the process's environment, by botocore.
            os.environ.update(found.queue_environ())
    return settings_of()


def _ask(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run it, and end the process with a sentence when it cannot be done."""
    from svc.consumer.queue import QueueError

    try:
        return trio.run(ask)
    except* QueueError as group:
        fail(str(first(group)))
    except* KeyboardInterrupt:
        sys.exit(130)
