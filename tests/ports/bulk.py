"""A bulk loader: a plain function that COPYs up to 500 messages at a time."""

import os
import time

import psycopg
from pydantic import BaseModel

from svc import Batch, processor


class Order(BaseModel):
    id: int
    seconds: float = 0.0


@processor(batch=500, linger=0.2)
def handle(batch: Batch[Order]) -> None:
    with psycopg.connect(os.environ["EFFECTS"]) as connection:
        with connection.cursor().copy("COPY effects FROM STDIN") as copy:
            for item in batch:
                copy.write_row((item.payload.id, item.message.id))
        time.sleep(max(order.seconds for order in batch.payloads))
