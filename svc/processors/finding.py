"""How a processor is found: what `MESSAGE_PROCESSOR=module:attribute` names, and whether it can be one.

Importing a user's module may do anything; whatever it raises comes out as `UnusableProcessor`, with a sentence.
"""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from svc.processors.options import options_of


class UnusableProcessor(Exception):
    """`MESSAGE_PROCESSOR` names nothing that can process messages. The text says why."""


def find(path: str) -> Callable[..., object]:
    """The object that `module:attribute` names. Raises `UnusableProcessor`."""
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise UnusableProcessor(f"{path!r} is not of the form module:attribute")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UnusableProcessor(
                f"there is no module {error.name!r} (is its folder the working directory, or on PYTHONPATH?)"
            ) from error
        raise UnusableProcessor(f"importing {module_name!r} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise UnusableProcessor(f"importing {module_name!r} failed: {_short(error)}") from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UnusableProcessor(f"module {module_name!r} has no attribute {attribute!r}") from None
        except Exception as error:
            raise UnusableProcessor(f"reading {path!r} failed: {_short(error)}") from error
    return check(found, path)


def check(found: object, name: str, *, marked: bool = False) -> Callable[..., object]:
    """`found`, if it can be a processor. Raises `UnusableProcessor`, which calls it `name`. `marked`: what it is called with is
    said by a `@processor` elsewhere, at the context manager function that has yielded it."""
    if inspect.isclass(found) or not callable(found):
        raise UnusableProcessor(f"{name!r} is {kind(found)}, not a function or an async context manager function")
    if inspect.isasyncgenfunction(found) or inspect.isgeneratorfunction(inspect.unwrap(without_partials(found))):
        raise UnusableProcessor(f"{name!r} is a generator function: decorate it with contextlib.asynccontextmanager")
    try:
        signature = inspect.signature(found)
        if opens(found):
            settings_arguments(found, None)
        elif options_of(found) is None and not marked:  # else `arguments.py` looks at the parameters
            signature.bind(object())
    except ValueError:
        pass  # no signature to be had (a builtin): the first message will tell
    except TypeError:
        raise UnusableProcessor(f"{name!r} cannot be called with one message: its signature is {signature}") from None
    return found


def opens(found: object) -> bool:
    """Whether this is a function made by `contextlib.asynccontextmanager`: it wraps an async generator function."""
    return callable(found) and inspect.isasyncgenfunction(inspect.unwrap(without_partials(found)))


def without_partials(found: Callable[..., object]) -> Callable[..., object]:
    while isinstance(found, functools.partial):
        found = found.func
    return found


def settings_arguments(found: Callable[..., object], settings: object) -> tuple[object, ...]:
    """`(settings,)` for a context manager function that takes an argument, `()` for one that takes none."""
    signature = inspect.signature(found)
    with contextlib.suppress(TypeError):
        signature.bind(settings)
        return (settings,)
    signature.bind()
    return ()


def _short(error: BaseException) -> str:
    """One line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def kind(thing: object) -> str:
    return f"the class {thing.__name__}" if inspect.isclass(thing) else f"a {type(thing).__name__}"


def name_of(thing: object) -> str:
    return getattr(thing, "__qualname__", repr(thing))


def not_done(result: object) -> bool:
    """Whether what was returned is work that nobody has done."""
    return (
        inspect.isawaitable(result)
        or inspect.isgenerator(result)
        or inspect.isasyncgen(result)
        or hasattr(result, "__aenter__")
    )
