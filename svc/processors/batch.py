"""Several messages for one call of a processor: `Batch`, its items, and what becomes of each of them.

A function that returns has done with its items, and one that raises has failed on them, but for those that it has marked. So no
message is ever deleted because a list was forgotten. Nothing here gathers: that is the consumer's part.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from svc.processors.message import Message, Process, Reject, Retry
from svc.processors.shutdown import ShuttingDown

T = TypeVar("T")


class Unmarked:
    """No mark: the end of the function decides."""


UNMARKED = Unmarked()


class Item(Generic[T]):
    """One message of a batch. What is marked stands, however the function ends; of several marks the last one."""

    __slots__ = ("lost", "mark", "message", "payload")

    def __init__(self, payload: T, message: Message) -> None:
        self.payload = payload
        """The body as the type that the batch is annotated with; the message itself without one."""
        self.message = message
        self.lost = False
        """Its lease was lost while the batch is at work: another consumer may have it, and nothing that is said of it counts."""
        self.mark: BaseException | Unmarked | None = UNMARKED
        """None: done; an exception: as if it had been raised on this message alone. `svc.processors.UNMARKED` until it is marked:
        then the end of the function decides."""

    def done(self) -> None:
        """It is finished, even if the function raises or is cancelled later: delete it."""
        self.mark = None

    def retry(self, reason: str = "", *, after: float = 0) -> None:
        """As `raise Retry(reason, after=after)`: visible again in so many seconds (0-43200)."""
        self.mark = Retry(reason, after=after)

    def reject(self, why: str = "rejected by the processor") -> None:
        """As `raise Reject(why)`: to the dead-letter queue at once."""
        self.mark = Reject(why)

    def fail(self, error: BaseException | str) -> None:
        """As raising this error: it comes back after its back-off."""
        if not isinstance(error, BaseException | str):
            raise TypeError(f"fail() takes an exception, or a text, not {error!r}")
        self.mark = RuntimeError(error) if isinstance(error, str) else error

    def __repr__(self) -> str:
        return f"<Item {self.message.id}>"


class Batch(Sequence[Item[T]]):
    """The items of one call, in the order in which they came; of a FIFO queue each group in its order."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Item[T]]) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item[T]]: ...

    def __getitem__(self, index: int | slice) -> Item[T] | Sequence[Item[T]]:
        return self._items[index]

    @property
    def payloads(self) -> list[T]:
        """Of all items, in their order."""
        return [item.payload for item in self._items]

    @property
    def shutting_down(self) -> ShuttingDown:
        """As `Message.shutting_down`."""
        return self._items[0].message.shutting_down if self._items else ShuttingDown()

    def __repr__(self) -> str:
        return f"<Batch of {len(self._items)}>"


@dataclass(frozen=True, slots=True)
class Batching:
    """A processor of batches, ready to be called."""

    size: int
    """Messages in one call at most."""
    linger: float
    """Seconds that a message waits for others at most."""
    read: Callable[[Message], Item[Any] | None]
    """The item of a message; None when there is nothing to process. Raises what becomes of a message that cannot be read."""
    call: Callable[[Batch[Any]], Awaitable[None]]

    @property
    def __wrapped__(self) -> Callable[[Batch[Any]], Awaitable[None]]:
        """For `inspect.unwrap`: what can be asked of a processor (`threads_of`, its loop, …) can be asked of this one."""
        return self.call


AnyProcess = Process | Batching
"""What the worker calls: for each message, or for batches of them."""
