# digest.py
import hashlib

from svc import Message


def handle(message: Message) -> None:
    """A plain function runs in a worker thread: it may compute and block."""
    digest = hashlib.scrypt(message.body.encode(), salt=message.id.encode(), n=2**12, r=8, p=1)
    print(message.id, digest.hex()[:16])
