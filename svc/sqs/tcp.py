"""A connected TCP socket with no more checkpoints than a call needs.

Trio's own `SocketStream` gives way to other tasks after each operation, waited or not, which is right for streams in general and
a fifth of the cost of ours: a call waits for its answer, and that is checkpoint enough. What must not happen is that a request
goes out from a scope that is cancelled already: messages would be handed out to nobody. So that is looked at first.
"""

import socket

import trio


class TcpStream:
    """What `connection.Stream` asks for. Takes the socket over from `stream`."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)

    async def send_all(self, data: bytes) -> None:
        """Raises `trio.BrokenResourceError` and, after `close`, `trio.ClosedResourceError`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = self._send(data)
        while sent < len(data):
            await trio.lowlevel.wait_writable(self._socket)
            sent += self._send(memoryview(data)[sent:])

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As of a `trio.abc.ReceiveStream`."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(max_bytes or 65_536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    def close(self) -> None:
        """May be called twice."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def is_readable(self) -> bool:
        """Whether something lies unread, the end of the stream too."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it is broken, which a read would tell at once
        return True

    @property
    def peer(self) -> str | None:
        """The address at the other end; None when it is gone already."""
        try:
            return str(self._socket.getpeername()[0])
        except OSError:
            return None
