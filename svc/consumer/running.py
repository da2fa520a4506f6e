"""Around a call of the processor: what it left behind."""

import trio


def close_what_was_left_open(error: BaseException | None = None) -> None:
    """A nursery that the processor has opened and not closed (an exit stack that nobody closes) would end this task, and with it
    the service, with a RuntimeError. Its tasks are cancelled instead, and the message has failed."""
    task = trio.lowlevel.current_task()
    left_open = task.child_nurseries
    if not left_open:
        return
    for nursery in left_open:
        nursery.cancel_scope.cancel(reason="its processor has ended and left it open")
    # Trio has no public way to let go of a nursery; by this list it decides whether a task may end (`task_exited`, Trio 0.35).
    task._child_nurseries.clear()
    if error is None:
        raise RuntimeError("the processor returned and left a nursery open; what runs in it is cancelled")
