# test_loader.py
import sqlite3

import loader


async def test_a_thousand_readings_in_a_few_transactions(svc_queue, svc_service, autojump_clock, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "DATABASE", str(tmp_path / "readings.sqlite"))
    svc_queue.put_all(*({"sensor": f"s{number % 7}", "celsius": number / 10} for number in range(999)))
    svc_queue.put_all({"sensor": "broken", "celsius": -300}, {"sensor": "silent"})
    service = await svc_service(loader.load, MAX_CONCURRENCY=1000)
    await service.idle()
    assert len(service.processed) == 999
    assert sorted(service.rejected) == ['{"sensor": "broken", "celsius": -300}', '{"sensor": "silent"}']
    assert len(service.batches) <= 4
    with sqlite3.connect(loader.DATABASE) as database:
        assert database.execute("SELECT count(*) FROM readings").fetchone() == (999,)
    database.close()


async def test_a_drain_loads_what_has_gathered(svc_queue, svc_service, autojump_clock, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "DATABASE", str(tmp_path / "readings.sqlite"))
    service = await svc_service(loader.load, MAX_CONCURRENCY=1000)
    svc_queue.put({"sensor": "s1", "celsius": 20})
    await service.wait_for(lambda: len(svc_queue.in_flight()) == 1)
    report = await service.stop()
    assert report.error is None
    assert service.processed == ['{"sensor": "s1", "celsius": 20}']
    assert not svc_queue.in_flight()
