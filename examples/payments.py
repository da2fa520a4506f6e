# payments.py
import os
import sqlite3

from svc import Message

DATABASE = os.environ.get("PAYMENTS_DATABASE", "payments.sqlite")


def handle(message: Message) -> None:
    """SQS delivers at least once. The message's id and its effect are committed together, so a second delivery has no effect."""
    payment = message.json()
    with sqlite3.connect(DATABASE, timeout=10) as database:
        database.execute("CREATE TABLE IF NOT EXISTS done (message_id TEXT PRIMARY KEY)")
        database.execute("CREATE TABLE IF NOT EXISTS payments (account TEXT, cents INTEGER)")
        if database.execute("INSERT OR IGNORE INTO done VALUES (?)", (message.id,)).rowcount:
            database.execute("INSERT INTO payments VALUES (?, ?)", (payment["account"], payment["cents"]))
    database.close()
