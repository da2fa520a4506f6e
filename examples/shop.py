# shop.py
from pydantic import BaseModel

from svc import Message, processor


class Order(BaseModel):
    id: int
    lines: list[str] = []


@processor(envelope="sns")
async def handle(order: Order, message: Message) -> None:
    """The body arrives as an `Order`, without what SNS has put around it. What is no order goes to the dead-letter queue."""
    print("order", order.id, "from", message.envelope.topic_arn)
