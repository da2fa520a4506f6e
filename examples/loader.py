# loader.py
import os
import sqlite3

from pydantic import BaseModel

from svc import Batch, processor

DATABASE = os.environ.get("READINGS_DATABASE", "readings.sqlite")


class Reading(BaseModel):
    sensor: str
    celsius: float


@processor(batch=500, linger=2.0)
def load(batch: Batch[Reading]) -> None:
    """Up to 500 messages in one transaction. If it fails, they have all failed and come back, but for what is rejected here."""
    rows = []
    for item in batch:
        if item.payload.celsius < -273.15:
            item.reject("colder than can be")
        else:
            rows.append((item.message.id, item.payload.sensor, item.payload.celsius))
    with sqlite3.connect(DATABASE, timeout=10) as database:
        database.execute("CREATE TABLE IF NOT EXISTS readings (message_id TEXT PRIMARY KEY, sensor TEXT, celsius REAL)")
        database.executemany("INSERT OR IGNORE INTO readings VALUES (?, ?, ?)", rows)
    database.close()
