"""Waiting for the answers of instances, on a terminal and in a pipe: what `--wait` shows, and its exit codes."""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click
import trio

from svc.cli.commands import FAILED, complain

if TYPE_CHECKING:
    from svc.maintenance.fleet import Request, Standing

DONE, EXPIRED, TIMEOUT, VANISHED, NONE = 0, 3, 4, 5, 6
"""Exit codes of a wait; `FAILED` when the key was changed meanwhile."""

REDRAW = 0.25
"""Seconds between two drawings of the table on a terminal."""


Follow = Callable[[Callable[["Standing"], None], Callable[[str], None]], Awaitable["Standing"]]
"""Follows how instances answer, until they have: given what to tell each change to, and what troubles, which do not end it."""


async def wait(
    follow: Follow, request: "Request", *, timeout: float, as_json: bool, allowed: set[int], registered: bool = True
) -> int:
    """Show how instances answer, until they have; returns the exit code. `allowed`: codes that are to be 0. `registered`: they
    are listed in etcd, where one that is no more can be forgotten."""
    from svc.maintenance import fleet_table
    from svc.maintenance.fleet import Wait

    show = _Show(request, as_json, registered)
    standing: Standing | None = None
    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.redraw)
            standing = await follow(show.tell, show.trouble)
            nursery.cancel_scope.cancel(reason="there is an answer")
    standing = standing or show.last
    code = DONE if (code := _code(standing)) in allowed else code
    result = standing.result.value if standing is not None and standing.result is not None else "timeout"
    if as_json:
        held = standing or Wait(request).standing()
        click.echo(json.dumps(fleet_table.end(held, request, code=code, result=result, elapsed=show.elapsed)))
        return code
    show.draw()
    for line in fleet_table.outcome(standing, request, elapsed=show.elapsed, registered=registered):
        click.echo(line)
    return code


def _code(standing: "Standing | None") -> int:
    from svc.maintenance.fleet import Result

    if standing is None or standing.result is None:
        return TIMEOUT
    return {
        Result.DONE: DONE,
        Result.EXPIRED: EXPIRED,
        Result.SUPERSEDED: FAILED,
        Result.VANISHED: VANISHED,
        Result.NONE: NONE,
    }[standing.result]


class _Show:
    """A table that is redrawn on a terminal, a line per change in a pipe."""

    def __init__(self, request: "Request", as_json: bool, registered: bool) -> None:
        from svc.maintenance.fleet_table import Screen

        live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json
        self._request = request
        self._json = as_json
        self._registered = registered
        self._screen = Screen(sys.stdout) if live else None
        self._began = trio.current_time()
        self._trouble = ""
        self.last: Standing | None = None

    @property
    def elapsed(self) -> float:
        return trio.current_time() - self._began

    def tell(self, standing: "Standing") -> None:
        from svc.maintenance import fleet_table

        before, self.last, self._trouble = self.last, standing, ""
        if self._screen is None:
            for text, event in fleet_table.changes(before, standing):
                if self._json:
                    click.echo(json.dumps({**event, "elapsed": round(self.elapsed, 1)}))
                else:
                    click.echo(f"{self.elapsed:6.1f} s  {text}")

    def trouble(self, said: str) -> None:
        """Something is out of reach for the moment."""
        if said != self._trouble and self._screen is None:
            complain(said)
        self._trouble = said

    async def redraw(self) -> None:
        while self._screen is not None:
            self.draw()
            await trio.sleep(REDRAW)

    def draw(self) -> None:
        from svc.maintenance import fleet_table

        if self._screen is not None and self.last is not None:
            standing = self.last
            room = self._screen.room - 3 - len(standing.died)
            lines = fleet_table.table(
                standing.live,
                vanished=standing.died,
                notes=fleet_table.notes(standing),
                limit=room,
                registered=self._registered,
            )
            trouble = f"; {self._trouble}" if self._trouble else ""
            lines.append(f"{fleet_table.progress(standing, self._request)}, {self.elapsed:.1f} s{trouble}")
            self._screen.draw(lines)
