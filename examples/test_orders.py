# test_orders.py
from orders import handle


async def test_each_order_goes_its_way(svc_queue, svc_service, autojump_clock):
    svc_queue.put_all({"id": 7}, {"item": "a chair"}, {"id": 8, "not_before": "noon"})
    service = await svc_service(handle)
    assert await service.outcome({"id": 7}) == "processed"
    assert await service.outcome({"item": "a chair"}) == "rejected"
    assert await service.outcome({"id": 8, "not_before": "noon"}) == "released"
    assert svc_queue.dead_letters.bodies == ['{"item": "a chair"}']
