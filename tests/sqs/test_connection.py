"""One connection, in memory: an odd answer is an answer or a clear error, and leaves a connection either good or closed."""

import gzip
import zlib
from typing import Any

import pytest
import trio
import trio.testing

from svc.sqs import connection as http
from svc.sqs.background import background
from svc.sqs.connection import Answer, Connection, ConnectionBroke, NotAnAnswer

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


class Line:
    """A connection in memory, and the server's end of it."""

    def __init__(self) -> None:
        self.ours, self.server = trio.testing.memory_stream_pair()
        self.closed = 0
        self.connection = Connection(self.ours, self._close)

    def _close(self) -> None:
        self.closed += 1
        self.ours.send_stream.close()  # type: ignore[attr-defined]
        self.ours.receive_stream.close()  # type: ignore[attr-defined]

    async def exchange(self, *parts: bytes, then: str = "wait") -> Answer:
        """A request, answered with these parts one after the other; then the server waits, or closes."""

        async def serve() -> None:
            received = b""
            while b"\r\n\r\n" not in received:
                received += await self.server.receive_some()
            for part in parts:
                await self.server.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
            if then == "close":
                await self.server.send_eof()

        async with background("answered") as nursery:
            nursery.start_soon(serve)
            return await self.connection.exchange(REQUEST)


async def outcome(*parts: bytes, then: str = "close") -> tuple[Any, Line]:
    line = Line()
    with trio.fail_after(5):
        try:
            return await line.exchange(*parts, then=then), line
        except (ConnectionBroke, NotAnAnswer) as error:
            return error, line


def head(*lines: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    return "".join([f"HTTP/{version} {status}\r\n", *(f"{line}\r\n" for line in lines), "\r\n"]).encode("latin-1")


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return head("Transfer-Encoding: chunked") + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def gzipped(body: bytes, encoding: str = "gzip") -> bytes:
    return head(f"Content-Length: {len(body)}", f"Content-Encoding: {encoding}") + body


BODY = b'{"Messages": []}'
TWO_MEMBERS = gzip.compress(BODY[:5]) + gzip.compress(BODY[5:])
BARE_DEFLATE = zlib.compressobj(wbits=-15)

GOOD = {
    # name: what the server sends before it closes, the status, the body, and whether the connection could have been used again
    "plain": (OK, 200, b"{}", True),
    "no body": (head("Content-Length: 0"), 200, b"", True),
    "no content": (head(status="204 No Content"), 204, b"", True),
    "not modified": (head(status="304 Not Modified"), 304, b"", True),
    "an error": (head("Content-Length: 2", status="400 Bad Request") + b"{}", 400, b"{}", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
    "a reason of many words": (head("Content-Length: 2", status="503 Slow: " + "x" * 1000) + b"{}", 503, b"{}", True),
    "status 999": (head("Content-Length: 2", status="999 Odd") + b"{}", 999, b"{}", True),
    "it will close": (head("Content-Length: 2", "Connection: close") + b"{}", 200, b"{}", False),
    "it will close, shouted": (head("Content-Length: 2", "CONNECTION: CLOSE") + b"{}", 200, b"{}", False),
    "it will close, among others": (head("Content-Length: 2", "Connection: x, close") + b"{}", 200, b"{}", False),
    "HTTP/1.0": (head("Content-Length: 2", version="1.0") + b"{}", 200, b"{}", False),
    "HTTP/1.0 that stays": (head("Content-Length: 2", "Connection: keep-alive", version="1.0") + b"{}", 200, b"{}", True),
    "no length": (head() + BODY, 200, BODY, False),
    "no length, HTTP/1.0": (head(version="1.0") + BODY, 200, BODY, False),
    "no length, no body": (head(), 200, b"", False),
    "no length, although it says it stays": (head("Connection: keep-alive") + BODY, 200, BODY, False),
    "chunked": (chunked(BODY), 200, BODY, True),
    "many chunks": (chunked(*[BODY[n : n + 1] for n in range(len(BODY))]), 200, BODY, True),
    "chunks in capitals": (head("Transfer-Encoding: Chunked") + b"A\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
    "chunks with extensions": (head("Transfer-Encoding: chunked") + b"2;a=b\r\n{}\r\n0;c\r\n\r\n", 200, b"{}", True),
    "chunks with trailers": (chunked(BODY, end=b"0\r\nX-Checksum: 1\r\nX-More:\r\n\r\n"), 200, BODY, True),
    "no chunks": (chunked(), 200, b"", True),
    "gzip": (gzipped(gzip.compress(BODY)), 200, BODY, True),
    "gzip under its old name": (gzipped(gzip.compress(BODY), "X-GZIP"), 200, BODY, True),
    "gzip of two members": (gzipped(TWO_MEMBERS), 200, BODY, True),
    "gzip of nothing": (gzipped(gzip.compress(b"")), 200, b"", True),
    "gzip in chunks": (
        head("Transfer-Encoding: chunked", "Content-Encoding: gzip")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY)),
        200, BODY, True,
    ),
    "deflate": (gzipped(zlib.compress(BODY), "deflate"), 200, BODY, True),
    "bare deflate": (gzipped(BARE_DEFLATE.compress(BODY) + BARE_DEFLATE.flush(), "deflate"), 200, BODY, True),
    "identity": (gzipped(BODY, "identity"), 200, BODY, True),
    "100 before it": (head(status="100 Continue") + OK, 200, b"{}", True),
    "103 before it": (head("Link: </a>; rel=preload", status="103 Early Hints") + OK, 200, b"{}", True),
    "five interim answers": (head(status="102 Processing") * 5 + OK, 200, b"{}", True),
    "a header twice": (head("Content-Length: 2", "X-A: 1", "x-a: 2") + b"{}", 200, b"{}", True),
    "an empty header": (head("X-Empty:", "Content-Length: 2") + b"{}", 200, b"{}", True),
    "blanks around a value": (head("Content-Length:    2   ", "X-A: \t 1 \t") + b"{}", 200, b"{}", True),
    "bytes that are no ASCII": (head("X-A: \xe4\xf6\xfc", "Content-Length: 2") + b"{}", 200, b"{}", True),
    "a large head": (head(*[f"X-{n}: {'y' * 900}" for n in range(60)], "Content-Length: 2") + b"{}", 200, b"{}", True),
    "a hundred cookies": (head(*["Set-Cookie: a=b"] * 100, "Content-Length: 2") + b"{}", 200, b"{}", True),
    "more behind it": (OK + b"garbage", 200, b"{}", False),
    "another answer behind it": (OK + OK, 200, b"{}", False),
    "half an answer behind it": (OK + OK[:20], 200, b"{}", False),
    "HTTP/1.1 that upgrades nothing": (head("Content-Length: 2", "Upgrade: h2c") + b"{}", 200, b"{}", True),
}  # fmt: skip

BROKEN = {
    # What the server sends before it closes, and whether a byte of an answer had come.
    "nothing": (b"", False),
    "one byte": (b"H", True),
    "half a status line": (b"HTTP/1.1 20", True),
    "half a head": (OK[:30], True),
    "a head and no end": (OK[:70], True),
    "half a body": (OK[:-1], True),
    "no body": (OK[:-2], True),
    "half of its chunks": (chunked(BODY)[:-12], True),
    "no last chunk": (chunked(BODY, end=b""), True),
    "half a last chunk": (chunked(BODY, end=b"0\r\n"), True),
    "interim answers only": (head(status="100 Continue"), True),
}

WRONG = {
    "another protocol": b"220 smtp.example.org ESMTP\r\n",
    "TLS where none is expected": b"\x15\x03\x01\x00\x02\x02\x28",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    "HTTP/0.9": b"<html>It works!</html>",
    "HTTP/3.7": b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a request": REQUEST,
    "no version": b"200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a length that is no number": head("Content-Length: two") + b"{}",
    "a negative length": head("Content-Length: -1") + b"{}",
    "a length beyond all numbers": head(f"Content-Length: {'9' * 40}") + b"{}",
    "two lengths": head("Content-Length: 2", "Content-Length: 3") + b"{}",
    "a length and chunks": head("Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is no number": head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond all numbers": head("Transfer-Encoding: chunked") + b"f" * 30 + b"\r\n{}",
    "a chunk that is longer than it says": head("Transfer-Encoding: chunked") + b"1\r\n{}\r\n0\r\n\r\n",
    "a length after its chunks": chunked(BODY, end=b"0\r\nContent-Length: 9\r\n\r\n"),
    "a header without a colon": b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    "a header with a blank in its name": b"HTTP/1.1 200 OK\r\nContent Length: 2\r\n\r\n{}",
    "a zero byte in a header": b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "a folded header": b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "a head without an end": head(*[f"X-{n}: {'y' * 900}" for n in range(100)])[:-2] + b"X: " + b"y" * 10_000,
    "a status line without an end": b"HTTP/1.1 200 " + b"x" * 100_000,
    "interim answers without an end": head("Link: " + "x" * 1000, status="103 Early Hints") * 100,
    "an upgrade": head("Upgrade: websocket", "Connection: Upgrade", status="101 Switching Protocols"),
    "gzip that is none": gzipped(BODY),
    "gzip that is cut off": gzipped(gzip.compress(BODY * 50)[:-12]),
    "gzip with a wrong checksum": gzipped(gzip.compress(BODY)[:-8] + b"\x00" * 8),
    "gzip of many members": gzipped(gzip.compress(b"") * 100 + gzip.compress(BODY)),
    "gzip with something behind it": gzipped(gzip.compress(BODY) + b"garbage"),
    "an encoding that was not asked for": gzipped(b"\x1b\x0f\x00\xf8", "br"),
    "encodings upon encodings": gzipped(gzip.compress(gzip.compress(BODY)), "gzip, gzip"),
}


@pytest.mark.parametrize("how", GOOD)
@pytest.mark.parametrize("pace", ["at once", "byte by byte"])
async def test_what_is_an_answer(how: str, pace: str, autojump_clock: trio.testing.MockClock) -> None:
    sent, status, body, reusable = GOOD[how]
    if len(sent) > 2000 and pace != "at once":
        sent_parts: tuple[bytes, ...] = tuple(sent[n : n + 997] for n in range(0, len(sent), 997))
    else:
        sent_parts = (sent,) if pace == "at once" else tuple(sent[n : n + 1] for n in range(len(sent)))
    found, line = await outcome(*sent_parts)
    assert isinstance(found, Answer), found
    assert (found.status, found.body) == (status, body)
    if pace == "at once" or "behind it" not in how:  # what comes later is found before the next request
        assert line.connection.is_open == reusable
    assert bool(line.closed) != line.connection.is_open


@pytest.mark.parametrize("how", BROKEN)
async def test_what_breaks_off(how: str, autojump_clock: trio.testing.MockClock) -> None:
    sent, began = BROKEN[how]
    found, line = await outcome(sent) if sent else await outcome()
    assert isinstance(found, ConnectionBroke)
    assert (found.was_sent, found.answer_began) == (True, began)
    assert line.closed


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("pace", ["at once", "in pieces"])
async def test_what_is_no_answer(how: str, pace: str, autojump_clock: trio.testing.MockClock) -> None:
    sent = WRONG[how]
    step = len(sent) if pace == "at once" else max(1, len(sent) // 50)
    found, line = await outcome(*[sent[n : n + step] for n in range(0, len(sent), step)])
    assert isinstance(found, NotAnAnswer), found
    assert str(found)
    assert not any(secret in str(found) for secret in ("smtp", "It works", "websocket"))
    assert line.closed


def test_there_are_enough_of_them() -> None:
    assert len(GOOD) + len(BROKEN) + len(WRONG) >= 60


async def test_it_may_break_off_at_every_byte(autojump_clock: trio.testing.MockClock) -> None:
    answer = head(status="100 Continue") + chunked(b"{", b"}", end=b"0\r\nX-A: 1\r\n\r\n")
    for cut in range(len(answer)):
        found, line = await outcome(*([answer[:cut]] if cut else []))
        assert isinstance(found, ConnectionBroke), answer[:cut]
        assert found.answer_began == (cut > 0)
        assert line.closed
    assert isinstance((await outcome(answer))[0], Answer)


async def test_it_may_be_cancelled_at_every_byte(autojump_clock: trio.testing.MockClock) -> None:
    for cut in range(len(OK)):
        line = Line()
        with trio.move_on_after(3) as scope:
            await line.exchange(OK[:cut])
        assert scope.cancelled_caught
        assert line.closed
        assert not line.connection.is_open
        with pytest.raises(trio.BrokenResourceError):  # the other end sees it at once
            await line.server.send_all(b"x")


async def test_one_answer_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    line = Line()
    for number in range(3):
        body = b"%d" % number
        answer = await line.exchange(head(f"Content-Length: {len(body)}", f"X-N: {number}") + body)
        assert (answer.body, answer.header(b"x-n")) == (body, str(number))
        assert line.connection.is_open
    assert line.closed == 0


@pytest.mark.parametrize("how", ["a length", "chunks", "neither", "gzip"])
async def test_a_body_is_bounded(
    how: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 100_000)
    for size, fits in ((90_000, True), (200_000, False)):
        body = b"x" * size
        sent = {
            "a length": head(f"Content-Length: {size}") + body,
            "chunks": chunked(*[b"x" * 1000] * (size // 1000)),
            "neither": head() + body,
            "gzip": gzipped(gzip.compress(body)),
        }[how]
        found, line = await outcome(*[sent[n : n + 10_000] for n in range(0, len(sent), 10_000)])
        assert isinstance(found, Answer if fits else NotAnAnswer)
        assert fits or "larger than 100000 bytes" in str(found)
        assert fits or line.closed


def test_the_largest_answer_of_sqs_fits() -> None:
    # Ten bodies of 1 MiB, each byte as \\u0041, with handles of a thousand characters and everything else.
    assert http.MAX_BODY > 10 * (6 * 1_048_576 + 20_000)


async def test_an_answer_that_came_before_the_request_was_read_counts(autojump_clock: trio.testing.MockClock) -> None:
    """A server that refuses a large request may answer and close before it has read it."""

    class Deaf:
        def __init__(self) -> None:
            self.left = [head("Content-Length: 2", status="413 Too Large") + b"{}", b""]

        async def send_all(self, data: bytes) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            return self.left.pop(0)

    closed: list[bool] = []
    connection = Connection(Deaf(), lambda: closed.append(True))
    assert (await connection.exchange(REQUEST)).status == 413
    assert closed
    deaf = Deaf()
    deaf.left = [b""]
    with pytest.raises(ConnectionBroke) as caught:
        await Connection(deaf, lambda: None).exchange(REQUEST)
    assert (caught.value.was_sent, caught.value.answer_began) == (False, False)


async def test_how_long_a_server_keeps_it(autojump_clock: trio.testing.MockClock) -> None:
    for told, seconds in (("timeout=5, max=100", 5.0), ("max=3", None), ("timeout=", None), ("timeout=1e3", None)):
        line = Line()
        await line.exchange(head("Content-Length: 0", f"Keep-Alive: {told}"))
        assert line.connection.idle_seconds == seconds
