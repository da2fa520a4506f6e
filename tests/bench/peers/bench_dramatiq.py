"""dramatiq with dramatiq-sqs. Run as `dramatiq bench_dramatiq`, or as a script to send the first message."""

import os
import time

import dramatiq
from dramatiq_sqs import SQSBroker

dramatiq.set_broker(
    SQSBroker(
        middleware=[],  # no retries, time limits or age limits: as fast as it goes
        visibility_timeout=30,
        endpoint_url=os.environ["BENCH_ENDPOINT"],
        region_name="us-east-1",
    )
)


@dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"])
def nothing(order: int) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)

if __name__ == "__main__":
    nothing.send(1)
