# test_digest.py
from digest import handle


async def test_work_in_threads_goes_side_by_side(svc_queue, svc_service, autojump_clock):
    svc_queue.put_all("a", "b", "c")
    service = await svc_service(handle)
    await service.idle()
    assert sorted(service.processed) == ["a", "b", "c"]
    assert svc_queue.calls["receive"] <= 2
