"""celery with kombu's SQS transport. Run as `celery -A bench_celery worker`, or as a script to send the first message."""

import os
import time
from urllib.parse import urlsplit

from celery import Celery

QUEUE, ENDPOINT = os.environ["BENCH_QUEUE"], os.environ["BENCH_ENDPOINT"]

app = Celery("bench", broker=f"sqs://bench:bench@{urlsplit(ENDPOINT).netloc}//")
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late=True,  # deleted after the work, as everybody else here does it: by default celery deletes before
    task_ignore_result=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=10,
    broker_transport_options={
        "region": "us-east-1",
        "is_secure": False,
        "wait_time_seconds": 20,
        "polling_interval": 0,  # rely on long polling alone
        "visibility_timeout": 30,
        "predefined_queues": {
            QUEUE: {"url": f"{ENDPOINT}/000000000000/{QUEUE}", "access_key_id": "bench", "secret_access_key": "bench"}
        },
    },
)


@app.task(name="nothing")
def nothing(order: int) -> None:
    if STAMPS:
        os.write(STAMPS, f"{time.monotonic():.6f}\n".encode())


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)

if __name__ == "__main__":
    nothing.delay(1)
