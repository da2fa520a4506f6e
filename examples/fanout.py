# fanout.py
from pydantic import BaseModel

from svc import Message, processor

SHIPPED: list[tuple[int, str]] = []


class Order(BaseModel):
    id: int
    city: str = "unknown"


@processor(envelope="sns")
async def handle(order: Order, message: Message) -> None:
    """An order that comes through SNS. What is no order is rejected at once, with the wrong fields as the reason."""
    SHIPPED.append((order.id, message.envelope.topic_arn))
