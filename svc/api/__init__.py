"""The HTTP API, the page for people and its live feed: snapshots of the service → answers.

Lives here: the server, the routes, the limits on connections and bodies, the page, the API's own description (OpenAPI).
Never here: background work, decisions about messages or maintenance phases. A look changes nothing.
Journey: a look (snapshots → `bodies.py`, `page_content.py` → an answer); an order of an operator goes down to `svc.maintenance`.
Begin reading at `app.py`: routes from top to bottom. The names below are the modules that other suites may use.
"""

__all__ = ["app", "feed", "server"]
