"""The floor: a bare aiobotocore loop with no service around it. `python floor.py KIND ENDPOINT QUEUE_URL RECEIVERS`

Each of the receivers asks for ten messages, does nothing, and deletes the ten in one call. Nothing is left out that a
consumer cannot leave out with this SDK, and nothing added: no leases, no errors, no drain. KIND `trio` is the same through
trio-asyncio, and `direct` the same without the SDK, over the connections that `svc` uses (`svc/sqs/direct.py`).
"""

import asyncio
import os
import sys
import time
from typing import Any


def client(endpoint: str, receivers: int) -> Any:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=2 * receivers, read_timeout=30, retries={"total_max_attempts": 1})
    return get_session().create_client("sqs", region_name="us-east-1", endpoint_url=endpoint, config=config)


def receive(url: str) -> dict[str, Any]:
    return {"QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 20, "VisibilityTimeout": 30,
            "AttributeNames": ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"],
            "MessageAttributeNames": ["All"]}  # fmt: skip


STAMPS = (
    os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "BENCH_STAMPS" in os.environ else 0
)


def delete(url: str, answer: dict[str, Any]) -> dict[str, Any]:
    if STAMPS:
        os.write(STAMPS, (f"{time.monotonic():.6f}\n" * len(answer["Messages"])).encode())
    entries = [{"Id": str(n), "ReceiptHandle": m["ReceiptHandle"]} for n, m in enumerate(answer["Messages"])]
    return {"QueueUrl": url, "Entries": entries}


async def on_asyncio(endpoint: str, url: str, receivers: int) -> None:
    async def loop(sqs: Any) -> None:
        while True:
            answer = await sqs.receive_message(**receive(url))
            if answer.get("Messages"):
                await sqs.delete_message_batch(**delete(url, answer))

    async with client(endpoint, receivers) as sqs:
        await asyncio.gather(*(loop(sqs) for _ in range(receivers)))


async def on_trio(endpoint: str, url: str, receivers: int) -> None:
    import trio
    import trio_asyncio
    from trio_asyncio import aio_as_trio

    async def loop(sqs: Any) -> None:
        while True:
            answer = await aio_as_trio(sqs.receive_message)(**receive(url))
            if answer.get("Messages"):
                await aio_as_trio(sqs.delete_message_batch)(**delete(url, answer))

    async with (
        trio_asyncio.open_loop(),
        aio_as_trio(client(endpoint, receivers)) as sqs,
        trio.open_nursery() as nursery,
    ):
        for _ in range(receivers):
            nursery.start_soon(loop, sqs)


async def on_direct(endpoint: str, url: str, receivers: int) -> None:
    import trio

    from svc.sqs import direct
    from svc.sqs.credential_sources import look
    from svc.sqs.credentials import Credentials
    from svc.sqs.handover import Handover

    async def loop(call: Any) -> None:
        while True:
            answer = await call("receive_message", **receive(url))
            if answer.get("Messages"):
                await call("delete_message_batch", **delete(url, answer))

    here = Handover(endpoint, "us-east-1", "bench", None)
    keys = Credentials(lambda: look("us-east-1"))
    async with direct.opened(here, keys, [(2 * receivers, 1)]) as [call], trio.open_nursery() as nursery:
        for _ in range(receivers):
            nursery.start_soon(loop, call)


if __name__ == "__main__":
    kind, endpoint, url, receivers = sys.argv[1:]
    if kind != "asyncio":
        import trio

        trio.run(on_trio if kind == "trio" else on_direct, endpoint, url, int(receivers))
    else:
        asyncio.run(on_asyncio(endpoint, url, int(receivers)))
