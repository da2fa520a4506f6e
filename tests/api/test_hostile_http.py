"""Whatever comes over the socket: a clear answer or a closed connection, never a 500, a hang or an ERROR in the log, and the
next ordinary request is served. Real sockets, real time."""

import json
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import httpx
import pytest
import trio

from svc import Message
from svc.api import app as api
from svc.api import request_bodies, server
from svc.core import Core
from svc.settings import load
from svc.testing import SimulatedQueue, SimulatedSwitch

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx makes one for each client, which takes longer than most tests
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /messages/send HTTP/1.1\r\nHost: x\r\n" + JSON
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
GOOD = b'{"message": "x"}'


@dataclass
class Served:
    """An API that listens, on a core with a queue in memory."""

    url: str
    queue: SimulatedQueue
    core: Core
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def works(self) -> None:
        """The next ordinary request is served."""
        async with httpx.AsyncClient(base_url=self.url, timeout=5, trust_env=False, verify=NO_TLS) as client:
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.post("/messages/send", json={"message": "ordinary"})).status_code == 200

    async def stopped_within(self, seconds: float) -> None:
        self.stop.set()
        with trio.fail_after(seconds):
            await self.ended.wait()


@asynccontextmanager
async def served(
    *, body_timeout: float = 10, keep_alive: float = 5, send_timeout: float = 10, **variables: str
) -> AsyncIterator[Served]:
    async def process(message: Message) -> None:
        """Done."""

    settings = load({"SQS_WAIT_TIME_SECONDS": "0", "SQS_POLL_INTERVAL": "0.05", **variables})
    queue, switch = SimulatedQueue(), SimulatedSwitch()
    core = Core(settings, queue, process, switch.watcher)
    app = api.make(core, body_timeout=body_timeout)
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Served]) -> None:
            async with trio.open_nursery() as inner:
                held = Served("", queue, core)
                held.url = await inner.start(
                    lambda task_status: server.serve(
                        app,
                        "127.0.0.1",
                        0,
                        held.stop,
                        keep_alive=keep_alive,
                        send_timeout=send_timeout,
                        task_status=task_status,
                    )
                )
                task_status.started(held)
            held.ended.set()

        await nursery.start(core.run)
        held = await nursery.start(serve)
        while not core.gate.statistics().open:
            await trio.sleep(0.01)
        yield held
        await held.stopped_within(server.GRACE + 1)
        nursery.cancel_scope.cancel()


def never(answer: bytes) -> bool:
    return False


def complete(answer: bytes) -> bool:
    """Whether this is one whole answer."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(blank) and (length is None or len(body) >= int(length[1]))


HANGS = 20.0
"""Seconds after which it is the server that hangs, and not a busy machine."""


async def talk(held: Served, *sent: bytes | float, until: Callable[[bytes], bool] = never) -> bytes:
    """What comes back for what is sent (a number: a pause), until the server closes, or `until` is content."""
    got = bytearray()
    with trio.fail_after(HANGS):
        async with await trio.open_tcp_stream("127.0.0.1", held.port) as stream:
            try:
                for piece in sent:
                    if isinstance(piece, float):
                        await trio.sleep(piece)
                    else:
                        await stream.send_all(piece)
            except trio.BrokenResourceError:
                pass  # it closed before it had read everything; its answer can still be read
            try:
                while not until(bytes(got)) and (data := await stream.receive_some(65_536)):
                    got += data
            except trio.BrokenResourceError:
                got += b"<reset>"
    return bytes(got)


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin1").split("\r\n")
    assert first.startswith("HTTP/1.1 "), answer[:200]
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def sized(body: bytes, *headers: bytes) -> bytes:
    return POST + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks: bytes) -> bytes:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


def websocket(
    *more: bytes, key: bytes = b"dGhlIHNhbXBsZSBub25jZQ==", version: bytes = b"13", http: bytes = b"1.1"
) -> bytes:
    return (
        b"GET /health/live HTTP/" + http + b"\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: " + key + b"\r\nSec-WebSocket-Version: " + version + b"\r\n" + b"".join(more) + b"\r\n"
    )


def upgrade_to_h2c(settings: bytes | None) -> bytes:
    named = b"" if settings is None else b"HTTP2-Settings: " + settings + b"\r\n"
    return GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + named + b"\r\n"


def http2(*headers: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    configuration = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    client = h2.connection.H2Connection(configuration)
    client.initiate_connection()
    if headers:
        client.send_headers(1, list(headers), end_stream=not data)
    if data:
        client.send_data(1, data, end_stream=True)
    return client.data_to_send()


H2_POST = ((b":method", b"POST"), (b":path", b"/health"), (b":scheme", b"http"), (b":authority", b"x"))
H2_PATH = ((b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"x"))
H2_CONNECT = ((b":method", b"CONNECT"), (b":authority", b"x"))
MASKED = b"\x81\x85\x01\x02\x03\x04garba"

# What is sent (a number: a pause), and the statuses that it may be answered with; None: closed without a word.
RAW: dict[str, tuple[Sequence[bytes | float], set[int | None]]] = {
    # request lines
    "nothing at all": ([b""], {None}),
    "half a request line": ([b"GET /health HT"], {None}),
    "HTTP/0.9": ([b"GET /\r\n"], {400, None}),
    "no path": ([b"GET HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "only a query": ([b"GET ?x HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "a word as path": ([b"GET word HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "asterisk": ([b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"], {404}),
    "absolute": ([b"GET http://elsewhere/health/live HTTP/1.1\r\nHost: x\r\n\r\n"], {200}),
    "absolute without path": ([b"GET http://elsewhere HTTP/1.1\r\nHost: x\r\n\r\n"], {200}),
    "absolute with only a query": ([b"GET http://elsewhere?x HTTP/1.1\r\nHost: x\r\n\r\n"], {200}),
    "absolute and bad": ([b"GET http://[x HTTP/1.1\r\nHost: x\r\n\r\n"], {200}),
    "CONNECT": ([b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "bad method": ([b"G\xc3T /health HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "long method": ([b"A" * 300 + b" /health HTTP/1.1\r\nHost: x\r\n\r\n"], {405}),
    "lower-case method": ([b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n"], {200, 405}),
    "HTTP/3.0": ([b"GET /health/live HTTP/3.0\r\nHost: x\r\n\r\n"], {505}),
    "HTTP/9": ([b"GET /health/live HTTP/9\r\nHost: x\r\n\r\n"], {400}),
    "bad bytes in the path": ([b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "NUL in the path": ([b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    "binary junk": ([bytes(range(256)) * 20], {400}),
    "zeros": ([b"\0" * 5000], {400}),
    "newlines": ([b"\r\n" * 5000], {400, None}),
    "TLS": ([bytes.fromhex("16030100f8010000f40303") + bytes(range(200))], {400}),
    "endless line": ([b"GET /" + b"a" * 100_000], {431}),
    "very long path": ([b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"], {404}),
    "two spaces": ([b"GET  /health/live HTTP/1.1\r\nHost: x\r\n\r\n"], {400}),
    # headers
    "no host": ([b"GET /health/live HTTP/1.1\r\n\r\n"], {400}),
    "two hosts": ([GET + b"Host: y\r\n\r\n"], {400}),
    "bad host": ([b'GET /health/live HTTP/1.1\r\nHost: "<[::x\r\n\r\n'], {200, 400}),
    "huge header": ([GET + b"X: " + b"a" * 100_000 + b"\r\n\r\n"], {431}),
    "many headers": ([GET + b"X: a\r\n" * 20_000 + b"\r\n"], {431}),
    "header without colon": ([GET + b"nonsense\r\n\r\n"], {400}),
    "header with blank name": ([GET + b" : x\r\n\r\n"], {400, 200}),
    "NUL in a header": ([GET + b"X: a\0b\r\n\r\n"], {400}),
    "bytes in headers": (
        [
            GET
            + b"Cookie: \xff=\xfe; =;\r\nAccept: \xff\r\nAuthorization: \xff\r\nRange: \xff\r\nX-Forwarded-For: \xff\r\n\r\n"
        ],
        {200, 400},
    ),
    "folded header": ([GET + b"X: a\r\n b\r\n\r\n"], {200, 400}),
    # bodies
    "no body, no length": ([POST + b"\r\n"], {400}),
    "length too long": ([POST + b"Content-Length: 50\r\n\r\n" + GOOD], {408}),
    "length too short": ([POST + b"Content-Length: 5\r\n\r\n" + GOOD], {400}),
    "length negative": ([POST + b"Content-Length: -3\r\n\r\nabc"], {400}),
    "length a word": ([POST + b"Content-Length: abc\r\n\r\nabc"], {400}),
    "length hexadecimal": ([POST + b"Content-Length: 0x10\r\n\r\n" + GOOD], {400}),
    "length with a plus": ([POST + b"Content-Length: +16\r\n\r\n" + GOOD], {400}),
    "length huge": ([POST + b"Content-Length: 99999999999999999999\r\n\r\nabc"], {413}),
    "length beyond all": ([POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nabc"], {400, 413}),
    "two lengths": ([POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"], {400}),
    "the same length twice": ([POST + b"Content-Length: 16\r\nContent-Length: 16\r\n\r\n" + GOOD], {200, 400}),
    "length and good chunks": (
        [
            POST
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n"
            + GOOD
            + b"\r\n0\r\n\r\n"
            + GET
            + b"\r\n"
        ],
        {400},
    ),
    "length and chunks": ([POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], {400}),
    "chunked": ([chunked(b"%x\r\n" % len(GOOD), GOOD, b"\r\n0\r\n\r\n")], {200}),
    "chunked with trailer": ([chunked(b"%x\r\n" % len(GOOD), GOOD, b"\r\n0\r\nX: y\r\n\r\n")], {200}),
    "chunk size garbage": ([chunked(b"zz\r\nhello\r\n")], {400}),
    "chunk size garbage later": ([chunked(), 0.1, b"zz\r\nhello\r\n"], {400}),
    "chunk size negative": ([chunked(b"-1\r\nhello\r\n")], {400}),
    "chunk size huge": ([chunked(b"f" * 30 + b"\r\nhello\r\n")], {400, 413}),
    "chunk longer than said": ([chunked(b"2\r\nhello\r\n0\r\n\r\n")], {400}),
    "chunk garbage where nothing is": (
        [b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"],
        {400, 404},
    ),
    "chunk garbage after the answer": (
        [b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 0.2, b"zz\r\nhello\r\n"],
        {404},
    ),
    "unknown transfer encoding": ([POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"], {400, 501}),
    "slow body": ([POST + b"Content-Length: 16\r\n\r\n" + GOOD[:5]], {408}),
    "body of a GET": ([GET + b"Content-Length: 3\r\n\r\nabc"], {200}),
    "body of a GET that never comes": ([GET + b"Content-Length: 3\r\n\r\n"], {200}),
    "expect": ([POST + b"Expect: 100-continue\r\nContent-Length: 16\r\n\r\n", 0.1, GOOD], {100}),
    "expect for too much": ([POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"], {413}),
    "expect for another type": (
        [b"POST /messages/send HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n"],
        {415},
    ),
    "long URL at once": ([b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"], {414}),
    "many headers at once": ([GET + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(60)) + b"\r\n"], {431}),
    "expect nonsense": ([GET + b"Expect: nonsense\r\n\r\n"], {200, 417}),
    "bad UTF-8": ([sized(b'{"message": "\xff"}')], {400}),
    "byte by byte": ([piece for byte in sized(GOOD) for piece in (bytes([byte]), 0.0005)], {200}),
    "two content types": ([sized(GOOD, b"Content-Type: text/plain\r\n")], {200, 400, 415}),
    "charset of bytes": (
        [sized(GOOD).replace(b"application/json", b"application/json; charset=\xff\xfe")],
        {200, 400, 415},
    ),
    # other protocols
    "websocket": ([websocket()], {200}),
    "websocket with data": ([websocket(), 0.1, MASKED], {200}),
    "websocket with data at once": ([websocket() + MASKED], {200}),
    "websocket with a body": ([websocket(b"Content-Length: 5\r\n") + b"hello"], {200}),
    "websocket of bytes": (
        [websocket(b"Sec-WebSocket-Protocol: \xff\r\n", b"Sec-WebSocket-Extensions: \xff\r\n", key=b"\xff")],
        {200},
    ),
    "websocket of another version": ([websocket(version=b"1") + MASKED], {200}),
    "websocket over HTTP/1.0": ([websocket(http=b"1.0")], {200}),
    "h2c": ([upgrade_to_h2c(b"AAMAAABkAARAAAAAAAIAAAAA")], {200}),
    "h2c without settings": ([upgrade_to_h2c(None)], {200}),
    "h2c with garbage": ([upgrade_to_h2c(b"!!!")], {200}),
    "h2 preface": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], {505}),
    "h2 preface and garbage": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"x" * 1000], {505}),
    "h2 with data after the answer": ([http2(*H2_POST, data=b"x" * 1000)], {505}),
    "h2 with bytes in the path": ([http2(*H2_PATH)], {505}),
    "h2 CONNECT": ([http2(*H2_CONNECT)], {505}),
    "unknown upgrade": ([GET + b"Connection: upgrade\r\nUpgrade: foo\r\n\r\n"], {200}),
}


@pytest.mark.parametrize("name", RAW)
async def test_raw(name: str) -> None:
    sent, statuses = RAW[name]
    # What comes slowly and is taken all the same needs time for it, on a busy machine much.
    patience = 5 if name == "byte by byte" else 0.3
    async with served(body_timeout=patience, keep_alive=patience + 0.1) as held:
        answer = await talk(held, *sent, until=complete)
        if answer in (b"", b"<reset>"):
            assert None in statuses
        else:
            status, headers, body = split(answer)
            assert status in statuses, answer[:300]
            if status >= 400:
                length = int(headers["content-length"])
                told = json.loads(body[:length])
                assert (set(told), told["code"]) == ({"error", "message", "code"}, status)
                assert headers["content-type"] == "application/json"
        assert b"HTTP/1.1 500" not in answer
        assert b"Traceback" not in answer
        await held.works()


PATHS = {
    "traversal": "/../../etc/passwd",
    "encoded traversal": "/%2e%2e/%2e%2e/etc/passwd",
    "traversal below": "/messages/..%2fstats",
    "backslashes": "/..\\..\\etc\\passwd",
    "NUL": "/%00",
    "NUL at the end": "/health%00",
    "newline": "/health%0d%0aX:%20y",
    "bad UTF-8": "/%ff%fe",
    "surrogate": "/%ed%a0%80",
    "unicode": "/%F0%9F%98%80/é",
    "only percent": "/%",
    "percent at the end": "/health%2",
    "very long": "/" + "a/" * 4000,
    "parameters": "/health;x=y",
    "double encoded": "/%2568ealth",
    "template": "/{{7*7}}",
    "script": "/<script>alert(1)</script>",
}


async def test_paths() -> None:
    async with served() as held:
        for name, path in PATHS.items():
            raw = b"GET " + httpx.URL("http://x" + path).raw_path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            plain = b"GET " + path.encode("ascii", "ignore") + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            for request in (raw, plain):
                status, _, body = split(await talk(held, request))
                assert status == 404, (name, body)
                assert b"script" not in body
        await held.works()


async def test_queries_change_nothing() -> None:
    async with served() as held, httpx.AsyncClient(base_url=held.url, trust_env=False, verify=NO_TLS) as client:
        for query in ("?", "?x", "?%ff=%ff&&&=%00", "?" + "a=b&" * 2000, "?message=x"):
            assert (await client.get("/health/live" + query)).status_code == 200


def bodies() -> dict[str, tuple[bytes, str | None, int]]:
    """By name: body, type, and the status of the answer. Some are of megabytes."""
    return {
        "plain text": (b"hello", "application/json", 400),
        "empty": (b"", "application/json", 400),
        "NaN": (b'{"message": "x", "delay_seconds": NaN}', "application/json", 400),
        "deep array": (b"[" * 5_000_000, "application/json", 400),
        "deep object": (b'{"a":' * 1_000_000, "application/json", 400),
        "huge number": (b'{"message": "x", "delay_seconds": ' + b"9" * 1_000_000 + b"}", "application/json", 400),
        "number beyond floats": (
            b'{"message": "x", "attributes": {"a": 1' + b"0" * 400 + b"}}",
            "application/json",
            400,
        ),
        "many fields": (
            json.dumps({"message": "x", **dict.fromkeys(map(str, range(100_000)), 1)}).encode(),
            "application/json",
            400,
        ),
        "lone surrogate": (b'{"message": "\\ud83d"}', "application/json", 400),
        "control character": (b'{"message": "\\u0007"}', "application/json", 400),
        "text/plain": (GOOD, "text/plain", 415),
        "no type": (GOOD, None, 415),
        "form": (b"message=x", "application/x-www-form-urlencoded", 415),
        "multipart": (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 415),
        "with charset": (GOOD, "application/json; charset=utf-8", 200),
        "latin-1": ('{"message": "é"}'.encode("latin-1"), "application/json; charset=latin-1", 400),
        "1 MiB": (json.dumps({"message": "x" * request_bodies.MESSAGE_LIMIT}).encode(), "application/json", 200),
        "1 MiB + 1": (
            json.dumps({"message": "x" * (request_bodies.MESSAGE_LIMIT + 1)}).encode(),
            "application/json",
            413,
        ),
        "7 MiB": (json.dumps({"message": "x" * 7 * 1024 * 1024}).encode(), "application/json", 413),
        "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "application/json", 400),
    }


async def test_bodies() -> None:
    async with (
        served() as held,
        httpx.AsyncClient(base_url=held.url, trust_env=False, verify=NO_TLS, timeout=10) as client,
    ):
        for name, (body, kind, status) in bodies().items():
            headers = {} if kind is None else {"Content-Type": kind}
            answer = await client.post("/messages/send", content=body, headers=headers)
            assert answer.status_code == status, (name, answer.text[:300])
            if status != 200:
                told = answer.json()
                assert set(told) == {"error", "message", "code"}
                assert len(answer.content) < 2000
        for encoding, status in (("gzip", 415), ("br, gzip", 415), ("identity", 200)):
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            assert (await client.post("/messages/send", content=GOOD, headers=headers)).status_code == status
        await held.works()


async def test_a_large_body_is_refused_before_it_is_read_and_the_answer_arrives_all_the_same() -> None:
    """Not reset by what is still coming (RFC 9112, 9.6), also when the client reads only after having sent everything."""
    async with served() as held:
        size = 8_000_000
        for head in (POST, b"POST /nothing HTTP/1.1\r\nHost: x\r\n"):
            request = head + b"Content-Length: %d\r\n\r\n" % size
            with trio.fail_after(HANGS):
                async with await trio.open_tcp_stream("127.0.0.1", held.port) as stream:
                    await stream.send_all(request)
                    await stream.send_all(bytes(size))  # raises when the connection is reset
                    answer = b"".join([piece async for piece in stream])
            assert split(answer)[0] in (413, 404)
        # In maintenance nothing of it is read either.
        held.core.gate.enter()
        assert split(await talk(held, POST + b"Content-Length: 6000000\r\n\r\n", bytes(6_000_000)))[0] == 503
        held.core.gate.leave()


async def test_pipelining() -> None:
    async with served() as held:
        requests = GET + b"\r\n" + sized(GOOD) + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + sized(b"no") + GET
        answer = await talk(held, requests + b"Connection: close\r\n\r\n")
        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [200, 200, 404, 400, 200]


async def test_many_requests_on_one_connection() -> None:
    async with served() as held:
        answer = await talk(held, (GET + b"\r\n") * 300 + GET + b"Connection: close\r\n\r\n")
        assert answer.count(b'"status":"live"') == 301


async def test_clients_that_go_away_in_the_middle() -> None:
    async with served(body_timeout=0.5) as held:
        for sent in (
            b"",
            b"GET /hea",
            GET,
            GET + b"\r\n",
            POST + b"Content-Length: 100\r\n\r\nabc",
            sized(GOOD),
            sized(GOOD)[:-1],
        ):
            for reset in (False, True):
                stream = await trio.open_tcp_stream("127.0.0.1", held.port)
                await stream.send_all(sent)
                await trio.sleep(0.01)
                if reset:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await trio.aclose_forcefully(stream)
        await trio.sleep(0.6)
        assert held.core.gate.statistics().under_way == 0
        await held.works()


async def test_slow_bodies_hold_up_nothing() -> None:
    """A hundred of them: others are served meanwhile, they do not count as under way, and each gets its 408 in time."""
    async with served(body_timeout=1) as held:
        answers: list[tuple[int, float]] = []

        async def slow() -> None:
            began = time.monotonic()
            status, headers, _ = split(await talk(held, POST + b"Content-Length: 16\r\n\r\n" + GOOD[:3]))
            assert headers["connection"] == "close"
            answers.append((status, time.monotonic() - began))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(slow)
            await trio.sleep(0.5)
            await held.works()
            assert held.core.gate.statistics().under_way == 0
        assert [status for status, _ in answers] == [408] * 100
        assert max(took for _, took in answers) < 10  # and not one after the other


async def test_slow_heads_are_given_up() -> None:
    async with served(keep_alive=0.5) as held:
        began = time.monotonic()
        assert await talk(held, GET, *[piece for _ in range(40) for piece in (b"X: y\r\n", 0.05)]) in (b"", b"<reset>")
        assert time.monotonic() - began < 2.8
        await held.works()


async def test_a_client_that_does_not_read_is_given_up_and_holds_up_no_stop() -> None:
    """Its answers fill the socket buffers; without a bound the connection would stay for ever, through cancellation too
    (STACK 1.4)."""
    async with served(send_timeout=0.5) as held:
        body = sized(json.dumps({"message": "é" * 200_000}).encode())  # each answer has 1.2 MB
        streams = []
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", held.port)
            streams.append(stream)
            with trio.move_on_after(2):
                try:
                    for _ in range(20):
                        await stream.send_all(body)
                except trio.BrokenResourceError:
                    break
        await held.works()
        began = time.monotonic()
        await held.stopped_within(1.5)
        assert time.monotonic() - began < 1.5
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_a_client_that_does_not_read_is_cut_off_at_the_end_of_the_grace() -> None:
    async with served(send_timeout=60) as held:
        body = sized(json.dumps({"message": "é" * 200_000}).encode())
        stream = await trio.open_tcp_stream("127.0.0.1", held.port)
        with trio.move_on_after(1):
            for _ in range(20):
                await stream.send_all(body)
        await held.stopped_within(server.GRACE + 0.5)
        await trio.aclose_forcefully(stream)


async def test_an_idle_connection_does_not_hold_up_the_stop() -> None:
    async with served() as held, httpx.AsyncClient(base_url=held.url, trust_env=False, verify=NO_TLS) as client:
        assert (await client.get("/health/live")).status_code == 200  # its connection stays open
        silent = await trio.open_tcp_stream("127.0.0.1", held.port)
        await trio.sleep(0.05)
        began = time.monotonic()
        await held.stopped_within(1)
        assert time.monotonic() - began < 1
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", held.port)
        await silent.aclose()


async def test_idle_connections_are_closed() -> None:
    async with served(keep_alive=0.4) as held, await trio.open_tcp_stream("127.0.0.1", held.port) as stream:
        for _ in range(3):
            await trio.sleep(0.2)
            await stream.send_all(GET + b"\r\n")
            got = b""
            while not complete(got):
                got += await stream.receive_some(65_536)
            assert got.startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        with trio.fail_after(3):
            while await stream.receive_some(65_536):
                pass
        assert 0.2 < time.monotonic() - began < 1.5


async def test_a_request_under_way_is_answered_while_the_server_stops() -> None:
    async with served() as held:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await talk(held, sized(GOOD)[:-1], 0.5, GOOD[-1:]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            await held.stopped_within(3)
        assert split(answers[0])[0] == 200


async def test_many_connections_that_do_nothing() -> None:
    async with served(keep_alive=1) as held:
        streams = [await trio.open_tcp_stream("127.0.0.1", held.port) for _ in range(200)]
        await held.works()
        with trio.fail_after(4):
            for stream in streams:
                assert await stream.receive_some(1) == b""
                await stream.aclose()
        await held.works()


async def test_random_bytes() -> None:
    async with served(body_timeout=0.2, keep_alive=0.2) as held:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                junk = os.urandom(2000)
                sent = [junk, GET + junk, sized(junk), chunked(junk), websocket() + junk, http2() + junk][number % 6]
                nursery.start_soon(talk, held, sent)
        await held.works()


async def test_the_address_in_use_is_told() -> None:
    async with served() as held:
        told = f"cannot listen on 127.0.0.1:{held.port}: Address already in use; set HTTP_HOST"
        with pytest.raises(server.CannotListen, match=told):
            await server.serve(api.make(held.core), "127.0.0.1", held.port, trio.Event())


@pytest.mark.parametrize("host", ["::1", "localhost", "127.0.0.1"])
async def test_hosts(host: str) -> None:
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with served() as held, trio.open_nursery() as nursery:
        stop, settings = trio.Event(), load({"HTTP_HOST": host, "HTTP_PORT": "0"})
        url = await nursery.start(api.serve, api.make(held.core), settings, stop)
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            assert (await client.get(url + "/health/live")).status_code == 200
        stop.set()


async def test_a_token_is_compared_as_the_bytes_it_is() -> None:
    token = os.fsdecode("pässwörd".encode() + b"\xff")
    rest = b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    async with served(API_TOKEN=token) as held:
        for sent, status in {
            os.fsencode(token): 200, "pässwörd".encode() + b"\xfe": 403, "pässwördÿ".encode("latin1"): 403, b"\xff": 403,
            "pässwördÿ".encode(): 403, b"x" * 8000: 403, b"": 401,
        }.items():  # fmt: skip
            assert split(await talk(held, POST + b"Authorization: Bearer " + sent + rest))[0] == status, sent


async def test_a_body_is_not_asked_for_from_whom_is_refused() -> None:
    """Expect: 100-continue is how a client asks before it sends much (RFC 9110, 10.1.1)."""
    async with served(API_TOKEN="a-token-nobody-knows") as held:
        head = b"Expect: 100-continue\r\nContent-Length: 16\r\n"
        assert (await talk(held, POST + head + b"\r\n")).startswith(b"HTTP/1.1 401 ")
        token = b"Authorization: Bearer a-token-nobody-knows\r\n"
        order = b"PUT /log-level HTTP/1.1\r\nHost: x\r\n" + JSON + token
        too_long = b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
        assert (await talk(held, order + too_long)).startswith(b"HTTP/1.1 413 ")
        got = await talk(held, POST + token + head + b"\r\n", 0.2, GOOD, until=lambda got: b"message_id" in got)
        assert got.startswith(b"HTTP/1.1 100 ")
        assert b"HTTP/1.1 200 " in got


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "0::0"])
async def test_every_address_is_of_both_kinds(host: str) -> None:
    listener = server._listen(host, 0)
    port = listener.socket.getsockname()[1]
    async with listener:
        for address in ("127.0.0.1", "::1"):
            async with await trio.open_tcp_stream(address, port):
                await (await listener.accept()).aclose()
