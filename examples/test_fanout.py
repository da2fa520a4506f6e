# test_fanout.py
import pytest
from fanout import SHIPPED, handle

TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"


@pytest.mark.svc_queue(max_receive_count=3)
async def test_an_order_is_shipped_and_what_is_none_is_rejected(svc_queue, svc_service, autojump_clock):
    order = svc_queue.put_sns({"id": 7}, topic_arn=TOPIC)
    none = svc_queue.put_sns({"id": "seven"})
    service = await svc_service(handle)
    assert await service.outcome(order) == "processed"
    assert await service.outcome(none) == "rejected"
    assert SHIPPED == [(7, TOPIC)]
