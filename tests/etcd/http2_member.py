"""The other side of etcd's HTTP/2: a member that answers as a test says, on any of Trio's streams."""

import contextlib
import struct
from collections.abc import Awaitable, Callable, Sequence

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, WindowUpdated
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings

Answer = Callable[["Member", int, str], Awaitable[None]]
"""Given the member, the stream's number and the path; called with the first message of each call."""


def framed(message: bytes, *, flag: int = 0) -> bytes:
    return struct.pack(">BL", flag, len(message)) + message


class Member:
    """One connection."""

    def __init__(
        self, stream: trio.abc.Stream, answer: Answer, settings: dict[SettingCodes, int] | None = None
    ) -> None:
        self.stream = stream
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = H2Settings(client=False, initial_values=settings or {})
        self.h2.decoder.max_allowed_table_size = self.h2.local_settings.header_table_size
        self.answer = answer
        self.bodies: dict[int, bytearray] = {}
        self.events: list[Event] = []
        self.changed = trio.Event()
        self.gone = trio.Event()
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Serve until the client has gone."""
        try:
            self.h2.initiate_connection()
            await self.flush()
            async with trio.open_nursery() as nursery:
                async for data in self.stream:
                    for event in self.h2.receive_data(bytes(data)):
                        self._told(event, nursery)
                    await self.flush()
                    self.changed.set()
                    self.changed = trio.Event()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, H2Error):
            pass
        finally:
            self.gone.set()
            await trio.aclose_forcefully(self.stream)

    def _told(self, event: Event, nursery: trio.Nursery) -> None:
        self.events.append(event)
        if isinstance(event, RequestReceived):
            path = dict(event.headers or ())[":path"]
            self.bodies[event.stream_id] = bytearray()
            nursery.start_soon(self._answered, event.stream_id, path)
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data or b""
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)

    async def _answered(self, id: int, path: str) -> None:
        body = self.bodies[id]
        while len(body) < 5 or len(body) < 5 + struct.unpack_from(">xL", body)[0]:
            await self.changed.wait()
        with contextlib.suppress(H2Error, trio.BrokenResourceError, trio.ClosedResourceError):
            await self.answer(self, id, path)

    async def flush(self) -> None:
        async with self._lock:
            if data := self.h2.data_to_send():
                await self.stream.send_all(data)

    async def headers(self, id: int, *, end: bool = False, **more: str) -> None:
        told = {":status": "200", "content-type": "application/grpc"} | {
            name.replace("_", "-").replace("--", ":"): value for name, value in more.items()
        }
        self.h2.send_headers(id, list(told.items()), end_stream=end)
        await self.flush()

    async def data(self, id: int, data: bytes, *, end: bool = False) -> None:
        """As much at a time as the client has room for."""
        rest = data
        while rest or end:
            room = min(self.h2.local_flow_control_window(id), self.h2.max_outbound_frame_size)
            if room <= 0 and rest:
                await self.changed.wait()
                continue
            piece, rest = rest[:room], rest[room:]
            self.h2.send_data(id, piece, end_stream=end and not rest)
            await self.flush()
            if not rest:
                return

    async def trailers(self, id: int, status: str = "0", message: str = "") -> None:
        told = [("grpc-status", status), *([("grpc-message", message)] if message else [])]
        self.h2.send_headers(id, told, end_stream=True)
        await self.flush()

    async def good(self, id: int, messages: Sequence[bytes] = (b"yes",)) -> None:
        await self.headers(id)
        for message in messages:
            await self.data(id, framed(message))
        await self.trailers(id)

    def windows_opened(self) -> int:
        return sum(event.delta or 0 for event in self.events if isinstance(event, WindowUpdated))
