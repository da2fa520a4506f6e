# convert.py
import trio

from svc import Message

PROGRESS: dict[str, int] = {}  # stands for a store that survives the process


async def handle(message: Message) -> None:
    """Work of many minutes. A drain that runs out of time cancels it at the next `await`: what is done by then is kept, and the
    next delivery goes on from there. `trio.Cancelled` is let through."""
    film = message.json()
    for part in range(PROGRESS.get(message.id, 0), film["parts"]):
        await trio.sleep(30)  # stands for the conversion of one part
        PROGRESS[message.id] = part + 1
