# test_fanout.py
import json

import pytest
from fanout import SHIPPED, handle

TOPIC = "arn:aws:sns:eu-west-1:123456789012:orders"


def notification(payload):
    return {"Type": "Notification", "MessageId": "1", "TopicArn": TOPIC, "Message": json.dumps(payload)}


@pytest.mark.svc_queue(max_receive_count=3)
async def test_an_order_is_shipped_and_what_is_none_is_rejected(svc_queue, svc_service, autojump_clock):
    order, none = notification({"id": 7}), notification({"id": "seven"})
    svc_queue.put(order)
    svc_queue.put(none)
    service = await svc_service(handle)
    assert await service.outcome(order) == "processed"
    assert await service.outcome(none) == "rejected"
    assert SHIPPED == [(7, TOPIC)]
