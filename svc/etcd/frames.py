"""What comes on an HTTP/2 connection, frame by frame, and how much of it that says nothing.

h2 is given one frame at a time: of several it would throw away what it has understood when something follows that it does not.
And it is given no goodbye (GOAWAY), after which it would understand nothing more: the calls that are open may be finished then
(RFC 9113, 6.8).

Each frame costs the event loop some ten microseconds, and only answers are worth it: of everything else there may be so much at
once, and so much a second.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio
from h2.exceptions import FrameTooLargeError

from svc.etcd.errors import CHECK_ENDPOINT, Trouble

SMALL = 256
"""Bytes of an answer below which a frame with them counts as one that says nothing."""

AT_ONCE, A_SECOND = 5000, 500
"""How many such frames may come. A call takes about five, its pings and windows included."""

LATE = 128
"""Frames of data for a call that we have given up which are no flood: its window of a megabyte, in pieces of 8 KiB, may be on its
way when the other side hears of it."""

_HEADER = 9
"""Bytes (RFC 9113, 4.1)."""

_DATA, _SETTINGS, _GOAWAY = 0, 4, 7
_SETTING = 6
"""Bytes of one of the settings in a frame (RFC 9113, 6.5.1)."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The other side ends the connection."""

    last: int
    """The last call that it answers."""
    code: int
    why: bytes


class Frames:
    """`is_open` says whether a call is. Make it inside `trio.run`."""

    def __init__(self, is_open: Callable[[int], bool]) -> None:
        self._is_open = is_open
        self._unread = bytearray()
        self._left, self._counted_at = float(AT_ONCE), trio.current_time()
        self._late = 0  # frames that may come for calls that we have given up

    def add(self, data: bytes | bytearray) -> None:
        self._unread += data

    def given_up(self) -> None:
        """A call is no longer open, because we want no more of its answer."""
        self._late += LATE

    def what_else(self) -> str | None:
        """What the first bytes are, if they cannot be those of HTTP/2: it begins with settings. (h2 would wait for the end of
        what it takes for a frame.)"""
        first = bytes(self._unread[:_HEADER])
        if first.startswith(b"HTTP/1"):
            return "the answer is HTTP/1"
        if first[:2] in (b"\x15\x03", b"\x16\x03"):
            return "the answer is TLS"
        if len(first) >= _HEADER and first[3] != _SETTINGS:
            return "the answer is not HTTP/2"
        return None

    def come(self, largest: int) -> Iterator[bytes | Goodbye]:
        """Those that have come whole. Raises `Trouble` when too many say nothing, and h2's error when one is larger than that."""
        now = trio.current_time()
        self._left = min(AT_ONCE, self._left + (now - self._counted_at) * A_SECOND)
        self._counted_at = now
        while len(self._unread) >= _HEADER:
            length, kind = int.from_bytes(self._unread[:3]), self._unread[3]
            if length > largest:
                raise FrameTooLargeError(f"a frame of {length} bytes")
            if len(self._unread) < _HEADER + length:
                return
            frame = bytes(self._unread[: _HEADER + length])
            del self._unread[: _HEADER + length]
            id = int.from_bytes(frame[5:9]) & 0x7FFFFFFF
            self._count(kind, id, length)
            if kind == _GOAWAY and not id and length >= 8:
                last = int.from_bytes(frame[9:13]) & 0x7FFFFFFF
                yield Goodbye(last, int.from_bytes(frame[13:17]), frame[17:])
            else:
                yield frame

    def _count(self, kind: int, id: int, length: int) -> None:
        if kind == _DATA:
            if length >= SMALL and self._is_open(id):
                return
            if length >= SMALL and self._late:
                self._late -= 1
                return
            self._left -= 1
        else:
            self._left -= 1 + length // (_SETTING if kind == _SETTINGS else SMALL)
        if self._left < 0:
            raise Trouble("the other side floods the connection with frames that say nothing", CHECK_ENDPOINT)
