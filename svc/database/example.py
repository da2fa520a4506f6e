"""The processor of `svc dev --database`: every message is an order, and a row."""

import structlog

from svc.database.access import connection
from svc.processors import Message

log = structlog.get_logger(__name__)


async def write_order(message: Message) -> None:
    """Write the message into the table `orders`, which is created if it is not there."""
    async with connection() as database:
        await database.execute(
            "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, body text, at timestamptz DEFAULT now())"
        )
        await database.execute(
            "INSERT INTO orders (id, body) VALUES (%s, %s) ON CONFLICT DO NOTHING", (message.id, message.body)
        )
    log.info("order written", body=message.body[:60])
