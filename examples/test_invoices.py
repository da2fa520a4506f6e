# test_invoices.py
from invoices import handle


async def test_one_invoice_although_the_process_dies_between_commit_and_delete(svc_queue, svc_service, autojump_clock):
    svc_queue.put({"id": "A-1", "cents": 995})
    first = await svc_service(handle)
    await svc_service.inbox.commits(1)
    first.crash()
    second = await svc_service(handle)
    await second.idle()
    assert [params for _, params in svc_service.inbox.statements] == [("A-1", 995)]
    assert second.duplicates == 1


async def test_one_invoice_although_the_order_is_sent_twice(svc_queue, svc_service, autojump_clock):
    svc_queue.put_all({"id": "A-1", "cents": 995}, {"id": "A-1", "cents": 995, "again": True})
    service = await svc_service(handle)
    await service.idle()
    assert len(svc_service.inbox.statements) == 1
    assert len(service.processed) == 2
