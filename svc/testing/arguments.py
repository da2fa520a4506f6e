"""What a test gives a simulated service, checked before anything runs: the processor and the settings."""

import difflib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from svc import processors
from svc.processors import Message
from svc.settings import BadSettings, Settings, load, variable


async def _succeed(message: Message) -> None:
    """The processor of a service that was given none."""


def checked_processor(given: Callable[..., object] | str | None) -> Callable[..., object]:
    """The processor that is meant: a function, `module:attribute`, or None for one that succeeds at once. Raises
    `UnusableProcessor`."""
    if given is None:
        return _succeed
    if isinstance(given, str):
        return processors.find(given)
    called = getattr(given, "__qualname__", None) or "the processor"
    if isinstance(given, AbstractAsyncContextManager):
        raise processors.UnusableProcessor(
            f"{called} is an async context manager that was made already: give the function itself, without parentheses"
        )
    return processors.check(given, called)


def checked_settings(given: Mapping[str, object], *, fifo: bool) -> Settings:
    """The settings by their names in the environment, as text or numbers. Unlike `settings.load` it knows no strangers: here a
    name is a misspelt one, not somebody else's variable. Raises `BadSettings`."""
    known = [variable(field) for field in Settings.model_fields]
    faults, environ = [], {}
    for setting, value in given.items():
        if setting == "SQS_QUEUE_URL":
            faults.append("SQS_QUEUE_URL is not to be given: the queue is the simulated one")
        elif setting == "MESSAGE_PROCESSOR":
            faults.append("MESSAGE_PROCESSOR is not to be given: the processor is the argument before the settings")
        elif setting not in known:
            near = difflib.get_close_matches(setting.upper(), known, 1)
            faults.append(f"{setting} is no setting of svc" + (f"; did you mean {near[0]}?" if near else ""))
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            faults.append(f"{setting} is {value!r}; give it as in the environment: as text, or as a number")
        else:
            environ[setting] = str(value)
    if faults:
        raise BadSettings(faults)
    url = f"http://simulated/000000000000/simulated{'.fifo' if fifo else ''}"
    return load({**environ, "SQS_QUEUE_URL": url})
