# test_prices.py
import sys

import pytest
from prices import prices


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio processors have no virtual time there (trio-asyncio)")
async def test_a_price_is_stored(svc_queue, svc_service, autojump_clock):
    svc_queue.put({"article": "tea", "cents": 250})
    service = await svc_service(prices)
    assert await service.outcome({"article": "tea", "cents": 250}) == "processed"
