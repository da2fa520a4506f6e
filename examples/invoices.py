# invoices.py
from pydantic import BaseModel

from svc import Transaction, processor


class Order(BaseModel):
    id: str
    cents: int


@processor(exactly_once=lambda order: order.id)
async def handle(order: Order, transaction: Transaction) -> None:
    """The invoice and the memory of its order are committed together, or not at all: each order gets one invoice."""
    await transaction.execute("INSERT INTO invoices (order_id, cents) VALUES (%s, %s)", (order.id, order.cents))
