"""The page's server side, in memory and virtual time: the history of the figures, what is shown, the feed, the files and headers.

What a browser makes of it is in `tests/api/test_page_browser.py`, the feed on real connections in `tests/api/test_page_live.py`.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from svc import Message, Reject
from svc.api import feed, page_content, routes_page
from svc.api.feed import Feed, Watcher
from svc.api.history import History, Sample
from svc.consumer.ledger import Counts
from svc.consumer.queue import QueueMisconfigured
from svc.testing import Fault, Outage, SimulatedQueue, SimulatedSwitch
from tests import screenshots
from tests.api.test_api import PHASES, Api, for_ever, in_phase, nothing, running

HTML = (routes_page.FOLDER / "page.html").read_text()
SCRIPT = "".join(path.read_text() for path in sorted(routes_page.FOLDER.glob("*.js")))
STYLE = (routes_page.FOLDER / "page.css").read_text()


# -- the history --


class Figures:
    """Counts that a test sets."""

    def __init__(self) -> None:
        self.processed = self.failed = self.rejected = self.lost = self.released = self.in_flight = 0

    def __call__(self) -> Counts:
        ended = (self.processed, self.failed, self.released, self.rejected, self.lost)
        return Counts(sum(ended) + self.in_flight, *ended, self.in_flight)


async def test_a_sample_is_the_difference_of_two_looks(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    figures = Figures()
    history = History(figures)
    nursery.start_soon(history.run)
    await trio.sleep(4.9)
    figures.processed, figures.failed, figures.rejected, figures.lost, figures.released = 10, 1, 2, 3, 4
    figures.in_flight = 7
    assert history.samples() == ()
    await trio.sleep(0.2)
    assert history.samples() == (Sample(5, 5, processed=10, failed=6, released=4, in_flight=7),)
    figures.processed, figures.in_flight = 12, 0
    await trio.sleep(5)
    assert history.samples()[1] == Sample(10, 5, processed=2, failed=0, released=0, in_flight=0)
    await trio.sleep(5)
    assert history.samples()[2] == Sample(15, 5, processed=0, failed=0, released=0, in_flight=0)
    assert history.taken == 3


async def test_the_history_keeps_fifteen_minutes_and_no_more(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    history = History(Figures())
    nursery.start_soon(history.run)
    await trio.sleep(3 * 3600 + 1)
    samples = history.samples()
    assert len(samples) == 180
    assert [samples[0].at, samples[-1].at] == [3 * 3600 - 179 * 5, 3 * 3600]
    assert history.taken == 2160


async def test_a_process_that_did_not_get_to_run_takes_one_long_sample(mock_clock: MockClock) -> None:
    figures = Figures()
    history = History(figures)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(history.run)
        await trio.testing.wait_all_tasks_blocked()
        figures.processed = 40
        for jump in (20, 4.9, 0.1):  # the machine slept; then a beat of 5 s from its waking
            mock_clock.jump(jump)
            await trio.testing.wait_all_tasks_blocked()
        assert [(sample.at, sample.seconds, sample.processed) for sample in history.samples()] == [
            (20, 20, 40),
            (25, 5, 0),
        ]
        nursery.cancel_scope.cancel()


def test_rates_are_per_second_of_the_sample() -> None:
    async def main() -> dict[str, Any]:
        await trio.sleep(100)
        samples = [Sample(80, 20, 40, 3, 0, 1), Sample(85, 5, 40, 0, 0, 2)]
        return page_content.charts(samples, every=5, kept=180)

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == {
        "span": 900, "every": 5, "ago": [20, 15], "processed": [2, 8], "failed": [3, 0], "in_flight": [1, 2],
    }  # fmt: skip


# -- what is shown --


def shown(api: Api) -> dict[str, Any]:
    return json.loads(json.dumps(page_content.state(api.core, None)))


@pytest.mark.parametrize(
    ("phase", "kind", "title"),
    [
        ("starting", "starting", "Starting"),
        ("running", "running", "Running"),
        ("draining", "draining", "Draining"),
        ("maintenance", "maintenance", "In maintenance"),
        ("stopping", "draining", "Draining before the stop"),
    ],
)
async def test_each_phase_in_plain_words(autojump_clock: MockClock, phase: str, kind: str, title: str) -> None:
    async with in_phase(phase) as (held, expected):
        told = shown(held)
    assert (told["phase"], told["kind"], told["title"]) == (expected.phase, kind, title)
    assert told["text"].endswith(".")
    assert bool(told["drain"]) is (phase in ("draining", "stopping"))


async def test_a_running_drain_tells_how_far_it_is(autojump_clock: MockClock) -> None:
    async def some_seconds(message: Message) -> None:
        await trio.sleep(float(message.body))

    async with running(some_seconds) as held:
        for seconds in ("3", "5", "100"):
            held.queue.put(seconds)
        await trio.sleep(1)
        held.switch.set('{"enabled": true, "reason": "upgrade", "by": "ops"}')
        await trio.sleep(3)
        told = shown(held)
        # On at 1 with three in flight and 10 s: at 4 the first is done, and its receive is still out.
        assert told["drain"] == {
            "cause": "maintenance", "total": 3, "done": 1, "seconds": 3, "seconds_left": 7, "seconds_allowed": 10,
        }  # fmt: skip
        assert told["text"] == "Nothing new is taken. 2 messages still to finish, then maintenance begins."
        assert told["switch"] == {"on": True, "reason": "upgrade", "by": "ops", "until": None, "keys": ["all"]}
        await trio.sleep(2)
        assert shown(held)["text"] == "Nothing new is taken. 1 message still to finish, then maintenance begins."
        assert shown(held)["report"] is None


@pytest.mark.expects_errors
async def test_a_drain_that_expired_is_told_as_such_with_its_report(autojump_clock: MockClock) -> None:
    async with running(for_ever) as held:
        held.queue.put("in flight for ever")
        await trio.sleep(1)
        held.switch.set("true")
        await trio.sleep(20)
        told = shown(held)
    assert told["kind"] == "expired"
    assert told["title"] == "In maintenance, but the drain ran out of time"
    report = told["report"]
    # On at 1; the work is cut off a second before the end of its 10 s, and given back.
    assert (report["outcome"], report["seconds"], report["ago"]) == ("expired", 9, 11)
    assert report["figures"]["in_flight"] == 1
    assert report["figures"]["released"] == 1
    assert report["lists"]["timed_out"] == {"count": 1, "ids": ["simulated-1"]}
    assert told["drain"] is None


async def test_a_drain_that_only_waits_for_its_open_receive_says_so(autojump_clock: MockClock) -> None:
    async with running() as held:
        await trio.sleep(1)
        held.switch.set("true")
        await trio.sleep(1)
        told = shown(held)
        assert (
            told["text"]
            == "Nothing is at work, and nothing begins. Only a receive that is still open is waited for, then all is drained."
        )
        assert (told["drain"]["total"], told["drain"]["done"]) == (0, 0)
        await trio.sleep(5)
        told = shown(held)
    assert (told["report"]["outcome"], told["report"]["figures"]["in_flight"]) == ("drained", 0)


async def test_etcd_lost_and_found(autojump_clock: MockClock) -> None:
    switch = SimulatedSwitch(outages=[Outage(10, 200)])
    async with running(switch=switch) as held:
        await trio.sleep(9)
        assert shown(held)["troubles"] == []
        await trio.sleep(91)
        told = shown(held)
        assert told["kind"] == "running"
        assert told["troubles"] == [
            {
                "title": "etcd is out of reach",
                "text": "For 1 min: the simulated switch is out of reach. The last known state stands; a change takes effect "
                "when etcd is back.",
            }
        ]
        await trio.sleep(101)
        assert shown(held)["troubles"] == []


async def test_the_queue_lost_and_found(autojump_clock: MockClock) -> None:
    faults = [Fault("error", "receive", start=2, end=60)]
    async with running(queue=SimulatedQueue(faults=faults)) as held:
        await trio.sleep(30)
        told = shown(held)
        assert (told["kind"], told["title"]) == ("trouble", "The queue is out of reach")
        assert [trouble["title"] for trouble in told["troubles"]] == ["SQS does not answer as it should"]
        assert told["troubles"][0]["text"].startswith("For 25 s: ")  # the receive that began at 0 ended well at 5
        await trio.sleep(40)
        told = shown(held)
        assert (told["kind"], told["troubles"]) == ("running", [])


@pytest.mark.expects_errors
async def test_the_circuit_breaker_in_plain_words(autojump_clock: MockClock) -> None:
    async def fail(message: Message) -> None:
        if message.body == "bad":
            raise ValueError("the warehouse is away")

    breaker = {"BREAKER_FAILURES": "50% of 2", "BREAKER_PAUSE": "60s-60s", "RETRY_BACKOFF": "1h-2h"}
    async with running(fail, SQS_WAIT_TIME_SECONDS="0", **breaker) as held:
        held.queue.put("good")
        await trio.sleep(5)
        assert (shown(held)["title"], shown(held)["troubles"]) == ("Running", [])
        for _ in range(3):
            held.queue.put("bad")
        await trio.sleep(10)
        told = shown(held)
        assert (told["kind"], told["title"]) == ("trouble", "Receiving pauses")
        (trouble,) = told["troubles"]
        assert trouble["title"] == "The circuit breaker is open"
        told_so = re.fullmatch(
            "Receiving pauses, since (9|10) s, because nearly every message failed; it tries a few messages again in "
            r"(\d+) s\.",
            trouble["text"],
        )
        assert told_so
        assert 60 / 2 - 11 <= int(told_so[2]) <= 60
        await trio.sleep(60)  # nothing is there to be tried
        told = shown(held)
        assert (told["kind"], told["title"]) == ("trouble", "Trying a few messages")
        assert told["troubles"][0]["title"] == "The circuit breaker is probing"
        held.queue.put("bad")
        held.queue.put("bad")
        held.queue.put("bad")
        await trio.sleep(5)
        held.switch.set("on")
        await trio.sleep(100)
        told = shown(held)
        assert told["title"] == "In maintenance"
        assert told["troubles"][0]["text"].endswith("a few messages are tried when receiving begins again.")
        held.switch.set("off")
        held.queue.put("good")
        await trio.sleep(5)
        assert (shown(held)["title"], shown(held)["troubles"]) == ("Running", [])


async def test_a_value_without_meaning_is_told(autojump_clock: MockClock) -> None:
    async with running(switch=SimulatedSwitch("perhaps")) as held:
        told = shown(held)
        assert told["title"] == "Waiting for a usable maintenance switch"
        assert "'perhaps'" in told["troubles"][0]["text"]
        held.switch.set("off")
        await trio.sleep(1)
        held.switch.set("<b>")
        await trio.sleep(1)
        assert shown(held)["title"] == "Running"
        assert "'<b>'" in shown(held)["troubles"][0]["text"]


async def test_messages_in_flight_with_their_age_oldest_first(autojump_clock: MockClock) -> None:
    async with running(for_ever, MAX_CONCURRENCY="100") as held:
        await trio.sleep(
            4
        )  # the receive has been out for 4 s when it brings the first: the age counts from its landing
        held.queue.put("a")
        await trio.sleep(3)
        for _ in range(30):
            held.queue.put("b")
        await trio.sleep(2)
        told = shown(held)
    assert told["counts"]["in_flight"] == 31
    assert told["in_flight"][0] == {"id": "simulated-1", "seconds": 5, "doing": "processing", "receives": 1}
    assert {entry["seconds"] for entry in told["in_flight"][1:]} == {2}
    assert len(told["in_flight"]) == page_content.SHOWN


@pytest.mark.expects_errors
async def test_texts_from_outside_are_cut_and_newest_errors_stand_first(autojump_clock: MockClock) -> None:
    async def fail(message: Message) -> None:
        raise (Reject if message.body == "1" else ValueError)(message.body + "<script>" * 500)

    async with running(fail, MAX_CONCURRENCY="1", RETRY_BACKOFF="off") as held:
        for number in range(3):
            held.queue.put(str(number))
        await trio.sleep(10)
        errors = shown(held)["errors"]
    assert [error["error"][:12] for error in errors] == ["ValueError: ", "rejected: 1<", "ValueError: "]
    assert max(len(error["error"]) for error in errors) == page_content.LONGEST


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert page_content.duration(seconds) == text


def test_every_sentence_of_the_state_has_its_sign_and_colour() -> None:
    kinds = set(re.findall(r'return \(?\s*"(\w+)",', (routes_page.FOLDER.parent / "page_content.py").read_text()))
    assert kinds >= {"starting", "running", "draining", "maintenance", "trouble", "expired", "stopped"}
    for kind in kinds:
        assert f'.state[data-kind="{kind}"] .' in STYLE, f"no sign for {kind}"


# -- the feed --


def events(text: str) -> list[tuple[str, Any]]:
    """The events of a piece of the stream, each held to the format: one line of data, closed by an empty line."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        if block.startswith("retry: "):
            found.append(("retry", int(block.removeprefix("retry: "))))
            continue
        kind, data = block.split("\n")
        assert kind.startswith("event: ")
        assert data.startswith("data: ")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@asynccontextmanager
async def fed(process: Any = nothing, **more: Any) -> AsyncIterator[tuple[Api, Feed, trio.Event]]:
    async with running(process, **more) as held, trio.open_nursery() as nursery:
        live, stop = Feed(held.core), trio.Event()
        nursery.start_soon(live.run, stop)
        yield held, live, stop
        stop.set()


def watch(live: Feed) -> Watcher:
    watcher = live.watch()
    assert watcher is not None
    return watcher


async def told(watcher: Watcher) -> list[tuple[str, Any]]:
    text = await watcher.next()
    assert text is not None
    return events(text)


async def test_a_watcher_gets_everything_at_once_then_a_look_each_second(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, _stop):
        await trio.sleep(7)
        watcher = watch(live)
        kinds = [[kind for kind, _ in await told(watcher)]]
        times = [trio.current_time()]
        for _ in range(5):
            kinds.append([kind for kind, _ in await told(watcher)])
            times.append(trio.current_time())
        # The samples were taken at 5 and at 10; each look carries the state.
        assert times == [7, 8, 9, 10, 11, 12]
        assert kinds[0] == ["retry", "charts", "state"]
        assert kinds[1:3] == [["state"]] * 2
        assert sorted(kinds[3:]) == [["charts", "state"], ["state"], ["state"]]
        watcher.close()


async def test_nobody_looks_and_sqs_is_not_asked_while_nobody_watches(autojump_clock: MockClock) -> None:
    async with fed() as (held, live, _stop):
        await trio.sleep(20)
        learnt = held.queue.calls["attributes"]  # the worker's own look at the redrive policy, every 300 s
        assert live._looks == 0
        watchers = [watch(live) for _ in range(20)]
        await trio.sleep(99.5)
        assert held.queue.calls["attributes"] - learnt == 10  # at 20, 30, … 110
        assert live._looks == 100  # at 20, 21, … 119
        for watcher in watchers:
            watcher.close()
        await trio.sleep(50)
        looks, asked = live._looks, held.queue.calls["attributes"]
        await trio.sleep(100)
        assert (live._looks, held.queue.calls["attributes"]) == (looks, asked)


async def test_coming_and_going_does_not_ask_sqs_more_often(autojump_clock: MockClock) -> None:
    async with fed() as (held, live, _stop):
        await trio.sleep(1)
        learnt = held.queue.calls["attributes"]
        for _ in range(100):
            watcher = watch(live)
            await trio.sleep(0.1)
            watcher.close()
            await trio.sleep(0.1)
        assert held.queue.calls["attributes"] - learnt <= 2


async def test_the_depth_of_the_queue_is_shown_with_its_age(autojump_clock: MockClock) -> None:
    async with fed(for_ever, MAX_CONCURRENCY="1") as (held, live, _stop):
        for _ in range(5):
            held.queue.put("x")
        held.queue.put("later", delay=900)
        await trio.sleep(1)
        watcher = watch(live)
        first = (await told(watcher))[-1][1]
        assert first["depth"] is None
        await trio.sleep(2.5)
        depth = (await told(watcher))[-1][1]["depth"]
        assert depth == {"seconds": 2, "error": None, "visible": 4, "in_flight": 1, "delayed": 1}
        watcher.close()


async def test_dead_letters_are_counted_now_and_then_while_somebody_watches(autojump_clock: MockClock) -> None:
    dead = SimulatedQueue("queue-dlq")
    async with fed(queue=SimulatedQueue(dead_letters=dead, max_receive_count=3)) as (held, live, _stop):
        dead.put("a")
        dead.put("b", delay=900)
        await trio.sleep(1)
        learnt = held.queue.calls["attributes"]
        watcher = watch(live)
        assert (await told(watcher))[-1][1]["dead_letters"] is None
        await trio.sleep(2)
        assert (await told(watcher))[-1][1]["dead_letters"] == {"count": 2, "error": None}
        dead.put("c")
        await trio.sleep(58)
        assert (await told(watcher))[-1][1]["dead_letters"]["count"] == 2
        await trio.sleep(20)
        assert (await told(watcher))[-1][1]["dead_letters"]["count"] == 3
        assert held.queue.calls["attributes"] - learnt <= 9 + 2  # each ten seconds the queue, twice the other
        watcher.close()


async def test_a_queue_without_a_redrive_policy_has_no_row_for_dead_letters(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, _stop):
        watcher = watch(live)
        await trio.sleep(30)
        assert (await told(watcher))[-1][1]["dead_letters"] is None
        watcher.close()


async def test_a_dead_letter_queue_that_may_not_be_read(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = SimulatedQueue("queue-dlq")
    async with fed(queue=SimulatedQueue(dead_letters=dead, max_receive_count=3)) as (held, live, _stop):

        async def refused() -> None:
            raise QueueMisconfigured("AccessDenied: not authorised to perform sqs:GetQueueUrl")

        monkeypatch.setattr(held.core.queue, "dead_letter_queue", refused)
        watcher = watch(live)
        await trio.sleep(3)
        now = (await told(watcher))[-1][1]
        assert now["depth"]["visible"] == 0
        assert now["dead_letters"]["count"] is None
        assert "AccessDenied" in now["dead_letters"]["error"]
        watcher.close()


async def test_a_queue_that_does_not_tell_its_depth(autojump_clock: MockClock) -> None:
    faults = [Fault("error", "attributes", start=1, end=11), Fault("delay", "attributes", start=11, seconds=100)]
    async with fed(queue=SimulatedQueue(faults=faults)) as (_, live, _stop):
        await trio.sleep(1)
        watcher = watch(live)
        await trio.sleep(5)
        depth = (await told(watcher))[-1][1]["depth"]
        assert depth["visible"] is None
        assert depth["error"]
        await trio.sleep(12)
        assert "answer" in (await told(watcher))[-1][1]["depth"]["error"]
        watcher.close()


async def test_a_slow_watcher_misses_what_came_between_and_nothing_is_kept_for_him(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, _stop):
        slow, quick = watch(live), watch(live)
        await told(slow)
        for _ in range(30):
            await told(quick)
        latest = await told(slow)
        assert [kind for kind, _ in latest] == ["charts", "state"]
        assert len(latest[0][1]["ago"]) == 6 - (trio.current_time() < 30)
        slow.close()
        quick.close()


async def test_a_stream_ends_with_the_last_word_when_the_api_stops(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, stop):
        watcher = watch(live)
        await told(watcher)
        await trio.sleep(0.3)
        at = trio.current_time()
        stop.set()
        assert [kind for kind, _ in await told(watcher)] == ["state", "end"]
        assert await watcher.next() is None
        assert trio.current_time() == at
        late = watch(live)
        assert [kind for kind, _ in await told(late)][-1] == "end"
        assert await late.next() is None


async def test_a_stream_ends_after_its_life(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, _stop):
        watcher = watch(live)
        while await watcher.next() is not None:
            pass
        assert trio.current_time() == feed.LIFE
        watcher.close()
        assert live.watched_by == 0


async def test_there_is_room_for_so_many_watchers(autojump_clock: MockClock) -> None:
    async with fed() as (_, live, _stop):
        watchers = [watch(live) for _ in range(feed.MOST_WATCHERS)]
        assert live.is_full
        assert live.watch() is None
        watchers[0].close()
        watchers[0].close()
        assert live.watch() is not None


# -- the routes --


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("path", routes_page.FILES)
async def test_the_page_answers_in_every_phase(autojump_clock: MockClock, phase: str, path: str) -> None:
    async with in_phase(phase) as (held, _):
        answer = await held.client.get(path)
        name, kind = routes_page.FILES[path]
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == kind
        assert await answer.get_data(False) == (routes_page.FOLDER / name).read_bytes()
        for header, value in routes_page.SAFE.items():
            assert answer.headers[header] == value


async def test_the_feed_answers_head_and_other_methods(autojump_clock: MockClock) -> None:
    async with running() as held:
        answer = await held.client.head("/events")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        answer = await held.client.post("/events")
        assert answer.status_code == 405


def test_the_policy_admits_nothing_from_outside_and_nothing_inline() -> None:
    rules = dict(rule.split(" ", 1) for rule in routes_page.POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert {value for name, value in rules.items() if name.endswith("-src") and name != "default-src"} == {"'self'"}
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in routes_page.POLICY
    assert "*" not in routes_page.POLICY


def test_the_page_holds_no_inline_code_and_no_outside_address() -> None:
    for name, text in (("html", HTML), ("script", SCRIPT), ("style", STYLE)):
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text)
        assert [address for address in outside if not address.endswith("/2000/svg")] == [], name
    assert re.findall(r"<script(?![^>]* src=)", HTML) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", HTML)
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert sink not in SCRIPT


def test_the_script_names_only_what_the_page_holds() -> None:
    ids = re.findall(r'\sid="([^"]+)"', HTML)
    assert len(ids) == len(set(ids))
    named = set(re.findall(r'\$\("([^"]+)"\)', SCRIPT))
    assert named <= set(ids)
    for attribute in ("for", "aria-labelledby"):
        assert set(re.findall(rf'\s{attribute}="([^"]+)"', HTML)) <= set(ids)


# -- the pictures of it --


def test_every_picture_that_the_documents_show_is_there_and_small() -> None:
    root = routes_page.FOLDER.parent.parent.parent
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    named = {
        (page.parent / name).resolve().relative_to(root).as_posix()
        for page in pages
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
    }
    made = {f"docs/pictures/{name}.png" for name in (*screenshots.PICTURES, "draining-phone")}
    assert made <= named
    assert {f"docs/pictures/{path.name}" for path in (root / "docs" / "pictures").iterdir()} == named
    for name in named:
        held = (root / name).read_bytes()
        assert 0 < len(held) < 200_000, name
        if name.endswith(".png"):
            assert held.startswith(b"\x89PNG\r\n"), name
