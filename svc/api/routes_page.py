"""The page for people (`GET /`), its files, and its live feed (`GET /events`).

The page is static files in `page/`: no build step, nothing from outside, no script or style within the HTML. The policy in its
headers holds the browser to that, and to writing text as text (trusted types: no markup can be made of a string). Page and feed
answer in maintenance too, and only read; what changes something goes through the routes that need the token.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import quart
from quart.wrappers.response import ResponseBody

from svc.api.docs_page import page
from svc.api.feed import Feed, TooManyWatchers, Watcher
from svc.api.openapi import DESCRIPTION

FOLDER = Path(__file__).parent / "page"

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/letters.js": ("letters.js", "text/javascript; charset=utf-8"),
    "/token.js": ("token.js", "text/javascript; charset=utf-8"),
    "/elements.js": ("elements.js", "text/javascript; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}
"""Path → file and type."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

SAFE = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Headers of everything that a browser shows."""


def docs() -> quart.Response:
    """`GET /docs`, which is gated as `/openapi.json` is."""
    return quart.Response(_DOCS, content_type="text/html; charset=utf-8", headers=SAFE)


_DOCS = page(DESCRIPTION)


def add(app: quart.Quart, feed: Feed) -> None:
    """Add the routes that are not gated."""
    for path, (name, kind) in FILES.items():
        app.add_url_rule(path, endpoint=name, view_func=_file((FOLDER / name).read_bytes(), kind), methods=["GET"])

    @app.get("/events")
    async def events() -> quart.Response:
        kind = "text/event-stream; charset=utf-8"
        if quart.request.method == "HEAD":
            return quart.Response(b"", content_type=kind, headers=SAFE)
        if feed.is_full:
            raise TooManyWatchers
        answer = quart.Response(_Stream(feed), content_type=kind, headers=SAFE)
        answer.timeout = None
        return answer


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[quart.Response]]:
    async def show() -> quart.Response:
        return quart.Response(content, content_type=kind, headers=SAFE)

    return show


class _Stream(ResponseBody):
    """A watcher as the body of an answer: it watches from the first byte to the last, or until the client has gone. An iterator
    and no generator: those are left to the garbage collector when a cancellation meets them between two pieces."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._watcher: Watcher | None = None

    async def __aenter__(self) -> Self:
        self._watcher = self._feed.watch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        text = await self._watcher.next() if self._watcher is not None else None
        if text is None:
            raise StopAsyncIteration
        return text.encode()
