"""What the other side of etcd's HTTP/2 may ask of us: few calls at a time, a goodbye; and what it may not: floods."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.events import RequestReceived
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from svc.etcd import messages
from svc.etcd.connection import connected
from svc.etcd.errors import Trouble
from svc.etcd.frames import A_SECOND, AT_ONCE, LATE, SMALL
from svc.etcd.grpc_calls import call, unary
from svc.etcd.watcher import KeyWatcher
from svc.settings import load
from tests.etcd.http2_member import Member, framed
from tests.etcd.test_http2 import ask, frame, good, talking

PATH = "/etcdserverpb.KV/Range"


# -- few calls at a time --


async def test_calls_that_are_sent_together_need_no_more_than_one_place(autojump_clock: trio.testing.MockClock) -> None:
    large = bytes(2_000_000)  # more than comes without being read

    async def answer(member: Member, id: int, path: str) -> None:
        await member.good(id, [large])

    async with talking(answer, {SettingCodes.MAX_CONCURRENT_STREAMS: 1}) as (http2, _):
        with trio.fail_after(1):
            assert await unary(http2, PATH, (), [b"a", b"b", b"c"]) == [large] * 3


@pytest.mark.parametrize("places", [1, 2, 3])
async def test_answers_stand_in_the_order_of_their_requests(
    places: int, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        await member.good(id, [str(id).encode()])

    async with talking(answer, {SettingCodes.MAX_CONCURRENT_STREAMS: places}) as (http2, _):
        with trio.fail_after(1):
            assert await unary(http2, PATH, (), [b"?"] * 5) == [b"1", b"3", b"5", b"7", b"9"]


async def test_a_call_does_not_wait_for_the_end_of_a_watch(autojump_clock: trio.testing.MockClock) -> None:
    async with talking(good, {SettingCodes.MAX_CONCURRENT_STREAMS: 2}) as (http2, member):
        async with call(http2, "/w/Watch", (), lasts=True):
            assert await ask(http2, seconds=1) == b"yes"  # one place is left
            member.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
            await member.flush()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Trouble, match="limits calls at a time to 1, and a watch holds the last place"):
                await ask(http2, seconds=1)
        assert await ask(http2) == b"yes"


class OneKey:
    """A member that takes one call at a time of each connection."""

    def __init__(self) -> None:
        self.value, self.revision = b"off", 7
        self.most = 0  # calls at a time
        self.watches: list[Member] = []

    async def __call__(self, member: Member, id: int, path: str) -> None:
        self.most = max(self.most, member.h2.open_inbound_streams)
        header = {"revision": self.revision}
        if path.endswith("Watch"):
            await member.headers(id)
            await member.data(id, framed(messages.WatchResponse(header=header, created=True).SerializeToString()))
            self.watches.append(member)
        else:
            pair = {"key": b"/m", "value": self.value, "mod_revision": self.revision}
            await member.good(id, [messages.RangeResponse(header=header, kvs=[pair]).SerializeToString()])

    async def serve(self, *, task_status: trio.TaskStatus[str]) -> None:
        async def one(stream: trio.SocketStream) -> None:
            await Member(stream, self, {SettingCodes.MAX_CONCURRENT_STREAMS: 1}).run()

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, one, 0, host="127.0.0.1"))
            task_status.started(f"127.0.0.1:{listener.socket.getsockname()[1]}")


async def test_a_watch_where_one_call_is_taken_at_a_time(nursery: trio.Nursery) -> None:
    member = OneKey()
    its = load({"ETCD_ENDPOINTS": await nursery.start(member.serve), "MAINTENANCE_KEY": "/m"})
    with trio.fail_after(2):
        async with (
            connected(its, "/m", its.etcd_endpoints) as (connection, found),
            connection.watch(["/m"], found.revision + 1) as watch,
        ):
            await watch.receive()
            assert (await connection.find(["/m", "/a"])).revision == 7
        await member.watches[0].gone.wait()
    assert member.most == 1
    nursery.cancel_scope.cancel()


async def test_a_change_beside_the_goodbye_reaches_the_service(nursery: trio.Nursery) -> None:
    member, told, looked = OneKey(), list[bytes | None](), list[bool]()
    its = load({"ETCD_ENDPOINTS": await nursery.start(member.serve), "MAINTENANCE_KEY": "/m"})
    watcher = KeyWatcher(
        its,
        lambda value, revision: told.append(value),
        own_key="/own",
        on_looked=lambda began, answered: looked.append(answered),
    )
    nursery.start_soon(watcher.run)
    with trio.fail_after(5):
        while not watcher.snapshot().connected:
            await trio.sleep(0.01)
        member.value, member.revision = b"on", 8
        goodbye = frame(GoAwayFrame, 0, last_stream_id=1, error_code=0)
        await member.watches[0].stream.send_all(goodbye)
        while told != [b"off", b"on"] or len(member.watches) < 2 or not watcher.snapshot().connected:
            await trio.sleep(0.01)
        assert "ends the connection (NO_ERROR)" in str(watcher.snapshot().last_error)
    assert looked == [True, True]
    nursery.cancel_scope.cancel()


# -- goodbyes --


async def goodbye(member: Member, last: int, code: int = 0) -> None:
    await member.stream.send_all(frame(GoAwayFrame, 0, last_stream_id=last, error_code=code))


class Slow:
    """Answers when it may."""

    def __init__(self) -> None:
        self.may = trio.Event()

    async def __call__(self, member: Member, id: int, path: str) -> None:
        await member.headers(id)
        if path.endswith("Watch"):
            await member.data(id, framed(b"news"))
        else:
            await self.may.wait()
            await member.data(id, framed(b"yes"))
            await member.trailers(id)


async def test_a_goodbye_lets_the_calls_finish_that_it_has_taken(autojump_clock: trio.testing.MockClock) -> None:
    ends: dict[str, str] = {}
    slow = Slow()

    async def one(name: str) -> None:
        try:
            ends[name] = (await ask(http2)).decode()
        except Trouble as trouble:
            ends[name] = trouble.said

    async with talking(slow) as (http2, member), trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(one, name)
            await trio.testing.wait_all_tasks_blocked()
        await goodbye(member, 2**31 - 1)  # as Go's gRPC servers begin
        await trio.testing.wait_all_tasks_blocked()
        assert ends == {}
        await one("third")
        assert ends.pop("third") == "the other side ends the connection (NO_ERROR)"
        assert sum(isinstance(event, RequestReceived) for event in member.events) == 2
        await goodbye(member, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert ends == {"second": "the other side ends the connection (NO_ERROR)"}
        assert not member.gone.is_set()
        slow.may.set()
        with trio.fail_after(1):
            await member.gone.wait()  # nothing is open any more
    assert ends["first"] == "yes"


async def test_a_watch_ends_with_the_goodbye_after_what_has_come(autojump_clock: trio.testing.MockClock) -> None:
    slow = Slow()
    async with talking(slow) as (http2, member), call(http2, "/w/Watch", (), lasts=True) as watch:
        await watch.send(b"?")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, http2)
            await trio.testing.wait_all_tasks_blocked()
            await goodbye(member, 2**31 - 1)
            await trio.testing.wait_all_tasks_blocked()
            assert not member.gone.is_set()
            slow.may.set()
        with trio.fail_after(1):
            await member.gone.wait()  # a watch that nobody reads does not hold the connection
        assert await watch.receive() == b"news"
        with pytest.raises(Trouble, match=r"ends the connection \(NO_ERROR\)"):
            await watch.receive()


@pytest.mark.parametrize("code", [ErrorCodes.NO_ERROR, ErrorCodes.ENHANCE_YOUR_CALM])
async def test_who_hangs_up_after_a_goodbye_has_said_why(
    code: ErrorCodes, autojump_clock: trio.testing.MockClock
) -> None:
    async with talking(Slow()) as (http2, member), trio.open_nursery() as nursery:

        async def bid() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await goodbye(member, 2**31 - 1, code)
            if code == ErrorCodes.NO_ERROR:
                await trio.testing.wait_all_tasks_blocked()
                await member.stream.aclose()

        nursery.start_soon(bid)
        with pytest.raises(Trouble, match=code.name):
            await ask(http2, seconds=1)


# -- floods --

FLOODS: dict[str, Callable[[int], bytes]] = {
    "pings": lambda id: frame(PingFrame, 0, opaque_data=b"anything") * (AT_ONCE + 1),
    "settings": lambda id: frame(SettingsFrame, 0, settings=dict.fromkeys(range(16, 256), 1)) * 21,
    "windows": lambda id: frame(WindowUpdateFrame, 0, window_increment=1) * (AT_ONCE + 1),
    "nothing": lambda id: frame(DataFrame, id, data=b"") * (AT_ONCE + 1),
    "crumbs": lambda id: frame(DataFrame, id, data=b"x") * (AT_ONCE + 1),
    "a call of no one": lambda id: frame(DataFrame, 1, data=bytes(300)) * (AT_ONCE + 1),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_the_connection(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        if id == 1:
            await good(member, id, path)
            return
        await member.headers(id)
        await member.stream.send_all(FLOODS[name](id))

    async with talking(answer) as (http2, _):
        await ask(http2)
        async with call(http2, "/w/Watch", ()) as watch:  # which nobody reads
            await watch.send(b"?")
            with trio.fail_after(1):
                await http2.changed.wait_until(lambda: http2.trouble is not None)
            with pytest.raises(Trouble, match="floods the connection with frames that say nothing"):
                await ask(http2)


async def test_many_small_frames_in_their_time_are_no_flood(autojump_clock: trio.testing.MockClock) -> None:
    crumbs = AT_ONCE - 100

    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id)
        if path == PATH:
            await member.data(id, framed(b"yes"))
            await member.trailers(id)
            return
        await member.stream.send_all(frame(DataFrame, id, data=b"x") * crumbs)
        await trio.sleep(AT_ONCE / A_SECOND)
        await member.stream.send_all(frame(PingFrame, 0, opaque_data=b"anything") * crumbs)

    async with talking(answer) as (http2, _), await http2.open("/w/Watch", ()) as watch:
        await watch.send(framed(b"?"))
        await trio.sleep(AT_ONCE / A_SECOND + 1)
        assert await watch.receive() == b"x" * crumbs  # kept in one piece: a frame of one byte costs no more than that
        assert watch.owed == 0
        assert await ask(http2) == b"yes"


async def test_what_was_on_its_way_for_calls_that_we_gave_up_is_no_flood(
    autojump_clock: trio.testing.MockClock,
) -> None:
    left, frames = AT_ONCE // LATE + 10, LATE - 10

    async def answer(member: Member, id: int, path: str) -> None:
        if path == PATH:
            await good(member, id, path)
            return
        await member.headers(id)
        await trio.sleep(1)
        await member.stream.send_all(frame(DataFrame, id, data=bytes(SMALL)) * frames)

    async with talking(answer) as (http2, _):
        for _ in range(left):
            with trio.move_on_after(0.5 / left):
                await unary(http2, "/a/Range", (), [b"?"])
        await trio.sleep(2)
        assert left * frames > AT_ONCE
        assert await ask(http2) == b"yes"


@pytest.mark.parametrize(("frames", "size"), [(AT_ONCE + 1, 1), (LATE + AT_ONCE + 1, SMALL)])
async def test_a_call_that_we_gave_up_long_ago_is_no_way_for_a_flood(
    frames: int, size: int, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(member: Member, id: int, path: str) -> None:
        await member.headers(id)
        await trio.sleep(1000)  # what might come in so long a time may not come at once
        await member.stream.send_all(frame(DataFrame, id, data=bytes(size)) * frames)

    async with talking(answer) as (http2, _):
        with trio.move_on_after(0.5):
            await unary(http2, PATH, (), [b"?"])
        await trio.sleep(999)
        assert http2.trouble is None
        with trio.fail_after(2):
            await http2.changed.wait_until(lambda: http2.trouble is not None)
        assert "floods the connection with frames that say nothing" in str(http2.trouble)
