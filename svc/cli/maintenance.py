"""`svc maintenance`: arguments → an order for the switch → the answers of the fleet → exit code. Nothing is decided here."""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click
import trio

from svc.cli.commands import FAILED, complain, fail, first, settings_of
from svc.settings import Settings, seconds

if TYPE_CHECKING:
    from svc.maintenance.fleet import Request, Standing, Wait
    from svc.maintenance.orders import Order

DONE, EXPIRED, TIMEOUT, VANISHED, NONE = 0, 3, 4, 5, 6
"""Exit codes of a wait; `FAILED` when the key was changed meanwhile."""

REDRAW = 0.25
"""Seconds between two drawings of the table on a terminal."""


def _duration(
    least: float, most: float, example: str
) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """Reads an option that is a duration."""

    def read(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            found = seconds(text)
        except ValueError:
            found = None
        if not isinstance(found, float) or not least <= found <= most:
            raise click.BadParameter(f"{text!r} is not a duration from 1s to {most / 3600:g}h, such as {example}")
        return found

    return read


def _waiting(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `on` and `off` have in common."""
    for option in (
        click.option("--allow-none", is_flag=True, help="With --wait: 0 also when there is no instance."),
        click.option("--allow-vanished", is_flag=True, help="With --wait: 0 also when some are not heard of any more."),
        click.option("--json", "as_json", is_flag=True, help="A JSON object per line."),
        click.option(
            "--timeout", callback=_duration(1, 86_400, "5m"), default="5m", help="How long --wait waits (default 5m)."
        ),
        click.option(
            "--wait",
            type=click.Choice(["drained", "quiet"]),
            is_flag=False,
            flag_value="drained",
            help="Wait until every instance has acted on it, and show how far they are. --wait=quiet (with `on`): until "
            "nothing is at work and nothing will be begun, though receives may be on the wire; what they bring goes back, even "
            "in its last receive.",
        ),
        click.option("--force", is_flag=True, help="Even if it is the maintenance of somebody else."),
        click.option("--instance", help="Only this instance; `status` names them."),
        click.option("--by", help="Who asks for it."),
    ):
        command = option(command)
    return command


@click.group()
def maintenance() -> None:
    """Switch maintenance on or off, for all instances or for one, and see what they make of it.

    Exit codes with --wait: 0 all have drained (are quiet, run again), 3 a drain ran out of time, 4 not done within --timeout, 5
    some have vanished (killed, frozen, or cut off from etcd: what they do is not known), 6 there is no instance."""


@maintenance.command("on")
@_waiting
@click.option("--reason", help="Shown in /health and in the 503 answers.")
@click.option(
    "--for",
    "lasting",
    callback=_duration(1, 30 * 86_400, "30m"),
    help="How long, such as 30m; after that it ends by itself.",
)
def switch_on(reason: str | None, lasting: float | None, **options: Any) -> None:
    """Stop taking messages, finish those in flight."""
    _switch(on=True, reason=reason, seconds=lasting, **options)


@maintenance.command("off")
@_waiting
def switch_off(**options: Any) -> None:
    """Take messages again."""
    if options["wait"] == "quiet":
        raise click.UsageError("--wait=quiet goes with `on`: instances that take messages again are not quiet")
    _switch(on=False, **options)


@maintenance.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(as_json: bool) -> None:
    """Print what the key says, and the instances."""
    settings = _settings()
    from svc.etcd import fleet as etcd_fleet
    from svc.maintenance import fleet_table
    from svc.maintenance.switch_value import parse_switch

    held = _ask(partial(etcd_fleet.look, settings))
    if as_json:
        click.echo(json.dumps({"key": settings.maintenance_key, **fleet_table.fleet(held)}))
        return
    lines = []
    try:
        switch = parse_switch(held.value)
    except ValueError as error:
        lines.append(f"maintenance: unknown, the services keep the state they have ({error})")
    else:
        lines.append(f"maintenance: {'on' if switch.on else 'off'}")
        lines += [f"{name}: {told}" for name, told in (("reason", switch.reason), ("by", switch.by)) if told]
        if switch.until and held.expires_in is None:
            lines.append(f"until: {switch.until}")
    if held.expires_in is not None:
        lines.append(f"ends by itself in: {held.expires_in:.0f} s")
    lines.append(
        f"key: {settings.maintenance_key} ({'not set' if held.value is None else f'revision {held.mod_revision}'})"
    )
    if held.own:
        lines.append(f"switched by themselves: {', '.join(sorted(held.own))}")
    if held.entries or held.vanished:
        lines += ["", *fleet_table.table(held.entries, vanished=held.vanished)]
    else:
        lines.append("instances: none is registered")
    click.echo("\n".join(lines))


@maintenance.command()
@click.argument("instance")
def forget(instance: str) -> None:
    """Say that a vanished instance is no more, and need not be waited for."""
    settings = _settings()
    from svc.etcd import fleet as etcd_fleet

    _ask(partial(etcd_fleet.forget, settings, instance))
    click.echo(f"{instance} is forgotten")


# -- what stands behind them --


def _switch(
    *,
    on: bool,
    by: str | None,
    instance: str | None,
    force: bool,
    wait: str | None,
    timeout: float,
    as_json: bool,
    allow_vanished: bool,
    allow_none: bool,
    reason: str | None = None,
    seconds: float | None = None,
) -> None:
    settings = _settings()
    from svc.etcd import fleet as etcd_fleet
    from svc.maintenance.orders import Order

    order = Order(on, reason, by, seconds, instance, force, quiet=wait == "quiet")
    request = _ask(partial(etcd_fleet.ask, settings, order))
    _tell_order(settings, order, request, as_json)
    if wait:
        allowed = {VANISHED} if allow_vanished else set()
        allowed |= {NONE} if allow_none else set()
        sys.exit(_ask(partial(_wait, settings, request, timeout, as_json, allowed)))


def _tell_order(settings: Settings, order: "Order", request: "Request", as_json: bool) -> None:
    key, state = order.key(settings.maintenance_key), "on" if order.on else "off"
    if as_json:
        click.echo(json.dumps({"event": "switched", "on": order.on, "key": key, "revision": request.revision}))
        return
    whose = "" if order.instance is None else f" of {order.instance}"
    until = f", for {order.seconds:g} s" if order.seconds is not None else ""
    at = f"revision {request.revision}" if request.revision else "not set"
    click.echo(f"maintenance{whose} is {state}{until} (key {key}, {at})")


async def _wait(settings: Settings, request: "Request", timeout: float, as_json: bool, allowed: set[int]) -> int:
    """Show how the fleet answers, until it has; returns the exit code. `allowed`: codes that are to be 0."""
    from svc.etcd import fleet as etcd_fleet
    from svc.maintenance import fleet_table
    from svc.maintenance.fleet import Wait

    waiting = Wait(request)
    show = _Show(request, as_json)
    standing: Standing | None = None
    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show.redraw, waiting)
            standing = await etcd_fleet.follow(settings, waiting, show.tell, trouble=show.trouble)
            nursery.cancel_scope.cancel(reason="there is an answer")
    standing = standing or show.last
    code = DONE if (code := _code(standing)) in allowed else code
    result = standing.result.value if standing is not None and standing.result is not None else "timeout"
    if as_json:
        held = standing or waiting.standing()
        click.echo(json.dumps(fleet_table.end(held, request, code=code, result=result, elapsed=show.elapsed)))
        return code
    show.draw(waiting)
    lines = fleet_table.outcome(standing, request, elapsed=show.elapsed)
    click.echo(lines[0])
    for line in lines[1:]:
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

    def __init__(self, request: "Request", as_json: bool) -> None:
        from svc.maintenance.fleet_table import Screen

        live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json
        self._request = request
        self._json = as_json
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
        """etcd is out of reach for the moment."""
        if said != self._trouble and self._screen is None:
            complain(said)
        self._trouble = said

    async def redraw(self, waiting: "Wait") -> None:
        while self._screen is not None:
            self.draw(waiting)
            await trio.sleep(REDRAW)

    def draw(self, waiting: "Wait") -> None:
        from svc.maintenance import fleet_table

        if self._screen is not None and self.last is not None:
            standing = waiting.standing()
            room = self._screen.room - 3 - len(standing.died)
            lines = fleet_table.table(
                standing.live, vanished=standing.died, notes=fleet_table.notes(standing), limit=room
            )
            trouble = f"; {self._trouble}" if self._trouble else ""
            lines.append(f"{fleet_table.progress(standing, self._request)}, {self.elapsed:.1f} s{trouble}")
            self._screen.draw(lines)


def _settings() -> Settings:
    """The settings, pointed at the running `svc dev` when the environment names no etcd."""
    if not os.environ.get("ETCD_ENDPOINTS"):
        from svc.devstack import announcement

        found = announcement.find_announced()
        if found is not None:
            click.echo(f"(the svc dev of process {found.pid}, {found.http_url})", err=True)
            return settings_of({"ETCD_ENDPOINTS": found.etcd_endpoints, "MAINTENANCE_KEY": found.maintenance_key})
    return settings_of()


def _ask(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run it, and end the process with a sentence when it cannot be done."""
    from svc.etcd.channel import EtcdError
    from svc.maintenance.orders import NoSuchInstance, NotYours, StillThere

    try:
        return trio.run(ask)
    except* EtcdError as group:
        fail(str(first(group)))
    except* NotYours as group:
        fail(f"{first(group)}. Nothing was changed. Give their name with --by, or insist with --force.")
    except* (NoSuchInstance, StillThere) as group:
        fail(f"{first(group)}. Nothing was changed.")
    except* KeyboardInterrupt as group:
        _interrupted(group)


def _interrupted(group: BaseExceptionGroup[KeyboardInterrupt]) -> NoReturn:
    click.echo("svc: no longer waiting; what was switched stays so", err=True)
    sys.exit(130)
