# convert.py
import trio

from svc import Message, Retry

PROGRESS: dict[str, int] = {}  # stands for a store that survives the process


async def handle(message: Message) -> None:
    """Work of many minutes. When a drain begins, it stops after the part that it is at, and the next delivery goes on from there.
    A part that outlasts the drain is cancelled at its next `await`: `trio.Cancelled` is let through."""
    film = message.json()
    for part in range(PROGRESS.get(message.id, 0), film["parts"]):
        if message.shutting_down.is_set():
            raise Retry("stopped for a drain", after=30)
        await trio.sleep(30)  # stands for the conversion of one part
        PROGRESS[message.id] = part + 1
