"""What a connection to etcd can be asked: the part of `connection.Connection` that the watcher and the registration use.

They are given a way to open one (`Connect`), so that both run as they are against an etcd in memory, in virtual time
(`svc.testing.etcd`).
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from svc.etcd.errors import Trouble
from svc.etcd.keys import Found, News, Put
from svc.settings import Endpoint, Settings


class Watch(Protocol):
    """A watch that is open. `stream.Stream` is the real one."""

    async def receive(self) -> News | Trouble: ...

    def end(self, trouble: Trouble) -> None: ...


class Link(Protocol):
    """An open connection. Its methods raise `Trouble`."""

    endpoint: str

    async def find(
        self, names: Sequence[str], prefixes: Sequence[str] = (), *, serializable: bool = False
    ) -> Found: ...

    async def change(self, put: Put, *, since: int) -> tuple[bool, Found]: ...

    async def put(self, key: str, value: bytes, lease: int = 0) -> int: ...

    async def grant(self, ttl: float) -> int: ...

    async def keep_alive(self, lease: int) -> float: ...

    async def revoke(self, lease: int) -> None: ...

    def watch(
        self, names: Sequence[str], revision: int, *, prefixes: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Watch]: ...


class Connect(Protocol):
    """Opens a connection to the first endpoint that answers a read of the key, and gives what it found. Raises `EtcdError`."""

    def __call__(
        self, settings: Settings, key: str, endpoints: Sequence[Endpoint]
    ) -> AbstractAsyncContextManager[tuple[Any, Found]]: ...
