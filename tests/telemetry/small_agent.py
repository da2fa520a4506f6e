"""The agent of ECS, as far as we ask it: a real HTTP server on loopback."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TASK = "arn:aws:ecs:us-west-2:111122223333:task/default/158d1c8083dd49d6b527399fd6414f5c"


class SmallAgent:
    def __init__(self) -> None:
        self.put: list[dict[str, Any]] = []
        """What was asked, in order."""
        self.answer: bytes | None = None
        """In place of what it would say; with its status."""
        self.heeds = True
        """Whether it does what it is asked to."""
        self.status = 200
        self.drip = 0.0
        """Seconds between two bytes of the answer, which then has no end."""
        self.slow = 0.0
        """Seconds before it answers; it has done by then what it was asked to."""
        self.url = ""
        self._until = float("-inf")

    @property
    def protected(self) -> bool:
        """It ends by itself, as ECS's does."""
        return time.monotonic() < self._until

    def set(self, asked: dict[str, Any]) -> None:
        minutes = asked["ExpiresInMinutes"] if asked["ProtectionEnabled"] else 0
        self._until = time.monotonic() + minutes * 60

    def say(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        asked = json.loads(handler.rfile.read(length)) if length else {}
        if handler.command == "PUT" and handler.path == "/api/task-protection/v1/state":
            self.put.append(asked)
            on = asked["ProtectionEnabled"]
            if self.heeds:
                self.set(asked)
            expires = "2030-01-01T00:00:00Z" if on else None
            told: object = {"protection": {"ProtectionEnabled": on, "ExpirationDate": expires, "TaskArn": TASK}}
        elif handler.command == "GET" and handler.path == "/v4/container/task":
            told = {"Cluster": "default", "TaskARN": TASK, "Family": "orders", "Containers": []}
        else:
            raise AssertionError(f"{handler.command} {handler.path}")
        content = json.dumps(told).encode() if self.answer is None else self.answer
        time.sleep(self.slow)
        handler.send_response(self.status)
        if not self.drip:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if self.drip:
            for _ in range(40):
                handler.wfile.write(b" ")
                time.sleep(self.drip)
        handler.wfile.write(content)


@contextmanager
def small_agent() -> Iterator[SmallAgent]:
    agent = SmallAgent()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            agent.say(self)

        do_PUT = do_GET

        def log_message(self, *told: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked has gone
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    agent.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield agent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
