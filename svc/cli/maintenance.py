"""`svc maintenance`: arguments → an order for the switch → the answers of the fleet → exit code. Nothing is decided here."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click
import trio

from svc.cli.commands import FAILED, complain, fail, first, settings_of, unusable
from svc.cli.waiting import DONE, NONE, VANISHED
from svc.cli.waiting import wait as waited
from svc.settings import Settings, seconds

if TYPE_CHECKING:
    from svc.cli.instances import Place
    from svc.maintenance.fleet import Request
    from svc.maintenance.orders import Order


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


def _over_http(command: Callable[..., None]) -> Callable[..., None]:
    """The options for instances that are asked by themselves."""
    for option in (
        click.option(
            "--ca", metavar="FILE", help="With --url https://…: the certificate authority, if not the system's."
        ),
        click.option(
            "--url",
            "urls",
            multiple=True,
            help="Over the API of this instance instead of etcd, with the API_TOKEN of the environment; may be given several "
            "times. Without etcd (ETCD_ENDPOINTS=off) the default is the instance that has these settings.",
        ),
    ):
        command = option(command)
    return command


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
    return _over_http(command)


@click.group()
def maintenance() -> None:
    """Switch maintenance on or off, for all instances or for one, and see what they make of it.

    Exit codes with --wait: 0 all have drained (are quiet, run again), 3 a drain ran out of time, 4 not done within --timeout, 5
    some have vanished (killed, frozen, or cut off: what they do is not known), 6 there is no instance."""


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
@_over_http
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(as_json: bool, urls: tuple[str, ...], ca: str | None) -> None:
    """Print what the key says, and the instances."""
    settings = _settings(urls)
    if places := _places(settings, urls, ca):
        sys.exit(_ask(partial(_status_of_each, places, as_json)))
    from svc.etcd import fleet as etcd_fleet
    from svc.maintenance import fleet_table

    held = _ask(partial(etcd_fleet.look, settings))
    shown = {"key": settings.maintenance_key, **fleet_table.fleet(held)}
    if as_json:
        click.echo(json.dumps(shown))
        return
    at = "not set" if held.value is None else f"revision {held.mod_revision}"
    lines = _told_of_the_switch(shown)
    lines.append(f"key: {settings.maintenance_key} ({at})")
    if held.own:
        lines.append(f"switched by themselves: {', '.join(sorted(held.own))}")
    if held.entries or held.vanished:
        lines += ["", *fleet_table.table(held.entries, vanished=held.vanished)]
    else:
        lines.append("instances: none is registered")
    click.echo("\n".join(lines))


def _told_of_the_switch(shown: Mapping[str, object]) -> list[str]:
    """What `fleet_table.fleet` shows of it, in words."""
    on, expires_in = shown["maintenance"], shown["expires_in"]
    if on is None:
        lines = [f"maintenance: unknown, the services keep the state they have ({shown['ignored_value']})"]
    else:
        lines = [f"maintenance: {'on' if on else 'off'}"]
        lines += [f"{name}: {shown[name]}" for name in ("reason", "by") if shown[name]]
        if shown["until"] and expires_in is None:
            lines.append(f"until: {shown['until']}")
    if isinstance(expires_in, int | float):
        lines.append(f"ends by itself in: {expires_in:.0f} s")
    return lines


async def _status_of_each(places: Sequence["Place"], as_json: bool) -> int:
    from svc.cli.instances import Refused, Unreachable, each, look
    from svc.maintenance import fleet_table

    code = DONE
    for where, found in await each(places, look):
        if isinstance(found, Unreachable | Refused):
            code = FAILED
            click.echo(json.dumps({"url": where.url, "error": str(found)})) if as_json else complain(str(found))
        elif as_json:
            click.echo(json.dumps({"url": where.url, **found.told}))
        else:
            lines = [f"{where.url}", *_told_of_the_switch(found.told)]
            lines += fleet_table.table(found.entries(0), vanished=found.vanished, registered=found.is_fleet)
            click.echo("\n".join(lines))
    return code


@maintenance.command()
@click.argument("instance")
def forget(instance: str) -> None:
    """Say that a vanished instance is no more, and need not be waited for."""
    settings = _settings()
    if not settings.etcd_endpoints:
        unusable(["there is no etcd (ETCD_ENDPOINTS=off), and nobody who could be forgotten"])
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
    urls: tuple[str, ...],
    ca: str | None,
    reason: str | None = None,
    seconds: float | None = None,
) -> None:
    settings = _settings(urls)
    from svc.maintenance.orders import Order

    order = Order(on, reason, by, seconds, instance, force, quiet=wait == "quiet")
    allowed = ({VANISHED} if allow_vanished else set()) | ({NONE} if allow_none else set())
    waiting = partial(waited, timeout=timeout, as_json=as_json, allowed=allowed) if wait else None
    if places := _places(settings, urls, ca):
        token = settings.api_token.get_secret_value() if settings.api_token is not None else None
        sys.exit(_ask(partial(_switch_each, places, order, token, waiting, as_json)))
    from svc.etcd import fleet as etcd_fleet
    from svc.maintenance.fleet import Wait

    request: Request = _ask(partial(etcd_fleet.ask, settings, order))
    key = order.key(settings.maintenance_key)
    at = f"revision {request.revision}" if request.revision else "not set"
    _tell_order(order, request, as_json, f"key {key}, {at}", key=key)
    if waiting is not None:
        wait_for = Wait(request)
        sys.exit(
            _ask(
                partial(
                    waiting,
                    lambda tell, trouble: etcd_fleet.follow(settings, wait_for, tell, trouble=trouble),
                    request,
                )
            )
        )


async def _switch_each(
    places: Sequence["Place"],
    order: "Order",
    token: str | None,
    waiting: Callable[..., Awaitable[int]] | None,
    as_json: bool,
) -> int:
    from svc.cli.instances import Refused, Unreachable, each, follow, look, obey
    from svc.maintenance.fleet import Request

    if len(places) > 1:
        for where, found in await each(places, look):
            if not isinstance(found, Unreachable | Refused) and found.is_fleet:
                fail(
                    f"{where.url} belongs to a fleet, and speaks for all of it: name one --url of it. Nothing was changed."
                )
    requests: list[Request | None] = []
    code = DONE
    for where, answer in await each(places, partial(obey, order, token)):
        if isinstance(answer, Request):
            _tell_order(order, answer, as_json, f"{where.url}, revision {answer.revision}", url=where.url)
            requests.append(answer)
            continue
        complain(str(answer))
        requests.append(None)
        if waiting is None or isinstance(answer, Refused):
            code = FAILED
    if waiting is None or code:
        return code
    [first, *others] = requests
    request = first if first is not None and not others else Request(order.on, 0, None, order.quiet)
    return await waiting(partial(follow, places, requests), request, registered=False)


def _tell_order(order: "Order", request: "Request", as_json: bool, where: str, **place: str) -> None:
    state = "on" if order.on else "off"
    if as_json:
        click.echo(json.dumps({"event": "switched", "on": order.on, **place, "revision": request.revision}))
        return
    whose = "" if order.instance is None else f" of {order.instance}"
    until = f", for {order.seconds:g} s" if order.seconds is not None else ""
    click.echo(f"maintenance{whose} is {state}{until} ({where})")


def _settings(urls: Sequence[str] = ()) -> Settings:
    """The settings, pointed at the running `svc dev` when neither the environment nor the command names a place."""
    if not os.environ.get("ETCD_ENDPOINTS") and not urls:
        from svc.devstack import announcement

        found = announcement.find_announced()
        if found is not None:
            click.echo(f"(the svc dev of process {found.pid}, {found.http_url})", err=True)
            return settings_of({"ETCD_ENDPOINTS": found.etcd_endpoints, "MAINTENANCE_KEY": found.maintenance_key})
    return settings_of()


def _places(settings: Settings, urls: Sequence[str], ca: str | None) -> list["Place"]:
    """The instances that are asked by themselves. Without etcd, and where none is named, the one that has these settings."""
    from svc.cli.instances import place

    if not urls and not settings.etcd_endpoints:
        if not settings.http_port:
            unusable(["there is no etcd (ETCD_ENDPOINTS=off), and HTTP_PORT is 0: name the instance with --url"])
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)  # noqa: S104
        urls = [f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"]
    try:
        return [place(url, ca) for url in dict.fromkeys(urls)]
    except ValueError as fault:
        unusable([str(fault)])


def _ask(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run it, and end the process with a sentence when it cannot be done."""
    from svc.etcd.errors import EtcdError
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
