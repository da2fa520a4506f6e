# test_warehouse.py
import httpx
import pytest
from warehouse import handler


@pytest.mark.svc_queue(max_receive_count=10)
async def test_an_order_is_sent_again_until_the_warehouse_takes_it(svc_queue, svc_service, autojump_clock):
    answers = [503, 503, 201]
    warehouse = httpx.MockTransport(lambda request: httpx.Response(answers.pop(0)))
    async with httpx.AsyncClient(transport=warehouse, base_url="http://warehouse.internal") as client:
        svc_queue.put({"order": 7})
        service = await svc_service(handler(client), RETRY_BACKOFF="5s-15m")
        assert await service.outcome({"order": 7}, nth=3) == "processed"
    assert len(service.failed) == 2
