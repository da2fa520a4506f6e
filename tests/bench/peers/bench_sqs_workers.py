"""sqs-workers. A script: `run`, or `send` for the first message."""

import os
import sys
import time

import boto3
from sqs_workers import SQSEnv

QUEUE, ENDPOINT = os.environ["BENCH_QUEUE"], os.environ["BENCH_ENDPOINT"]

env = SQSEnv(
    sqs_client=boto3.client("sqs", endpoint_url=ENDPOINT, region_name="us-east-1"),
    sqs_resource=boto3.resource("sqs", endpoint_url=ENDPOINT, region_name="us-east-1"),
    codec="json",
)
queue = env.queue(QUEUE)


@queue.processor("nothing")
def nothing(order: int) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)

if __name__ == "__main__":
    if sys.argv[1] == "run":
        queue.process_queue(wait_second=20)
    else:
        nothing.delay(order=1)
