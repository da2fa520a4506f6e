# orders.py
from svc import Message, Reject, Retry


async def handle(message: Message) -> None:
    try:
        order = message.json()
        number = order["id"]
    except (ValueError, KeyError, TypeError):
        raise Reject("no order with an id") from None  # to the dead-letter queue at once
    if order.get("not_before"):
        raise Retry(after=60)  # visible again in 60 seconds
    print("order", number, "received", message.receive_count, "time(s)")
