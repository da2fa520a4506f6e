"""Opens clients of AWS, for SQS and for CloudWatch, on one of the roads.

`direct`    our own calls over Trio's sockets (`direct.py`), for SQS. The SDK only says where to.
`asyncio`, `native`   the SDK's calls (`sdk.py`), imported only when they are needed.

`opened()` is the one door, and what it yields is the same on all: `await call("receive_message", QueueUrl=…)` returns the answer
or raises; it can be cut off at any moment, at once, and leaves its client usable; leaving the block closes every connection in
bounded time, under a cancelled scope too. `tests/sqs/test_sqs.py` and `tests/testing/test_queue_contract.py` hold all to it.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit

import trio

from svc.consumer.queue import QueueMisconfigured
from svc.settings import Settings
from svc.sqs import direct
from svc.sqs.access import QueueUrl, Service, credentials, with_credentials, with_queue_url
from svc.sqs.calls import Call as Call
from svc.sqs.calls import Pool as Pool
from svc.sqs.handover import Handover, NotDirect, handover

log = logging.getLogger(__name__)

Road = Literal["direct", "asyncio", "native"]
"""How SQS is called."""


@asynccontextmanager
async def opened(
    settings: Settings, pools: Sequence[Pool], service: Service = "sqs", *, introduce: bool = False
) -> AsyncIterator[Sequence[Call]]:
    """One client for each pool, closed at the end (within `sdk.CLOSING_SECONDS`).

    Nothing is asked of the service yet: an unreachable queue opens. Raises `QueueMisconfigured` when the AWS configuration of
    this machine cannot be read. An `Exception` raised inside comes out as it is, not in the groups of an asyncio loop.
    `introduce`: say in the log as whom AWS knows us.
    """
    if "@" in urlsplit(settings.aws_endpoint).netloc:
        raise QueueMisconfigured("AWS_ENDPOINT holds a user name; take it out: requests to SQS are signed instead")
    keys, queue = credentials(settings, introduce=introduce), QueueUrl(settings)
    if service == "sqs" and (handed := await _for_direct(settings)) is not None:
        async with direct.opened(handed, keys, [(pool.connections, pool.attempts) for pool in pools]) as clients:
            yield [with_queue_url(client, queue) for client in clients]
        return
    from svc.sqs import sdk

    async with sdk.opened(settings, pools, service, keys) as calls:
        yield [with_queue_url(with_credentials(call, keys), queue) for call in calls]


async def _for_direct(settings: Settings) -> Handover | None:
    """What the direct road needs; None where it is not to be taken."""
    if settings.sqs_transport not in ("auto", "direct"):
        return None
    try:
        return await trio.to_thread.run_sync(handover, settings, abandon_on_cancel=True)
    except NotDirect as error:
        if settings.sqs_transport == "direct":
            raise QueueMisconfigured(f"SQS_TRANSPORT=direct cannot be used with {error}; leave it unset") from None
        log.info("SQS is called through the AWS SDK, which costs more CPU: the direct way does not do %s", error)
        return None
