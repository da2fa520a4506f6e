"""`GET /dead-letters`: in memory and virtual time."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from svc import Message, Reject
from svc.testing import Fault, SimulatedQueue
from tests.api.test_api import TOKEN, Api, run, running
from tests.described import Answered

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def reject(message: Message) -> None:
    raise Reject(f"no {message.body}")


def queue(**options: Any) -> tuple[SimulatedQueue, SimulatedQueue]:
    dead = SimulatedQueue("dead", **options)
    return SimulatedQueue(dead_letters=dead, max_receive_count=5), dead


async def ask(api: Api, limit: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
    answer = await api.client.get(f"/dead-letters{limit}", headers=headers or BEARER)
    return answer.status_code, await answer.get_json()


async def test_it_shows_them_with_their_reasons_and_keeps_none(autojump_clock: MockClock) -> None:
    held, dead = queue()
    async with running(reject, queue=held, API_TOKEN=TOKEN) as api:
        for number in range(30):
            held.put(f"body {number}", attributes={"kind": "test"})
        held.put("y" * 3000)
        await trio.sleep(5)
        status, body = await ask(api)
        assert (status, len(body["dead_letters"])) == (200, 20)
        shown = body["dead_letters"][0]
        assert shown["reason"] == f"no {shown['body']}"
        assert shown["attributes"]["kind"] == {"type": "String", "value": "test"}
        _, body = await ask(api, "?limit=50")
        assert len(body["dead_letters"]) == 31
        long = next(one for one in body["dead_letters"] if one["body"].startswith("y"))
        assert (len(long["body"]), long["body_length"], len(long["reason"])) == (2000, 3000, 500)
    assert len(dead.visible()) == 31
    assert max(dead.receive_count(one) for one in dead.visible()) == 2


async def test_nobody_looks_unasked(autojump_clock: MockClock) -> None:
    held, dead = queue()
    async with running(reject, queue=held, API_TOKEN=TOKEN) as api:
        held.put("x")
        watcher = api.feed.watch()
        assert watcher is not None
        await trio.sleep(200)
        await api.client.get("/")
        await api.client.get("/queue/info")
        assert dead.calls["receive"] == 0
        watcher.close()


@pytest.mark.parametrize("limit", ["0", "51", "-1", "x", "", "1e1", "%D9%A3", "9" * 5000, "5&limit=6"])
async def test_a_wrong_limit(autojump_clock: MockClock, limit: str) -> None:
    held, dead = queue()
    async with running(queue=held, API_TOKEN=TOKEN) as api:
        status, body = await ask(api, f"?limit={limit}")
        assert (status, body["message"]) == (400, "limit has to be a whole number from 1 to 50, once")
        assert dead.calls["receive"] == 0


async def test_one_looks_at_a_time_and_a_drain_waits_for_it(autojump_clock: MockClock) -> None:
    held, dead = queue(request_seconds=(1.0, 1.0))
    dead.put("x")
    answers: list[int] = []
    async with running(queue=held, API_TOKEN=TOKEN) as api, trio.open_nursery() as nursery:

        async def look() -> None:
            answers.append((await ask(api))[0])

        nursery.start_soon(look)
        await trio.sleep(0.5)
        assert (await ask(api))[0] == 409
        api.switch.set("on")
        await trio.sleep(0.5)
        assert api.core.gate.statistics().under_way == 1
        assert (await ask(api))[0] == 503
        await trio.sleep(10)
        assert answers == [200]
        assert api.core.manager.state().phase.value == "maintenance"
    assert len(dead.visible()) == 1


async def test_who_goes_away_leaves_nothing_hidden(autojump_clock: MockClock) -> None:
    held, dead = queue(request_seconds=(1.0, 1.0))
    for number in range(12):
        dead.put(f"body {number}")
    async with running(queue=held, API_TOKEN=TOKEN) as api:
        with trio.move_on_after(1.5):
            await ask(api)
        await trio.sleep(3)
        assert len(dead.visible()) == 12
        assert (await ask(api))[0] == 200  # and the next may look


async def meet_every_answer() -> set[Answered]:
    """Each that is described, once."""
    met = set[Answered]()
    held, dead = queue(faults=[Fault("denied", "receive", nth=2), Fault("delay", "receive", nth=3, seconds=100)])
    async with running(queue=held, API_TOKEN=TOKEN) as api:
        await run(api)
        assert (await ask(api))[0] == 200
        assert (await ask(api))[0] == 502
        assert (await ask(api))[0] == 504
        assert (await ask(api, "?limit=x"))[0] == 400
        assert (await ask(api, Authorization="Bearer wrong"))[0] == 403
        assert (await ask(api, Accept="text/plain"))[0] == 401
        dead._request_seconds = (1.0, 1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, api)
            await trio.sleep(0.5)
            assert (await ask(api))[0] == 409
        api.switch.set("on")
        await trio.sleep(1)
        assert (await ask(api))[0] == 503
        met |= api.met
    async with running(API_TOKEN=TOKEN) as api:
        await run(api)
        status, body = await ask(api)
        assert (status, "no dead-letter queue" in body["message"]) == (409, True)
        met |= api.met
    async with running() as api:  # without a token nobody may
        await run(api)
        status, body = await ask(api)
        assert (status, "set API_TOKEN" in body["message"]) == (403, True)
    return met


async def test_every_answer(autojump_clock: MockClock) -> None:
    met = {status for _, path, status in await meet_every_answer() if path == "/dead-letters"}
    assert met == {200, 400, 401, 403, 409, 502, 503, 504}
