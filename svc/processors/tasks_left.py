"""asyncio tasks that a processor starts: they belong to its message and end with it; one that fails by itself is told of."""

import asyncio
import contextvars
from typing import Any

import structlog

log = structlog.get_logger(__name__)

LEFT_BEHIND_SECONDS = 1.0
"""How long tasks that a processor left behind may take to end after they were cancelled."""

STARTED: contextvars.ContextVar["set[asyncio.Task[Any]] | None"] = contextvars.ContextVar(
    "svc_asyncio_tasks", default=None
)
"""What the call of this context has started and has not ended."""


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """What is started in this loop stands in `STARTED` from now on."""
    loop.set_exception_handler(_log_stray)
    loop.set_task_factory(_counted)


def started_here() -> "set[asyncio.Task[Any]]":
    """What is started in this context from now on, as long as it goes on."""
    started: set[asyncio.Task[Any]] = set()
    STARTED.set(started)
    return started


def _counted(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    started = STARTED.get() if context is None else context.get(STARTED)
    if started is not None:
        started.add(task)
        task.add_done_callback(started.discard)
    return task


async def end_what_was_left(tasks: "set[asyncio.Task[Any]]", context: contextvars.Context) -> None:
    """Cancel these, and log it in this context. Takes `LEFT_BEHIND_SECONDS` at most."""
    left = set(tasks)
    for task in left:
        task.cancel("the processor has ended")
    _, pending = await asyncio.wait(left, timeout=LEFT_BEHIND_SECONDS)
    names = sorted({getattr(one.get_coro(), "__qualname__", one.get_name()) for one in left})[:10]
    context.run(
        log.warning,
        "the processor left tasks behind: they are cancelled",
        tasks=names,
        count=len(left),
        ignored=len(pending),
    )


def _log_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error(
        "asyncio: a processor's task failed, and nobody waits for it", error=context.get("message"), exc_info=error
    )
