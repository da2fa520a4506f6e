"""taskiq with taskiq-aio-sqs. Run as `taskiq worker bench_taskiq:broker`, or as a script to send the first message."""

import asyncio
import os
import time

from taskiq_aio_sqs import SQSBroker

broker = SQSBroker(
    os.environ["BENCH_QUEUE"],
    endpoint_url=os.environ["BENCH_ENDPOINT"],
    region_name="us-east-1",
    aws_access_key_id="bench",
    aws_secret_access_key="bench",
    wait_time_seconds=20,
    max_number_of_messages=10,
    visibility_timeout=30,
)


@broker.task(task_name="nothing")
async def nothing(order: int) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)


async def send() -> None:
    await broker.startup()
    await nothing.kiq(1)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(send())
