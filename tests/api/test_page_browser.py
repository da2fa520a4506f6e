"""The page in a real browser: every state as an operator sees it, by mouse, by keyboard alone, on a phone, in the dark.

Each test looks at the console too: no error of the script, nothing that the policy had to forbid. Without a browser these tests
are skipped; in CI they fail then. Screenshots for the documents: `python -m tests.screenshots`.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svc.devstack.stack import Etcd, Moto
from svc.etcd import watcher as etcd_client
from svc.settings import load
from svc.testing import Outage
from svc.testing.faults import Fault
from tests import browser as chromium
from tests.browser import DESKTOP, PHONE, Browser
from tests.live import stand
from tests.stage import TOKEN, stage

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium.require()
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as held:
        yield held


@pytest.fixture
def page(shared: Browser) -> Iterator[Browser]:
    shared.look()
    shared.console()
    yield shared
    found = shared.console()
    shared.leave()
    assert found == []


@contextmanager
def looked_at(page: Browser) -> Iterator[None]:
    """The page is left before its server ends: of that it would complain, or not yet."""
    yield
    assert page.console() == []
    page.leave()


def check(page: Browser) -> None:
    """Nothing that a reader with other eyes or hands would stumble over, light and dark, wide and narrow."""
    for dark, size in ((False, DESKTOP), (True, PHONE)):
        page.look(dark=dark, size=size, still=True)
        assert page.accessibility() == [], f"dark: {dark}"
        assert page.overflow() == []
    page.look()


# -- the states --


@pytest.mark.expects_errors
def test_running(page: Browser) -> None:
    with stage(RETRY_BACKOFF="1h-2h") as held, looked_at(page):
        held.put({"seconds": 1}, {"seconds": 2}, {"fail": HOSTILE}, {"reject": "no such article"})
        held.skip(12)
        held.put({"seconds": 600}, {"seconds": 600})
        page.open(held.url)
        page.shows("#title", "Running")
        page.shows("#link", "Live")
        page.shows("#flight", "orders-6")
        assert page.run("return document.title") == "Running – svc"
        assert page.text("#queue-name") == "orders"
        assert page.texts("#flight tbody tr td:nth-child(2)") == ["being processed"] * 2
        assert page.text("#flight-count") == "2"
        assert [text.split("\n") for text in page.texts("#counts > div")][:3] == [
            ["received", "6"],
            ["processed", "2"],
            ["failed", "1"],
        ]
        page.shows("#depth-note", "As SQS said")
        assert page.texts("#depth > div")[0].split("\n")[0] == "waiting"
        page.shows("#depth", "dead letters\n1")
        assert "svc dlq list" in page.text("#depth-note")
        page.shows("#chart-failed .now", "2")
        assert "last 15 minutes: 2." in page.run("return document.querySelector('#chart-failed svg').ariaLabel")
        assert page.run("return document.querySelectorAll('#chart-processed path').length") == 2
        # What a message brought is text, and nothing else.
        assert HOSTILE in page.text("#errors")
        assert page.run("return document.querySelectorAll('script').length") == 1
        assert page.run("return document.querySelectorAll('img').length") == 0
        # The ages move on by themselves.
        first = page.text("#flight tbody tr td:last-child")
        page.until(lambda: page.text("#flight tbody tr td:last-child") != first)
        check(page)


@pytest.mark.slow
@pytest.mark.expects_errors
def test_the_circuit_breaker_is_open(page: Browser) -> None:
    with stage(BREAKER_FAILURES="50% of 2", BREAKER_PAUSE="10m-10m", RETRY_BACKOFF="1h-2h") as held, looked_at(page):
        held.put({"fail": "the warehouse is away"}, {"fail": "the warehouse is away"})
        held.skip(5)
        page.open(held.url)
        page.shows("#title", "Receiving pauses")
        page.shows("#troubles", "The circuit breaker is open")
        assert "it tries a few messages again in" in page.text("#troubles")


def test_draining_then_maintenance_and_off(page: Browser) -> None:
    # Nothing here passes by itself: each state stands until the test has seen it and goes on.
    with stage(DRAIN_TIMEOUT="10m") as held, looked_at(page):
        page.open(held.url)
        page.shows("#title", "Running")
        held.put({"until": "first"}, {"until": "rest"}, {"until": "rest"})
        page.shows("#flight-count", "3")
        page.run(
            "window.spoken = []; new MutationObserver(() => spoken.push(document.getElementById('title').textContent))"
            ".observe(document.querySelector('[role=status]'), {subtree: true, childList: true, characterData: true})"
        )
        held.do(lambda: held.switch.set('{"enabled": true, "reason": "database upgrade", "by": "ops"}'))
        page.shows("#title", "Draining")
        page.shows("#facts", "database upgrade")
        page.shows("#drain-time-text", "of 10 min 0 s")
        held.let_go("first")
        page.shows("#drain-done-text", "1 of 3")
        assert page.run("const bar = document.getElementById('drain-done'); return [bar.value, bar.max]") == [1, 3]
        held.let_go("rest")
        page.shows("#title", "In maintenance")
        page.shows("#report-outcome", "Drained in")
        assert page.texts("#report > div")[:2] == ["In flight when it began\n3", "Finished\n3"]
        check(page)
        held.do(lambda: held.switch.set(None))
        page.shows("#title", "Running")
        page.until(lambda: not page.text("#facts"))
        # A screen reader hears each change of the state, and not a word each second.
        assert page.run("return spoken") == ["Draining", "In maintenance", "Running"]


@pytest.mark.slow
@pytest.mark.expects_errors
def test_a_drain_that_expired(page: Browser) -> None:
    with stage(DRAIN_TIMEOUT="5s", SQS_WAIT_TIME_SECONDS="1") as held, looked_at(page):
        ids = held.put({"seconds": 3600}, {"seconds": 0.1})
        held.skip(2)
        held.do(lambda: held.switch.set("on"))
        held.skip(8)
        page.open(held.url)
        page.shows("#title", "In maintenance, but the drain ran out of time")
        page.shows("#report-outcome", "Ran out of time after")
        assert ids[0] in page.text("#report-lists")
        assert "Cancelled and given back" in page.text("#report-lists")
        assert page.run("return document.getElementById('state').dataset.kind") == "expired"
        check(page)


@pytest.mark.slow
def test_etcd_lost(page: Browser) -> None:
    with stage(outages=[Outage(5, 1e9)]) as held, looked_at(page):
        held.skip(100)
        page.open(held.url)
        page.shows("#troubles", "etcd is out of reach")
        page.shows("#title", "Running")
        assert "The last known state stands" in page.text("#troubles")
        check(page)


@pytest.mark.slow
def test_without_etcd_there_is_no_fleet(page: Browser, tmp_path: Path) -> None:
    file = str(tmp_path / "maintenance")
    with stage(outages=[Outage(5, 1e9)], ETCD_ENDPOINTS="off", MAINTENANCE_FILE=file) as held, looked_at(page):
        held.skip(100)
        page.open(held.url)
        page.shows(
            "#switch-text", "The switch of this instance is off. There is no fleet: this instance runs by itself"
        )
        assert file in page.text("#switch-text")
        page.shows("#troubles", "The maintenance file cannot be read")
        page.run("document.getElementById('open-on').click()")
        page.shows("#dialog-text", "This instance stops receiving")
        page.press("ESCAPE")
        check(page)


@pytest.mark.slow
def test_sqs_lost_and_found(page: Browser) -> None:
    with stage(SQS_WAIT_TIME_SECONDS="0") as held, looked_at(page):
        held.faults.append(Fault("error"))
        page.open(held.url)
        page.shows("#title", "The queue is out of reach")
        page.shows("#troubles", "SQS does not answer as it should")
        page.shows("#depth-note", "SQS was asked")
        check(page)
        held.do(held.faults.clear)
        page.shows("#title", "Running", within=30)
        page.until(lambda: not page.text("#troubles"))


@pytest.mark.slow
def test_the_service_stops_and_comes_back(page: Browser) -> None:
    with stage() as held:
        page.open(held.url)
        page.shows("#link", "Live")
        port = held.url.rpartition(":")[2]
        held.stop()
        page.shows("#link", "The service has stopped")
        assert page.run("return document.body.classList.contains('stale')")
    page.until(lambda: page.console())  # the browser tells that nobody answers
    with stage(HTTP_PORT=port):
        page.shows("#link", "Live")
        page.shows("#title", "Running")
        page.console()


@pytest.mark.slow
def test_a_hidden_tab_watches_nothing(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.open(held.url)
        page.shows("#link", "Live")
        first = page.driver.current_window_handle
        assert held.do(lambda: held.feed.watched_by) == 1
        page.driver.switch_to.new_window("tab")
        try:
            page.until(lambda: held.do(lambda: held.feed.watched_by) == 0)
        finally:
            page.driver.close()
            page.driver.switch_to.window(first)
        page.until(lambda: held.do(lambda: held.feed.watched_by) == 1)
        page.shows("#link", "Live")


# -- how it is looked at, and by what it is used --


@pytest.mark.slow
def test_dark_and_light_follow_the_reader(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.open(held.url)

        def ground() -> list[int]:
            text = page.run("return getComputedStyle(document.body).backgroundColor")
            return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]

        page.look(dark=True)
        assert max(ground()) < 60
        page.look(dark=False)
        assert min(ground()) > 200


def test_by_keyboard_alone(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.open(held.url)
        page.shows("#switch-text", "/maintenance/sqs-service is off")
        page.press("TAB")
        assert page.focused() == "Skip to the state of the service"
        page.press("ENTER")
        assert page.focused() == "main"
        page.press("TAB")
        assert page.focused() == "open-on"
        outline = page.run(
            "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        assert outline == ["solid", 3]
        page.press("ENTER")
        page.until(lambda: page.focused() == "reason")
        page.press("TAB", "TAB")
        assert page.focused() == "token"
        page.press("TAB", "TAB", "TAB")  # the confirming button, the other one, and round
        assert page.run("return document.activeElement === document.body || !!document.activeElement.closest('dialog')")
        assert page.accessibility() == []
        page.press("ESCAPE")
        page.until(lambda: not page.run("return document.getElementById('dialog').open"))
        assert page.focused() == "open-on"


@pytest.mark.slow
@pytest.mark.expects_errors
def test_the_dead_letters_are_looked_at_when_somebody_asks(page: Browser) -> None:
    with stage() as held, looked_at(page):
        held.put({"reject": HOSTILE}, {"reject": "no such article", "more": "x" * 3000})
        held.skip(12)
        page.open(held.url)
        page.shows("#depth", "dead letters\n2")
        assert held.do(lambda: held.dead_letters.calls["receive"]) == 0  # nobody has asked
        page.click("#letters-look")
        page.shows("#letters-problem", "Enter the token first.")
        page.fill("#letters-token", "a wrong one")
        page.click("#letters-look")
        page.shows("#letters-problem", "not the one")
        assert "403" in "".join(page.console())  # the browser's own line
        page.fill("#letters-token", TOKEN)
        page.press("ENTER")
        page.shows("#letters-done", "2 shown, and given back.")
        page.until(lambda: held.do(lambda: len(held.dead_letters.visible())) == 2)
        assert sorted(page.texts("#letters-list .what")) == sorted([HOSTILE, "no such article"])
        assert "more characters" in page.text("#letters-list")
        assert page.run("return document.title") == "Running – svc"
        assert not page.run("return document.getElementById('letters-token-fields').checkVisibility()")
        check(page)
        page.click("#forget")
        assert page.run("return document.getElementById('letters-token-fields').checkVisibility()")


@pytest.mark.slow
def test_on_a_phone_every_control_is_large_enough(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.look(size=PHONE)
        page.open(held.url)
        page.shows("#switch-text", "is off")
        page.click("#open-on")
        sizes = page.run(
            "return [...document.querySelectorAll('button, input, select')].filter(e => e.offsetParent || e.closest('dialog'))"
            ".map(e => [e.id, e.getBoundingClientRect().height, e.getBoundingClientRect().width]).filter(([, height]) => height)"
        )
        assert len(sizes) >= 5
        assert [name for name, height, width in sizes if height < 44 or width < 44] == []
        assert page.overflow() == []


@pytest.mark.slow
def test_those_who_want_no_motion_get_none(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.look(still=True)
        page.open(held.url)
        assert page.run("return getComputedStyle(document.getElementById('title')).transitionDuration") == "0s"
        assert page.run("return document.getAnimations().length") == 0


@pytest.mark.slow
def test_the_docs(page: Browser) -> None:
    with stage() as held, looked_at(page):
        page.open(held.url + "/docs")
        page.shows("h1", "The API")
        page.click("details summary")
        assert '"status": "healthy"' in page.text("details[open]")
        check(page)


# -- the checks themselves can fail --


@pytest.mark.slow
def test_the_policy_and_the_checks_find_what_they_should(shared: Browser) -> None:
    with stage() as held:
        shared.open(held.url)
        shared.shows("#link", "Live")
        shared.console()
        shared.run(
            "const code = document.createElement('script'); document.body.append(code);"
            "try { code.textContent = 'document.title = 1' } catch {}"
            "try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>') } catch (error) { console.error(String(error)) }"
            "document.body.style.color = '#bbb'; document.querySelector('main').style.minWidth = '3000px'"
        )
        shared.run("document.querySelector('p').setAttribute('style', 'color: red')")
        shared.run("fetch('http://127.0.0.1:9/').catch(() => {})")
        told = "\n".join(shared.console())
        assert "TrustedHTML" in told
        assert "style-src" in told
        assert "connect-src" in told
        assert any(found.startswith("color-contrast") for found in shared.accessibility())
        assert shared.overflow()
        shared.leave()


# -- the buttons, against a real instance, SQS and etcd --


@pytest.mark.slow
async def test_the_buttons_switch_a_real_service_whose_stop_the_page_does_not_hold_up(
    page: Browser, moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    key = key_prefix + "maintenance"
    async with stand(moto, etcd.endpoint, queue_name, key, tmp_path / "record", API_TOKEN="a-real-secret") as place:
        service = await place.start()
        page.open(service.url)
        page.shows("#title", "Running")
        page.shows("#fleet-count", "1 instance")
        page.until(lambda: page.run("return !document.getElementById('open-on').disabled"))
        assert page.run("return document.getElementById('open-off').disabled")

        page.click("#open-on")
        page.fill("#reason", "a <b>pressing</b> reason")
        page.click("#confirm")
        page.shows("#dialog-problem", "Enter the token first")
        page.fill("#token", "not-the-secret")
        page.click("#confirm")
        page.shows("#dialog-problem", "not the one that this service was given")
        assert page.text("#title") == "Running"
        page.fill("#token", "a-real-secret")
        page.click("#confirm")
        page.shows("#title", "In maintenance")
        page.shows("#facts", "a <b>pressing</b> reason")
        page.until(lambda: not page.run("return document.getElementById('dialog').open"))
        assert "a-real-secret" not in page.run("return location.href + document.documentElement.outerHTML")
        page.until(lambda: page.run("return !document.getElementById('open-off').disabled"))

        page.click("#open-off")
        assert not page.run("return document.getElementById('token').checkVisibility()")  # the tab has kept it
        page.click("#confirm")
        page.shows("#title", "Running")

        # What somebody else has begun can be ended here too.
        settings = load(place.environ)
        await etcd_client.write(settings, key, b'{"enabled": true, "by": "somebody else"}')
        page.shows("#facts", "somebody else")
        page.until(lambda: page.run("return !document.getElementById('open-off').disabled"))
        page.click("#open-off")
        page.click("#confirm")
        page.shows("#dialog-problem", "maintenance is on by somebody else")
        page.shows("#confirm", "End it all the same")
        page.shows("#title", "In maintenance")  # still, once the receive on the wire has landed
        page.click("#confirm")
        page.shows("#title", "Running")
        # The browser itself notes the refusals: the wrong token, and that it was somebody else's.
        assert [line for line in page.console() if "403" not in line and "409" not in line] == []

        service.signal(signal.SIGTERM)
        began = time.monotonic()
        assert await service.exit_code(within=15) == 0
        assert time.monotonic() - began < 10  # a drain of an empty service with a receive of 1 s
        page.shows("#link", "What you see is")
        page.until(lambda: page.console())  # nobody answers any more
