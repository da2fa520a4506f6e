# orders.py
from svc import Message, Reject, Retry


async def handle(message: Message) -> None:
    order = message.json()
    if "id" not in order:
        raise Reject("an order without an id")  # to the dead-letter queue at once
    if order.get("not_before"):
        raise Retry(after=60)  # visible again in 60 seconds
    print("order", order["id"], "received", message.receive_count, "time(s)")
