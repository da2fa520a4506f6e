"""What a processor is called with: the message, or its body as the type that the processor's first parameter names.

`prepared()` looks at the function once, at the start; what it returns is called for each message. A message that cannot be read
as was said ends there: rejected or failed, with a reason that names the fields and holds nothing of their values.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin

import pydantic
import structlog

from svc.processors.batch import Batch, Item
from svc.processors.envelopes import ENVELOPES, NothingToProcess, Peel, Peeled
from svc.processors.finding import UnusableProcessor
from svc.processors.message import Message, Reject
from svc.processors.options import Options
from svc.processors.transaction import transaction_of

log = structlog.get_logger(__name__)

LONGEST_REASON = 800
"""Characters of a reason: it stands in a message attribute of the dead-letter queue."""

Prepare = Callable[[Message], tuple[object, ...] | None]
"""Message → the processor's arguments; None when there is nothing to process. Raises `Reject`, or `InvalidMessage`."""


Read = TypeVar("Read")


class InvalidMessage(Exception):
    """The message has not the envelope, or its body not the type, that the processor has asked for."""


def prepared(function: Callable[..., object], options: Options, name: str) -> Prepare:
    """How `function` is called for a message. Raises `UnusableProcessor` for an annotation that nobody can validate."""
    return _with_envelopes(_reader(function, name, once=options.exactly_once is not False), options)


def prepared_items(
    function: Callable[..., object], options: Options, name: str
) -> Callable[[Message], Item[Any] | None]:
    """How a message becomes an item of the batches that `function` is called with. Raises as `prepared`."""
    signature = _signature(function, name)
    parameters = [] if signature is None else list(signature.parameters.values())
    if not parameters or not _is_batch(parameters[0].annotation):
        raise UnusableProcessor(
            f"{name!r} says batch={options.batch}, so its first parameter has to be annotated svc.Batch, or svc.Batch[…] with "
            "the type of a payload"
        )
    first, *others = parameters
    if options.exactly_once is not False:
        others = [one for one in others if transaction_of(one) is None]
    if needed := [one.name for one in others if one.default is one.empty and one.kind not in _VARIADIC]:
        raise UnusableProcessor(
            f"{name!r}: a batch is all that it is called with (each item has its message), so it cannot have the parameter "
            f"{needed[0]!r}"
        )
    (payload,) = get_args(first.annotation) or (Message,)
    if payload is Message:
        return _with_envelopes(lambda message: Item(message, message), options)
    validate = _validator(payload, name)
    return _with_envelopes(lambda message: Item(validate(message.body), message), options)


def wants_batch(function: Callable[..., object]) -> bool:
    """Whether a function that no decorator speaks for is annotated as one for batches."""
    try:
        first = next(iter(inspect.signature(function, eval_str=True).parameters.values()), None)
    except Exception:  # annotations that nobody asks for may be anything
        return False
    return first is not None and _is_batch(first.annotation)


def _is_batch(annotation: object) -> bool:
    return annotation is Batch or get_origin(annotation) is Batch


def _with_envelopes(read: Callable[[Message], Read], options: Options) -> Callable[[Message], Read | None]:
    """`read` of the message without its envelopes; None when there is nothing to process."""
    peels = tuple((one, ENVELOPES[one]) if isinstance(one, str) else (_named(one), one) for one in options.envelopes)

    def prepare(message: Message) -> Read | None:
        try:
            return read(_peeled(message, peels))
        except NothingToProcess as told:
            log.info("nothing to process: the message is deleted", message=str(told))
            return None
        except InvalidMessage as invalid:
            if options.invalid == "fail":
                raise
            raise Reject(str(invalid)) from invalid

    return prepare


def _peeled(message: Message, peels: tuple[tuple[str, Peel], ...]) -> Message:
    body, found = message.body, []
    for name, peel in peels:
        try:
            peeled = peel(body)
        except ValueError as error:
            raise InvalidMessage(_short(str(error))) from error
        if not isinstance(peeled, Peeled) or not isinstance(peeled.body, str):
            raise TypeError(f"the envelope {name} returned a {type(peeled).__name__}, not a Peeled with a text")
        body = peeled.body
        found.append(peeled.envelope)
    return replace(message, body=body, raw_body=message.body, envelopes=tuple(found)) if peels else message


def _reader(function: Callable[..., object], name: str, *, once: bool) -> Callable[[Message], tuple[object, ...]]:
    signature = _signature(function, name)
    if signature is None:
        return lambda message: (message,)  # the first message will tell
    given = [one for one in signature.parameters.values() if transaction_of(one) is not None]
    if given and not once:
        raise UnusableProcessor(
            f"{name!r} wants a transaction for {given[0].name!r}: say @processor(exactly_once=True)"
        )
    signature = signature.replace(parameters=[one for one in signature.parameters.values() if one not in given])
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in signature.parameters.values() if p.kind in kinds]
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind not in _VARIADIC]
    if not wanted or any(p not in wanted[:2] for p in needed):
        raise UnusableProcessor(f"{name!r} cannot be called with a payload and a message: its signature is {signature}")
    first, second = wanted[0], wanted[1] if len(wanted) > 1 else None
    if _is_batch(first.annotation):
        raise UnusableProcessor(f"{name!r} wants a svc.Batch: say how large, @processor(batch=…)")
    if first.annotation in (first.empty, Message):
        if second is not None and second in needed:
            raise UnusableProcessor(f"{name!r}: its first parameter is the message, so it cannot have a second one")
        return lambda message: (message,)
    if second is not None and second.annotation not in (second.empty, Message, Message | None):
        if second in needed:
            raise UnusableProcessor(f"{name!r}: its second parameter can only be a svc.Message")
        second = None
    validate = _validator(first.annotation, name)
    if second is None or (second.annotation is second.empty and second not in needed):  # a default of the user's own
        return lambda message: (validate(message.body),)
    return lambda message: (validate(message.body), message)


def _signature(function: Callable[..., object], name: str) -> inspect.Signature | None:
    """None: there is none to be had (a builtin)."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise UnusableProcessor(f"{name!r}: its annotations cannot be read: {type(error).__name__}: {error}") from error
    except ValueError:
        return None


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _validator(annotation: Any, name: str) -> Callable[[str], object]:
    if annotation is str:
        return lambda body: body
    if annotation is bytes:
        return _encoded
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        adapter.rebuild(raise_errors=True)  # a model with a forward reference is complete only now
    except Exception as error:  # a user's class may raise anything when its schema is made
        short = _short(f"{type(error).__name__}: {error}")
        raise UnusableProcessor(f"{name!r}: the type of its first parameter cannot be validated: {short}") from error

    def validate(body: str) -> object:
        try:
            return adapter.validate_json(body.removeprefix("\ufeff"))  # RFC 8259, 8.1: a byte order mark may be ignored
        except pydantic.ValidationError as error:
            raise InvalidMessage(_fields(error)) from None

    return validate


def _encoded(body: str) -> bytes:
    try:
        return body.encode()
    except UnicodeEncodeError:  # what JSON in an envelope may hold, and UTF-8 not
        raise InvalidMessage(
            "not valid bytes: the body holds half of a surrogate pair, which UTF-8 has no form for"
        ) from None


def _fields(error: pydantic.ValidationError) -> str:
    """Which fields are wrong, and how; nothing of what they held."""
    told = []
    for fault in error.errors(include_url=False, include_input=False):
        # Keys of a dictionary stand among the names of fields, and may be anybody's data.
        place = ".".join(str(part) if _FIELD.fullmatch(str(part)) else "…" for part in fault["loc"])
        what = fault["msg"]
        if fault["type"] == "union_tag_invalid":  # the only one that quotes
            context = fault["ctx"]
            what = f"its {context['discriminator']} is none of {context['expected_tags']}"
        told.append(f"{place or 'body'}: {what}")
    return _short(f"not a valid {error.title}: {'; '.join(told)}")


_FIELD = re.compile(r"\d{1,6}|[A-Za-z_][\w.,()\[\]-]{0,63}")
"""What an index looks like, the name of a field, or of one type of a union."""


def _named(peel: Peel) -> str:
    return getattr(peel, "__qualname__", repr(peel))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"
