# test_shop.py
from shop import handle


def notification(text):
    return {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:eu-central-1:1:orders", "Message": text}


async def test_an_order_is_read_and_what_is_none_is_rejected(svc_queue, svc_service, autojump_clock):
    svc_queue.put_all(notification('{"id": 7}'), notification('{"lines": []}'))
    service = await svc_service(handle)
    await service.idle()
    assert len(service.processed) == 1
    (rejected,) = svc_queue.dead_letters.bodies
    assert "lines" in rejected
