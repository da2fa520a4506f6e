# test_payments.py
import sqlite3

import payments
import trio


async def test_a_payment_is_made_once_although_the_process_dies_before_the_delete(
    svc_queue, svc_service, autojump_clock, tmp_path, monkeypatch
):
    monkeypatch.setattr(payments, "DATABASE", str(tmp_path / "payments.sqlite"))

    async def pay_and_die(message):
        await trio.to_thread.run_sync(payments.handle, message)
        first.crash()

    svc_queue.put({"account": "7", "cents": 995})
    first = await svc_service(pay_and_die)
    await first.wait_for(lambda: first.ended)
    second = await svc_service(payments.handle)
    assert await second.outcome({"account": "7", "cents": 995}) == "processed"
    database = sqlite3.connect(payments.DATABASE)
    assert database.execute("SELECT * FROM payments").fetchall() == [("7", 995)]
    database.close()
