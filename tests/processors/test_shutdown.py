"""`ShuttingDown`, in real time: who waits on Trio, on asyncio loops of other threads, and in threads is woken by one `set()`."""

import asyncio
import sys
import threading

import pytest
import trio

from svc.processors import ShuttingDown


async def test_everybody_is_woken_wherever_he_waits() -> None:
    event, woken = ShuttingDown(), []
    ready = threading.Semaphore(0)

    async def on_trio() -> None:
        ready.release()
        await event.wait()
        woken.append("trio")

    async def on_asyncio() -> None:
        async def one() -> None:
            ready.release()
            await event.wait()
            woken.append("asyncio")

        async def impatient() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(event.wait(), 0.01)  # type: ignore[arg-type]

        await impatient()
        await asyncio.gather(one(), one())
        await event.wait()  # at once

    def in_a_thread() -> None:
        ready.release()
        assert event.wait(timeout=60)
        woken.append("thread")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(on_trio)
        nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(on_asyncio()))
        nursery.start_soon(trio.to_thread.run_sync, in_a_thread)
        for _ in range(4):
            await trio.to_thread.run_sync(ready.acquire)
        assert not event.is_set()
        assert not woken
        event.set()
    assert sorted(woken) == ["asyncio", "asyncio", "thread", "trio"]
    event.set()  # a second drain's begin, or the end of the worker: nothing happens


async def test_a_loop_that_has_ended_with_somebody_waiting_harms_nobody() -> None:
    event = ShuttingDown()

    async def wait() -> None:
        await event.wait()

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(wait())
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert not task.done()
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    await trio.to_thread.run_sync(abandon)
    event.set()
    await event.wait()


async def test_the_one_wait_in_the_place_of_the_other_says_so() -> None:
    event = ShuttingDown()
    with pytest.raises(RuntimeError, match=r"on trio waits with: await shutting_down\.wait\(\)"):
        event.wait(timeout=1)

    def plain() -> None:
        with pytest.raises(RuntimeError, match="timeout=seconds"):
            event.wait()
        assert not event.wait(timeout=-1)

    async def on_asyncio() -> None:
        with pytest.raises(RuntimeError, match="on asyncio waits with"):
            event.wait(timeout=1)

    await trio.to_thread.run_sync(plain)
    await trio.to_thread.run_sync(lambda: asyncio.run(on_asyncio()))
    event.set()

    def long() -> None:
        assert event.wait(timeout=sys.float_info.max)

    await trio.to_thread.run_sync(long)
