"""fanferro, whose core is written in Rust. A script: `run`, or `send` for the first message."""

import asyncio
import os
import sys
import time

import fanferro

client = fanferro.Client(
    endpoint_url=os.environ["BENCH_ENDPOINT"],
    region="us-east-1",
    account_id="000000000000",
    credentials=fanferro.Credentials("bench", "bench"),
    provisioning=fanferro.Provisioning.assume(),
)
queue = client.queue(
    os.environ["BENCH_QUEUE"], url=f"{os.environ['BENCH_ENDPOINT']}/000000000000/{os.environ['BENCH_QUEUE']}"
)
consumer = client.consumer(queue, concurrency=100, wait_time=20, visibility_timeout=30)


@consumer.default
async def nothing(message: fanferro.Message[bytes]) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)


async def main() -> None:
    async with client:
        if sys.argv[1] == "run":
            await consumer.run()
        else:
            await queue.send({"order": 1})


if __name__ == "__main__":
    asyncio.run(main())
