# test_convert.py
import convert


async def test_a_drain_gives_the_film_back_and_the_next_delivery_goes_on(svc_queue, svc_service, autojump_clock):
    svc_queue.put({"parts": 10})
    service = await svc_service(convert.handle, DRAIN_TIMEOUT="30s")
    await service.at_work({"parts": 10}, seconds=100)  # three parts are done
    service.maintenance("on")
    report = await service.drained()
    assert report.error is None  # it stopped by itself, after the fourth part
    assert service.released == ['{"parts": 10}']
    service.maintenance("off")
    began = service.when({"parts": 10}, "began")
    assert await service.outcome({"parts": 10}, nth=2) == "processed"
    assert service.when({"parts": 10}, "processed") - began < 100 + 30 + 10 * 30  # not all over again
