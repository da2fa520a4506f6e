"""The same processor on a local SQS and a real etcd, in real time."""

import signal

import trio
from orders import processor

from svc import service
from svc.settings import load
from svc.sqs import queue as sqs


async def test_an_order_is_shipped_on_the_real_stack(svc_stack, warehouse):
    settings = load(svc_stack)

    async def stop_when_shipped():
        while warehouse.shipped != [7]:
            await trio.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)  # as an orchestrator would: drain, then end

    with trio.fail_after(30):
        async with sqs.opened(settings, polls=1) as queue:
            await queue.send('{"order": 7}')
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_when_shipped)
                assert await service.run(settings, processor) == 0  # drained
            left = await queue.attributes()
    assert (left["ApproximateNumberOfMessages"], left["ApproximateNumberOfMessagesNotVisible"]) == ("0", "0")
    assert not warehouse.is_open
