"""The processor between a simulated queue and a simulated maintenance key: exact, and in no real time."""

import pytest
from orders import processor

from svc.maintenance.handler import DrainOutcome


async def test_orders_are_shipped(svc_queue, svc_service, autojump_clock, warehouse):
    svc_queue.put_all({"order": 1}, {"order": 2})
    service = await svc_service(processor)
    await service.idle()
    assert sorted(warehouse.shipped) == [1, 2]
    assert sorted(service.processed) == ['{"order": 1}', '{"order": 2}']
    # One receive brought both, the next waits; one delete for both.
    assert (svc_queue.calls["receive"], svc_queue.calls["delete"]) == (2, 1)


async def test_the_warehouse_is_closed_after_the_last_message(svc_queue, svc_service, autojump_clock, warehouse):
    svc_queue.put({"order": 1, "seconds": 4})
    service = await svc_service("orders:processor")
    await service.at_work(seconds=1)
    report = await service.stop()
    assert report.outcome is DrainOutcome.DRAINED
    assert warehouse.shipped == [1]
    assert not warehouse.is_open


async def test_a_long_order_goes_back_to_the_queue_when_the_drain_is_over(svc_queue, svc_service, autojump_clock):
    short, long = svc_queue.put_all({"order": 1, "seconds": 5}, {"order": 2, "seconds": 50})
    service = await svc_service(processor, DRAIN_TIMEOUT="10s")
    await service.at_work(long, seconds=3)
    service.maintenance("on")
    report = await service.drained()
    assert report.outcome is DrainOutcome.EXPIRED
    assert svc_queue.deleted == [short]
    assert svc_queue.visible() == [long]
    # Of the ten seconds one is kept for giving back.
    assert service.when(long, "released") == pytest.approx(0.1 + 3 + 9)


async def test_out_of_stock_comes_back_after_a_minute(svc_queue, svc_service, autojump_clock, warehouse):
    order = svc_queue.put({"order": 7, "stock": 0})
    service = await svc_service(processor)
    assert await service.outcome(order) == "released"
    released = service.when(order, "released")
    assert await service.outcome(order, nth=2) == "processed"
    assert service.when(order, "began", nth=2) == pytest.approx(released + 60)
    assert warehouse.shipped == [7]


@pytest.mark.parametrize(("body", "reason"), [("{", "not JSON"), ({}, "an order without a number")])
async def test_nonsense_is_dead_lettered(body, reason, svc_queue, svc_service, autojump_clock):
    svc_queue.put(body)
    service = await svc_service(processor)
    await service.idle()
    (dead,) = svc_queue.dead_letters.visible()
    assert svc_queue.dead_letters.attributes_of(dead)["RejectReason"] == reason
    assert len(service.rejected) == 1


async def test_an_order_is_shipped_once_though_its_delete_failed(svc_queue, svc_service, autojump_clock, warehouse):
    order = svc_queue.put({"order": 1})
    svc_queue.fail("delete", "timeout-after", message=order)
    service = await svc_service(processor)
    await service.idle()
    assert warehouse.shipped == [1]
    assert svc_queue.calls["delete"] == 2


async def test_a_crash_costs_a_visibility_timeout(svc_queue, svc_service, autojump_clock, warehouse):
    order = svc_queue.put({"order": 1, "seconds": 5})
    first = await svc_service(processor, SQS_VISIBILITY_TIMEOUT_SECONDS=30)
    await first.at_work(order, seconds=2)
    first.crash()
    second = await svc_service(processor)
    await second.idle()
    assert warehouse.shipped == [1]
    assert second.when(order, "began") == pytest.approx(30.1)
