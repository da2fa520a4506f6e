# cache.py
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


class Cache:
    name = "cache"  # in /health, /messages/stats, the drain report and the log
    after = ("sqs",)  # processors use it: it drains when the messages have

    def __init__(self) -> None:
        self.dirty: list[str] = []
        self.flushed = 0

    def enter(self) -> None:
        """Take nothing new. Does not wait."""

    async def wait_drained(self, deadline: float) -> str | None:
        """Finish by `deadline` (Trio time); None, or a sentence about what is left."""
        self.flushed, self.dirty = len(self.dirty), []
        return None

    def leave(self) -> None:
        """Take work again. Does not wait."""

    async def health(self) -> bool:
        return True

    def statistics(self) -> object:
        return {"dirty": len(self.dirty)}

    def drain(self) -> Mapping[str, object]:
        return {"flushed": self.flushed}


@asynccontextmanager
async def handler() -> AsyncIterator[Cache]:
    yield Cache()
