"""A small HTTP server in SQS's place, whose answers are written as bytes."""

import json
from collections.abc import Callable
from functools import partial

import trio

Respond = Callable[[str, int], bytes | None]
"""From the operation and the number of the request to the bytes of an answer; None: never answer."""


def answer(body: object, status: int = 200, headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    return head.encode() + content


def error(code: str, status: int = 400, text: str = "what SQS says") -> bytes:
    return answer({"__type": f"com.amazonaws.sqs#{code}", "message": text}, status)


class Server:
    """A small HTTP server. `requests` counts what arrived, by operation."""

    def __init__(self, respond: Respond) -> None:
        self.requests: dict[str, int] = {}
        self._respond = respond

    async def start(self, nursery: trio.Nursery) -> str:
        [listener] = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        return f"http://127.0.0.1:{listener.socket.getsockname()[1]}"

    async def _serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in received:
                    more = await stream.receive_some()
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                fields = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))
                }
                while len(received) < int(fields["content-length"]):
                    received += await stream.receive_some()
                received = received[int(fields["content-length"]) :]
                operation = fields["x-amz-target"].partition(".")[2]
                self.requests[operation] = self.requests.get(operation, 0) + 1
                reply = self._respond(operation, self.requests[operation])
                if reply is None:
                    await trio.sleep_forever()
                    return
                await stream.send_all(reply)
                if b"Content-Length" not in reply or b"close" in reply:
                    return
