"""The way to etcd below its messages: HTTP/2 and gRPC against a member that answers as each test says, on a stream in memory and
in virtual time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.events import PingReceived, RequestReceived, StreamReset
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    PingFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from svc.etcd.connection import within
from svc.etcd.errors import NO_QUORUM, Trouble
from svc.etcd.grpc_calls import LARGEST, call, unary
from svc.etcd.http2 import PING_AFTER, PING_ANSWER, Http2
from tests.etcd.http2_member import Answer, Member, framed

Raw = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def talking(
    answer: Answer, settings: dict[SettingCodes, int] | None = None
) -> AsyncIterator[tuple[Http2, Member]]:
    ours, theirs = trio.testing.memory_stream_pair()
    member = Member(theirs, answer, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.run)
        http2 = Http2(ours, authority="etcd:2379", scheme="http")
        nursery.start_soon(http2.run)
        yield http2, member
        http2.close()
        with trio.fail_after(1):  # and lets go of its stream
            await member.gone.wait()
        nursery.cancel_scope.cancel()


async def hangs_up(theirs: trio.abc.Stream) -> None:
    """The stream at whose other end we were is closed."""
    with trio.fail_after(1):
        while await theirs.receive_some():
            pass


async def ask(http2: Http2, request: bytes = b"?", *, seconds: float = 30) -> bytes:
    with trio.fail_after(seconds):
        (answer,) = await unary(http2, "/etcdserverpb.KV/Range", (), [request])
        return answer


async def good(member: Member, id: int, path: str) -> None:
    await member.good(id)


# -- answers of one call --


async def of_headers(member: Member, id: int, path: str, **headers: str) -> None:
    await member.headers(id, end=True, **headers)


async def of_parts(
    member: Member, id: int, path: str, parts: tuple[bytes, ...] = (), status: str = "0", message: str = ""
) -> None:
    await member.headers(id)
    for part in parts:
        await member.data(id, part)
    await member.trailers(id, status, message)


async def of_no_status(member: Member, id: int, path: str) -> None:
    await member.headers(id)
    await member.data(id, framed(b"yes"), end=True)


async def of_a_reset(member: Member, id: int, path: str, code: ErrorCodes) -> None:
    member.h2.reset_stream(id, code)
    await member.flush()


async def of_a_page(member: Member, id: int, path: str, status: str) -> None:
    await member.headers(id, __status=status, content_type="text/html")
    await member.data(id, b"<h1>Sorry</h1>", end=True)


REFUSED_CALLS: dict[str, tuple[Answer, str]] = {
    "a page": (partial(of_a_page, status="503"), "HTTP status 503"),
    "a page with 200": (partial(of_a_page, status="200"), "not gRPC but text/html"),
    "status in the headers": (partial(of_headers, grpc_status="14", grpc_message="etcdserver: no leader"), "no leader"),
    "status beats HTTP's": (
        partial(of_headers, __status="404", grpc_status="5", grpc_message="gone"),
        "NOT_FOUND: gone",
    ),
    "percent": (
        partial(of_headers, grpc_status="9", grpc_message="caf%C3%A9%0A%zz"),
        "FAILED_PRECONDITION: café\\n%zz",
    ),
    "no UTF-8": (partial(of_headers, grpc_status="2", grpc_message="%ff%fe"), "UNKNOWN: \ufffd\ufffd"),
    "escape sequences": (
        partial(of_headers, grpc_status="2", grpc_message="%1b[2J%e2%80%ae"),
        "UNKNOWN: \\x1b[2J\\u202e",
    ),
    "unknown status": (partial(of_headers, grpc_status="77"), "status 77"),
    "no words": (partial(of_headers, grpc_status="13"), "INTERNAL"),
    "status after the answer": (
        partial(of_parts, parts=(framed(b"yes"),), status="8", message="space"),
        "RESOURCE_EXHAUSTED: space",
    ),
    "no number": (partial(of_headers, grpc_status="ok"), "without a status"),
    "negative": (partial(of_headers, grpc_status="-1"), "without a status"),
    "endless": (partial(of_headers, grpc_status="9" * 5000), "without a status"),
    "no status": (of_no_status, "without a status"),
    "nothing": (partial(of_headers), "without a status"),
    "no message": (partial(of_parts), "no message"),
    "two messages": (
        partial(
            of_parts,
            parts=(
                framed(b"yes"),
                framed(b"no"),
            ),
        ),
        "more than one",
    ),
    "half a message": (partial(of_parts, parts=(framed(b"yes")[:-1],)), "middle of a message"),
    "half a length": (partial(of_parts, parts=(b"\0\0",)), "middle of a message"),
    "compressed": (partial(of_parts, parts=(framed(b"yes", flag=1),)), "compressed"),
    "too large": (partial(of_parts, parts=(b"\0" + (LARGEST + 1).to_bytes(4, "big"),)), f"{LARGEST + 1} bytes"),
    "largest length": (partial(of_parts, parts=(b"\0\xff\xff\xff\xff",)), "4294967295 bytes"),
    "reset": (partial(of_a_reset, code=ErrorCodes.INTERNAL_ERROR), "reset (INTERNAL_ERROR)"),
    "refused": (partial(of_a_reset, code=ErrorCodes.REFUSED_STREAM), "reset (REFUSED_STREAM)"),
    "a code of its own": (partial(of_a_reset, code=0xBEEF), "reset (error 48879)"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED_CALLS)
async def test_an_odd_answer_is_the_trouble_of_its_call(name: str, autojump_clock: trio.testing.MockClock) -> None:
    odd, said = REFUSED_CALLS[name]
    answers = iter([odd, good])

    async def answer(member: Member, id: int, path: str) -> None:
        await next(answers)(member, id, path)

    async with talking(answer) as (http2, _):
        with pytest.raises(Trouble) as caught:
            await ask(http2)
        assert said in caught.value.said
        assert caught.value.remedy
        assert await ask(http2) == b"yes"  # the connection goes on


async def test_what_a_status_means(autojump_clock: trio.testing.MockClock) -> None:
    async with talking(partial(of_headers, grpc_status="14", grpc_message="etcdserver: no leader")) as (http2, _):
        with pytest.raises(Trouble) as caught:
            await ask(http2)
    assert (caught.value.remedy, caught.value.refused) == (NO_QUORUM, False)
    denied = partial(of_headers, grpc_status="7", grpc_message="etcdserver: permission denied")
    async with talking(denied) as (http2, _):
        with pytest.raises(Trouble, match="permission denied") as caught:
            await ask(http2)
    assert (caught.value.denied, caught.value.refused) == (True, True)


# -- what ends the connection --


def frame(kind: type[Frame], id: int, *flags: str, **fields: Any) -> bytes:
    made = kind(id, flags=flags)
    for name, value in fields.items():
        setattr(made, name, value)
    return made.serialize()


SETTINGS = SettingsFrame(0).serialize()

BROKEN: dict[str, tuple[bytes, str]] = {
    "HTTP/1": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "the answer is HTTP/1"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", "the answer is TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/2"),
    "noise": (bytes(range(255, 0, -1)), "not HTTP/2"),
    "nothing": (b"", "closed by the other side"),
    "half a frame": (SETTINGS[:5], "closed by the other side"),
    "half a header": (SETTINGS + b"\0\0\x10\x01\x04\0\0\0\x01abc", "closed by the other side"),
    "data at once": (SETTINGS + frame(DataFrame, 1, data=b"yes"), "not HTTP/2"),
    "data of no call": (SETTINGS + frame(DataFrame, 99, data=b"yes"), "not HTTP/2"),
    "continuation": (SETTINGS + frame(ContinuationFrame, 1, data=b"x"), "not HTTP/2"),
    "push": (SETTINGS + frame(PushPromiseFrame, 1, "END_HEADERS", promised_stream_id=2, data=b"\x88"), "not HTTP/2"),
    "headers that are none": (SETTINGS + b"\0\0\x03\x01\x04\0\0\0\x01\xff\xff\xff", "not HTTP/2"),
    "a frame too large": (SETTINGS + b"\xff\xff\xff\0\0\0\0\0\x01", "a frame of 16777215 bytes"),
    "settings of half a length": (b"\0\0\x05\x04\0\0\0\0\0abcde", "not HTTP/2"),
    "window beyond all": (SettingsFrame(0, settings={4: 2**31}).serialize(), "not HTTP/2"),
    "frames of no size": (SettingsFrame(0, settings={5: 1}).serialize(), "not HTTP/2"),
    "window that overflows": (SETTINGS + frame(WindowUpdateFrame, 0, window_increment=2**31 - 1), "not HTTP/2"),
    "ping of odd length": (SETTINGS + b"\0\0\x03\x06\0\0\0\0\0abc", "not HTTP/2"),
    "goodbye": (SETTINGS + b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0", "ends the connection (NO_ERROR)"),
    "goodbye with words": (
        SETTINGS + b"\0\0\x16\x07\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\x0b" + b"too_many\x1bpings",
        "(ENHANCE_YOUR_CALM, too_many\\x1bpings",
    ),
    "goodbye and a ping": (  # as Go's gRPC servers end
        SETTINGS + b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0" + frame(PingFrame, 0, opaque_data=b"goodbye!"),
        "ends the connection (NO_ERROR)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_http2_is_the_trouble_of_the_connection(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    data, said = BROKEN[name]
    began = trio.current_time()
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        http2 = Http2(ours, authority="etcd:2379", scheme="http")
        nursery.start_soon(http2.run)

        async def member() -> None:
            await theirs.receive_some()
            if data.startswith(SETTINGS):
                await theirs.send_all(SETTINGS)
                await trio.testing.wait_all_tasks_blocked()  # it has asked
            await theirs.send_all(data.removeprefix(SETTINGS))
            await theirs.send_eof()

        nursery.start_soon(member)
        with pytest.raises(Trouble) as caught:
            await ask(http2)
        assert said in caught.value.said
        assert caught.value.remedy
        with pytest.raises(Trouble, match=r".") as again:
            await ask(http2)
        assert again.value.said == caught.value.said
    await hangs_up(theirs)
    assert trio.current_time() - began < 1


@pytest.mark.parametrize("after", [frame(PingFrame, 0, opaque_data=b"goodbye!"), b"\0\0\3\6\0\0\0\0\0abc"])
async def test_an_answer_that_came_whole_counts_whatever_came_with_it(
    after: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        member.h2.send_headers(id, [(":status", "200"), ("content-type", "application/grpc")])
        member.h2.send_data(id, framed(b"yes"))
        member.h2.send_headers(id, [("grpc-status", "0")], end_stream=True)
        goodbye = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0"
        await member.stream.send_all(member.h2.data_to_send() + goodbye + after)

    async with talking(answer) as (http2, _):
        assert await ask(http2) == b"yes"
        with pytest.raises(Trouble, match=r"ends the connection \(NO_ERROR\)"):
            await ask(http2)


# -- settings, windows --


@pytest.mark.parametrize(
    "settings",
    [
        {SettingCodes.MAX_CONCURRENT_STREAMS: 1},
        {SettingCodes.HEADER_TABLE_SIZE: 0},
        {SettingCodes.HEADER_TABLE_SIZE: 2**32 - 1},
        {SettingCodes.MAX_FRAME_SIZE: 2**24 - 1},
        {SettingCodes.INITIAL_WINDOW_SIZE: 1},
        {SettingCodes.MAX_HEADER_LIST_SIZE: 0},
        {0xF0F0: 7},
    ],
    ids=str,
)
async def test_settings_as_odd_as_they_may_be(
    settings: dict[SettingCodes, int], autojump_clock: trio.testing.MockClock
) -> None:
    async with talking(good, settings) as (http2, member), trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(ask, http2, b"a question")
    assert sum(isinstance(event, RequestReceived) for event in member.events) == 40
    assert set(map(bytes, member.bodies.values())) == {framed(b"a question")}


async def test_a_member_that_takes_no_call_is_waited_for_within_the_callers_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(good, {SettingCodes.MAX_CONCURRENT_STREAMS: 0}) as (http2, _):
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.TooSlowError):
            await ask(http2, seconds=3)


async def test_large_messages_both_ways_by_the_windows(autojump_clock: trio.testing.MockClock) -> None:
    large = bytes(range(256)) * 12_000  # 3 MB: more than any window

    async def echo(member: Member, id: int, path: str) -> None:
        await member.good(id, [bytes(member.bodies[id][5:])])

    async with talking(echo) as (http2, member):
        assert await ask(http2, large) == large
        assert member.windows_opened() > len(large)


async def test_an_unread_watch_holds_its_own_window_and_no_other_call(autojump_clock: trio.testing.MockClock) -> None:
    sent = 0

    async def answer(member: Member, id: int, path: str) -> None:
        nonlocal sent
        if path.endswith("Range"):
            await good(member, id, path)
            return
        await member.headers(id)
        for _ in range(64):
            await member.data(id, framed(bytes(65_536)))
            sent += 1
        await member.trailers(id)

    async with talking(answer) as (http2, _), call(http2, "/w/Watch", ()) as watch:
        await watch.send(b"?")
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 20
        assert await ask(http2) == b"yes"
        read = 0
        while (message := await watch.receive()) is not None:
            read += len(message)
        assert read == 64 * 65_536


async def test_an_answer_byte_by_byte(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        member.h2.send_headers(id, [(":status", "103")])
        await member.headers(id)
        for byte in framed(b"yes"):
            await member.data(id, bytes([byte]))
            await trio.sleep(0.1)
        await member.trailers(id)

    async with talking(answer) as (http2, _):
        assert await ask(http2) == b"yes"


async def test_an_answer_that_does_not_wait_for_the_whole_request(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id, grpc_status="3", grpc_message="request is too large", end=True)
        await of_a_reset(member, id, path, ErrorCodes.NO_ERROR)

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        member = Member(theirs, answer)
        member.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]  # opens no window
        nursery.start_soon(member.run)
        http2 = Http2(ours, authority="etcd:2379", scheme="http")
        nursery.start_soon(http2.run)

        async def refuse() -> None:
            while not member.bodies or len(member.bodies[1]) < 65_535:
                await member.changed.wait()
            await answer(member, 1, "")

        nursery.start_soon(refuse)
        with pytest.raises(Trouble, match="INVALID_ARGUMENT: request is too large"):
            await ask(http2, bytes(1_000_000))
        http2.close()
        nursery.cancel_scope.cancel()


# -- giving up --


async def test_a_call_that_is_cancelled_is_reset_and_the_connection_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        if id > 1:
            await good(member, id, path)
        else:
            await member.headers(id)
            await member.data(id, framed(bytes(100))[:50])

    async with talking(answer) as (http2, member):
        with pytest.raises(trio.TooSlowError):
            await ask(http2, seconds=2)
        assert await ask(http2) == b"yes"
        resets = [event for event in member.events if isinstance(event, StreamReset)]
        assert [(event.stream_id, event.error_code) for event in resets] == [(1, ErrorCodes.CANCEL)]


async def test_a_large_request_that_is_cancelled_leaves_no_half_frame(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(good) as (http2, member):
        opened = member.h2.acknowledge_received_data
        member.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(trio.TooSlowError):
            await ask(http2, bytes(1_000_000), seconds=2)
        member.h2.acknowledge_received_data = opened  # type: ignore[method-assign]
        member.h2.increment_flow_control_window(65_535)
        await member.flush()
        assert await ask(http2) == b"yes"


async def test_what_comes_for_a_call_that_was_given_up_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    late = trio.Event()

    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id)
        if id == 1:
            data = frame(DataFrame, 1, data=bytes(16_000))
            await late.wait()
            for _ in range(100):
                await member.stream.send_all(data)
        else:
            await member.data(id, framed(b"yes"))
            await member.trailers(id)

    async with talking(answer) as (http2, member):
        with pytest.raises(trio.TooSlowError):
            await ask(http2, seconds=1)
        late.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(http2) == b"yes"
        assert member.windows_opened() > 1_000_000  # of the connection: given back


# -- signs of life --


async def test_a_member_that_is_frozen_is_noticed_by_a_ping(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(SETTINGS)
    async with trio.open_nursery() as nursery:
        http2 = Http2(ours, authority="etcd:2379", scheme="http")
        nursery.start_soon(http2.run)
        with pytest.raises(Trouble, match="no answer to a ping within 5 s"):
            await ask(http2)
    assert PING_AFTER / 2 + PING_ANSWER <= trio.current_time() - began <= PING_AFTER + PING_ANSWER + 0.001
    await hangs_up(theirs)


async def test_pings_go_out_only_when_it_is_quiet_and_something_is_open(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id)
        if path.endswith("Chatty"):
            while True:
                await member.data(id, framed(b"news"))
                await trio.sleep(9)

    def pings(member: Member) -> int:
        return sum(isinstance(event, PingReceived) for event in member.events)

    async with talking(answer) as (http2, member):
        await trio.sleep(100)
        assert pings(member) == 0  # nothing is open
        async with call(http2, "/w/Chatty", ()) as watch:
            await watch.send(b"?")
            await trio.sleep(100)
            assert pings(member) == 0  # it is not quiet
        async with call(http2, "/w/Quiet", ()) as watch:
            await watch.send(b"?")
            await trio.sleep(100)
            assert 8 <= pings(member) <= 11
        assert http2.trouble is None


async def test_an_answer_that_lies_in_the_socket_after_a_standstill_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id)

    async with talking(answer) as (http2, member), call(http2, "/w/Watch", ()) as watch:
        await watch.send(b"?")
        while not any(isinstance(event, PingReceived) for event in member.events):
            autojump_clock.jump(60)  # in which nothing here ran
            await trio.sleep(0.4)
        for _ in range(5):
            autojump_clock.jump(60)
            await trio.sleep(0.4)
        assert http2.trouble is None


async def test_a_standstill_of_ours_is_no_silence_of_the_other_side(autojump_clock: trio.testing.MockClock) -> None:
    asked = 0

    async def silent(standstill: float) -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            autojump_clock.jump(standstill)  # in which nothing here ran
            await trio.sleep_forever()
        return "yes"

    assert await within(2, silent, 60) == "yes"
    asked = 0
    began = trio.current_time()
    with pytest.raises(Trouble, match="no answer within 2 s"):
        await within(2, silent, 0)
    assert (asked, round(trio.current_time() - began, 3)) == (1, 2)
