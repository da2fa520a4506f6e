"""Instances that are named by their URLs: switched, looked at and followed over their API, all at the same time.

The standard library's HTTP client in threads: no proxy, no redirect (the token goes where it was sent, and nowhere else), and a
bound for everything. What an instance answers is understood in `maintenance/several.py`, or it is no answer.
"""

import http.client
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import trio

from svc import __version__
from svc.maintenance.fleet import Request, Standing
from svc.maintenance.orders import Order
from svc.maintenance.several import Seen, Shown, requested, shown, together
from svc.settings import printable

CALL = 5.0
"""Seconds that one request may take."""

EVERY = 0.5
"""Seconds between two looks at an instance that is followed."""

LIMIT = 16 * 1024 * 1024
"""Bytes of an answer: a fleet of ten thousand instances."""


_SAID = (
    ('Give their name as "by", or insist with "force".', "Give their name with --by, or insist with --force."),
    (
        "this request changes something: send Authorization: Bearer <the service's API_TOKEN>",
        "it takes orders with its token only: set API_TOKEN to the one that it was given",
    ),
    ("the bearer token is not the one that this service was given in API_TOKEN", "API_TOKEN is not the one that it was given"),
    (
        "this takes a token, and the service was given none: set API_TOKEN",
        "it takes orders with a token only, and was given none: set API_TOKEN there, and here to the same",
    ),
    ("GET /fleet names them", "`svc maintenance status` names them"),
)  # fmt: skip
"""What the API says to programs, and what the same is for somebody at a terminal."""

_FIELD = re.compile(r'^"(reason|by|for|instance|force)"')


class Unreachable(Exception):
    """There was no answer, or one that is not the service's. The text says from where."""


class Refused(Exception):
    """The instance has answered that it does not do it. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance's API is."""

    url: str
    host: str
    port: int | None
    path: str
    tls: ssl.SSLContext | None


def place(url: str, ca: str | None = None) -> Place:
    """From a URL, and the authorities that it is to be trusted by (a PEM file; else the system's). Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise ValueError(f"{printable(url)[:200]!r} is not the URL of an instance, such as http://10.0.0.7:8082")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("the URL of an instance has no user, query or fragment; the token is taken from API_TOKEN")
    port = parts.port  # raises ValueError on its own
    context = None
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise ValueError(f"--ca {ca}: {error.strerror or 'holds no certificate'}") from None
    return Place(url.rstrip("/"), parts.hostname, port, parts.path.rstrip("/"), context)


def _exchange(where: Place, method: str, path: str, body: str | None, token: str | None) -> tuple[int, bytes]:
    kind: http.client.HTTPConnection = http.client.HTTPConnection(where.host, where.port, timeout=CALL)
    if where.tls is not None:
        kind = http.client.HTTPSConnection(where.host, where.port, timeout=CALL, context=where.tls)
    headers = {"Accept": "application/json", "User-Agent": f"svc/{__version__}", "Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        kind.request(method, where.path + path, body, headers)
        answer = kind.getresponse()
        return answer.status, answer.read(LIMIT + 1)
    finally:
        kind.close()


async def _ask(where: Place, method: str, path: str, *, body: str | None = None, token: str | None = None) -> object:
    """The JSON that it answers with 200. Raises `Unreachable` and `Refused`."""
    said = f"{where.url} does not answer within {CALL:g} s"
    with trio.move_on_after(CALL):
        try:
            status, content = await trio.to_thread.run_sync(
                partial(_exchange, where, method, path, body, token), abandon_on_cancel=True
            )
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise Unreachable(f"{where.url}: {_why(error)}") from None
        try:
            document = json.loads(content) if len(content) <= LIMIT else None
        except (ValueError, RecursionError):
            document = None
        if status == 200 and document is not None:
            return document
        told = document.get("message") if isinstance(document, dict) else None
        if status != 200 and isinstance(told, str):
            raise Refused(f"{where.url}: {_in_our_words(printable(told[:1000]))} (HTTP {status})")
        said = f"{where.url}: what answers (HTTP {status}) is not this service"
    raise Unreachable(said)


def _in_our_words(told: str) -> str:
    """A refusal of the API in the words of the command: options instead of fields."""
    for theirs, ours in _SAID:
        told = told.replace(theirs, ours)
    return _FIELD.sub(r"--\1", told)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CALL:g} s"
    if isinstance(error, OSError):
        return printable((error.strerror or str(error) or type(error).__name__)[:300])
    return f"no answer in HTTP ({type(error).__name__})"


async def look(where: Place) -> Shown:
    """What its `GET /fleet` shows. Raises `Unreachable` and `Refused`."""
    document = await _ask(where, "GET", "/fleet")
    try:
        return shown(document)
    except ValueError:
        raise Unreachable(f"{where.url}: what answers is not this service") from None


async def obey(order: Order, token: str | None, where: Place) -> Request:
    """Have it do what is ordered. Raises `Unreachable` and `Refused`."""
    told: dict[str, object] = {"by": order.by, "instance": order.instance}
    if order.on:
        told |= {"reason": order.reason, "for": order.seconds, "force": order.force, "quiet": order.quiet}
        body = json.dumps({name: value for name, value in told.items() if value})
        document = await _ask(where, "PUT", "/maintenance", body=body, token=token)
    else:
        told |= {"force": "true" if order.force else None}
        query = urlencode({name: value for name, value in told.items() if value}, quote_via=quote)
        document = await _ask(where, "DELETE", f"/maintenance{query and '?'}{query}", token=token)
    try:
        return requested(document, on=order.on, quiet=order.quiet)
    except ValueError:
        raise Unreachable(f"{where.url}: what answers is not this service") from None


Told = TypeVar("Told")


async def each(
    places: Sequence[Place], ask: Callable[[Place], Awaitable[Told]]
) -> list[tuple[Place, Told | Unreachable | Refused]]:
    """What `ask` says of each of them, in their order."""
    found: dict[int, Told | Unreachable | Refused] = {}

    async def one(number: int) -> None:
        try:
            found[number] = await ask(places[number])
        except (Unreachable, Refused) as failure:
            found[number] = failure

    async with trio.open_nursery() as nursery:
        for number in range(len(places)):
            nursery.start_soon(one, number)
    return [(where, found[number]) for number, where in enumerate(places)]


async def follow(
    places: Sequence[Place],
    requests: Sequence[Request | None],
    tell: Callable[[Standing], None],
    trouble: Callable[[str], None],
) -> Standing:
    """Follow how they answer their requests (None: it did not take one), until all have. Waits as long as it takes."""
    seen = [Seen(where.url, request) for where, request in zip(places, requests, strict=True)]
    standing = together([one.standing() for one in seen])
    tell(standing)

    async def watch(where: Place, one: Seen) -> None:
        nonlocal standing
        while True:
            try:
                one.answered(await look(where))
            except (Unreachable, Refused) as failure:
                one.silent(trio.current_time())
                trouble(str(failure))
            now = together([one.standing() for one in seen])
            if now != standing:
                standing = now
                tell(standing)
            if standing.result is not None:
                nursery.cancel_scope.cancel(reason="there is an answer")
            await trio.sleep(EVERY)

    async with trio.open_nursery() as nursery:
        for where, one, request in zip(places, seen, requests, strict=True):
            if request is not None:
                nursery.start_soon(watch, where, one)
    return standing
