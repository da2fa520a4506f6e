"""`@processor(...)`: what a processor asks of the service, said beside the function. Without it nothing changes.

    @processor(envelope="sns")
    async def handle(order: Order, message: Message) -> None: ...

The decorator returns the function itself, so that it can be called in a test like any other.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from svc.processors.envelopes import ENVELOPES, Envelope, Peel

F = TypeVar("F", bound=Callable[..., object])

Runtime = Literal["trio", "asyncio", "thread"]

LARGEST_BATCH = 10_000
"""Messages."""

LINGER, LONGEST_LINGER = 1.0, 300.0
"""Seconds that a message waits for others of its batch: by default, and at most. Its lease is extended meanwhile."""

_MARK = "__svc_options__"


@dataclass(frozen=True, slots=True)
class Options:
    """What `@processor` says."""

    runtime: Runtime | None = None
    """Where the function runs; None: as `MESSAGE_RUNTIME` says."""
    envelopes: tuple[str | Peel, ...] = ()
    """From the outside to the inside."""
    invalid: Literal["reject", "fail"] = "reject"
    """What becomes of a message whose envelope or payload cannot be read."""
    batch: int | None = None
    """How many messages it takes at once, at most; None: one, which is no batch."""
    linger: float = LINGER
    """Seconds that a message waits for others."""
    exactly_once: bool | Callable[[Any], object] = False
    """True: by the message's id; a function: by the key that it makes of the processor's first argument."""

    def described(self) -> dict[str, str]:
        """As `svc config` shows it: only what differs from the default."""
        names = [one if isinstance(one, str) else getattr(one, "__qualname__", repr(one)) for one in self.envelopes]
        shown = {
            "runtime": self.runtime or "",
            "envelope": " > ".join(names),
            "invalid": self.invalid if self.invalid != "reject" else "",
            "batch": str(self.batch or ""),
            "linger": f"{self.linger:g} s" if self.batch else "",
            "exactly_once": _key_described(self.exactly_once),
        }
        return {name: value for name, value in shown.items() if value}


def processor(
    *,
    runtime: Runtime | None = None,
    envelope: Envelope | Peel | Sequence[Envelope | Peel] = (),
    invalid: Literal["reject", "fail"] = "reject",
    batch: int | None = None,
    linger: float | None = None,
    exactly_once: bool | Callable[[Any], object] = False,
) -> Callable[[F], F]:
    """Say how a processor wants its messages. For a function, or for an async context manager function that yields one.

    - `runtime`: "trio" (the default for an `async def`), "asyncio" (the function runs on one asyncio loop that the service keeps
      for all messages; so does the context manager function that opens its pools), "thread" (a plain `def`, always).
    - First parameter annotated with anything but `Message`: it gets the body, validated as that type (a Pydantic model, a
      dataclass, a TypedDict, `dict`, `list[int]`, a union; `str` and `bytes` get the body as it is). A second parameter gets the
      `Message`.
    - `envelope`: "sns", "eventbridge", "s3", a function of one's own (`str -> Peeled`), or several, the outer one first. The
      inner payload becomes the body; what the envelope said stands in `message.envelope`.
    - `invalid`: "reject" sends a message that cannot be read to the dead-letter queue at once, with the reason; "fail" lets it
      fail like any other, to be tried again.
    - `batch`: the function takes up to so many messages at once (1 to 10000, and no more than MAX_CONCURRENCY); its parameter is
      annotated `svc.Batch[Order]`, or `svc.Batch` for messages as they are. `linger`: seconds that a message waits for others at
      most (0 to 300; 1 by default).
    - `exactly_once`: what the processor does in the database, and the memory that it was done, are committed in one transaction
      of the service's, or not at all. One of its parameters gets the transaction: annotate it `svc.Transaction` (an `async def`
      on Trio), `psycopg.AsyncConnection` (on asyncio) or `psycopg.Connection` (a plain `def`). True goes by the message's id,
      which a redrive from the dead-letter queue changes; a function makes a key of the payload (`lambda order: order.id`; of the
      `Message`, where the first parameter is one): a text, an integer or a UUID. Needs `DATABASE_URL` and `svc database init`.

    Raises `ValueError` for a value that is none of these. Annotations are looked at when the service starts.
    """
    chosen = (envelope,) if isinstance(envelope, str) or callable(envelope) else tuple(envelope)
    for one in chosen:
        if not callable(one) and one not in ENVELOPES:
            known = ", ".join(repr(name) for name in ENVELOPES)
            raise ValueError(f"envelope={one!r}: there are {known}, and functions of one's own")
    if invalid not in ("reject", "fail"):
        raise ValueError(f"invalid={invalid!r}: it is 'reject' or 'fail'")
    if runtime not in (None, *get_args(Runtime)):
        raise ValueError(f"runtime={runtime!r}: it is one of {', '.join(map(repr, get_args(Runtime)))}")
    if batch is not None and (type(batch) is not int or not 1 <= batch <= LARGEST_BATCH):
        raise ValueError(f"batch={batch!r}: it is a whole number of messages from 1 to {LARGEST_BATCH}")
    if linger is not None and (
        batch is None or not isinstance(linger, int | float) or not 0 <= linger <= LONGEST_LINGER
    ):
        what = "it says how long a message waits for its batch, so batch= has to be there"
        raise ValueError(
            f"linger={linger!r}: {f'it is 0 to {LONGEST_LINGER:g} seconds' if batch is not None else what}"
        )
    if not isinstance(exactly_once, bool) and not callable(exactly_once):
        raise ValueError(f"exactly_once={exactly_once!r}: it is True, False, or a function that makes the key")
    waits = LINGER if linger is None else float(linger)
    options = Options(runtime, tuple(chosen), invalid, batch, waits, exactly_once)

    def mark(function: F) -> F:
        try:
            setattr(function, _MARK, options)
        except AttributeError:
            raise ValueError(f"{function!r} cannot be marked: decorate a function") from None
        return function

    return mark


def _key_described(exactly_once: bool | Callable[[Any], object]) -> str:
    if isinstance(exactly_once, bool):
        return "by message id" if exactly_once else ""
    return f"by {getattr(exactly_once, '__qualname__', repr(exactly_once))}"


def options_of(found: object) -> Options | None:
    """What `@processor` said of it; None without it."""
    while isinstance(found, functools.partial):
        found = found.func
    options = getattr(found, _MARK, None)
    return options if isinstance(options, Options) else None
