"""The bench's handle on the stub: starts the process, puts messages into it, asks it what it counted."""

import http.client
import json
import os
import sys
from pathlib import Path
from typing import Any

from svc.devstack.child import Child


class Stub(Child):
    """`stub.py` on a core of its own. On a leash like the rest of the embedded stack: it dies with us."""

    name = "sqs-stub"

    def __init__(self, core: int | None = None, certificate: tuple[Path, Path] | None = None) -> None:
        """`certificate`, with its key: the stub speaks TLS too, at `tls_url`."""
        super().__init__()
        self._core = core
        self._certificate = certificate
        self._tls_port = 0
        self._connection: http.client.HTTPConnection | None = None

    @property
    def url(self) -> str:
        """Endpoint, as in `AWS_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        """What a client has to trust."""
        assert self._certificate is not None
        return self._certificate[0]

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self._tls_port}"

    def queue_url(self, name: str) -> str:
        return f"{self.url}/000000000000/{name}"

    def _program(self) -> list[str]:
        return [sys.executable, "-m", "tests.bench.stub", str(self.port or 0), *map(str, self._certificate or ())]

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def _ready(self, lines: list[str]) -> bool:
        if not lines:
            return False
        self.port, *more = map(int, lines[0].split())
        self._tls_port = more[0] if more else 0
        if self._core is not None:
            os.sched_setaffinity(self.pid, {self._core})
        return True

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        super().stop()

    def errors(self) -> str:
        """What the stub wrote to its standard error: calls that it did not understand."""
        return (self._directory / "stderr").read_text("utf-8", "replace")

    def control(self, action: str, **request: Any) -> dict[str, Any]:
        """One call of the control API (`stub.Control`)."""
        return self._post(f"/bench/{action}", {}, request)

    def sqs(self, action: str, **request: Any) -> dict[str, Any]:
        """One call of SQS's JSON protocol, by hand."""
        return self._post("/", {"X-Amz-Target": f"AmazonSQS.{action}"}, request)

    def _post(self, path: str, headers: dict[str, str], request: dict[str, Any]) -> dict[str, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self._connection.request("POST", path, json.dumps(request), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the stub refused {path} {request}: {text.decode()[:500]}")
        found: dict[str, Any] = json.loads(text)
        return found
