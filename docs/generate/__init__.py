"""The reference pages of the documents, made from the code: `python -m docs.generate` writes them, `--check` names what is stale.

A page is a function without arguments that returns Markdown. Nothing here is installed with svc.
"""

from collections.abc import Callable
from pathlib import Path

from docs.generate import commands, http_api, logs, python_api, telemetry
from docs.generate import settings as settings_page

FOLDER = Path(__file__).parent.parent / "reference"

PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page.page,
    "commands.md": commands.page,
    "http-api.md": http_api.page,
    "python-api.md": python_api.page,
    "metrics.md": telemetry.metrics_page,
    "alerts.md": telemetry.alerts_page,
    "log-fields.md": logs.page,
}


def stale() -> list[str]:
    """The names of pages whose file is missing or differs from what the code says now."""
    return [
        name
        for name, page in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != page()
    ]


def write() -> list[str]:
    """Write what is stale; returns the names of what was written."""
    names = stale()
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        (FOLDER / name).write_text(PAGES[name](), "utf-8")
    return names
