"""onestep with onestep-sqs. Run as `onestep run bench_onestep:app`; any JSON body is a message."""

import os
import time

from onestep import OneStepApp
from onestep_sqs import SQSConnector

ENDPOINT, QUEUE = os.environ["BENCH_ENDPOINT"], os.environ["BENCH_QUEUE"]
STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)

app = OneStepApp("bench")
sqs = SQSConnector(region_name="us-east-1", options={"endpoint_url": ENDPOINT})
source = sqs.queue(f"{ENDPOINT}/000000000000/{QUEUE}", wait_time_s=20, visibility_timeout=30, batch_size=10)


@app.task(source=source, concurrency=100)
async def nothing(ctx: object, item: object) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


if __name__ == "__main__":
    pass  # it sends nothing: the stub's own bodies are messages to it
