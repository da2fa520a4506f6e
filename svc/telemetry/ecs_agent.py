"""HTTP to the agent of ECS, which listens beside the task: one short question at a time, JSON both ways.

A question runs in a thread, which is left behind when its time is over: an agent that is mute, slow or talks without end costs a
thread for a while and nothing else. Proxies are not asked.
"""

import http.client
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio

from svc.settings import printable

LIMIT = 65_536
"""Bytes of an answer. One is a few hundred; a task's metadata some thousand."""


class AgentError(Exception):
    """The agent did not do it. The text says why."""


class Agent:
    def __init__(self, url: str) -> None:
        """`url`: what the paths are below, as ECS puts it into the environment."""
        self._url = url.rstrip("/")
        self._threads: trio.CapacityLimiter | None = None

    async def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, seconds: float
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of its answer, whatever the status is. Raises `AgentError`."""
        if self._threads is None:
            self._threads = trio.CapacityLimiter(2)
        exchange = partial(_exchange, self._url + path, method, None if body is None else json.dumps(body), seconds)
        try:
            with trio.fail_after(seconds):
                status, content = await trio.to_thread.run_sync(exchange, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError:
            raise AgentError(f"no answer within {seconds:g} s") from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise AgentError(f"its answer (HTTP {status}) is no JSON object")
        return status, found


def _exchange(url: str, method: str, body: str | None, seconds: float) -> tuple[int, bytes]:
    """In a thread."""
    until = time.monotonic() + seconds
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise AgentError(f"{printable(url[:200])!r} is no http URL")
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, parts.path or "/", body, headers)
            with connection.getresponse() as answer:
                content = b""
                while more := answer.read1(LIMIT):
                    content += more
                    if len(content) > LIMIT or time.monotonic() > until:
                        raise AgentError(f"its answer has no end (HTTP {answer.status})")
                return answer.status, content
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentError(f"{type(error).__name__}: {printable(str(error))[:200]}") from None
