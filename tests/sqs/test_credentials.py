"""When credentials are fetched: in virtual time, with a source that does what it is told; and through the whole door, against
fakes on loopback."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
from trio.testing import MockClock

from svc.consumer.queue import QueueMisconfigured, QueueUnavailable
from svc.settings import Settings
from svc.sqs import aws_client
from svc.sqs import queue as sqs
from svc.sqs.aws_client import Pool
from svc.sqs.credential_sources import Found, Keys
from svc.sqs.credentials import RETRY_CAP, STUCK_SECONDS, WAIT_SECONDS, Credentials
from tests.aws_services import KEY, SECRET, aws

EPOCH = 1_800_000_000.0


class Source:
    """Gives what `answers` says, in the same moment or when it is let. Its dates count from the start of the test."""

    def __init__(self) -> None:
        self.walks: list[float] = []
        self.answer: Callable[[int], Found] = lambda number: self.found(number)
        self.held: list[Callable[[], object]] | None = None
        self.expires: float | None = None
        self.files: tuple[str, ...] = ()

    def found(self, number: int) -> Found:
        expires = None if self.expires is None else EPOCH + self.expires
        return Found(Keys(f"key-{number}", "secret", None), "a source", expires, self.files)

    def look(self) -> Found:
        self.walks.append(trio.current_time())
        return self.answer(len(self.walks))

    def in_thread(self, look: Callable[[], Found], deliver: Callable[[outcome.Outcome[Found]], object]) -> None:
        result = outcome.capture(look)
        if self.held is None:
            deliver(result)
        else:
            self.held.append(lambda: deliver(result))

    def credentials(self) -> Credentials:
        return Credentials(self.look, in_thread=self.in_thread, now=lambda: EPOCH + trio.current_time())


def failing(error: Exception) -> Callable[[int], Found]:
    def answer(number: int) -> Found:
        raise error

    return answer


async def key(credentials: Credentials) -> str:
    return (await credentials.current()).access_key


async def test_they_are_fetched_once_however_many_ask(autojump_clock: MockClock) -> None:
    source = Source()
    source.held = []
    credentials, got = source.credentials(), []

    async def ask() -> None:
        got.append(await key(credentials))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        source.held.pop()()
    assert got == ["key-1"] * 20
    await trio.sleep(80_000)
    assert await key(credentials) == "key-1"
    assert len(source.walks) == 1


async def test_they_are_renewed_before_they_expire_and_nobody_waits(autojump_clock: MockClock) -> None:
    source = Source()
    source.expires = 3600
    credentials = source.credentials()
    await credentials.current()
    await trio.sleep(2699)
    assert await key(credentials) == "key-1"
    await trio.sleep(1)
    source.held = []
    assert await key(credentials) == "key-1"  # 15 min before
    assert source.walks == [0, 2700]
    source.expires = 7200
    source.answer = source.found
    await trio.sleep(10)
    source.held.pop()()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_renewal_that_fails_is_tried_again_before_they_expire(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    source.expires = 3600
    credentials = source.credentials()
    await credentials.current()
    await trio.sleep(2700)
    source.answer = failing(QueueUnavailable("it is down"))
    while trio.current_time() < 3599:
        assert await key(credentials) == "key-1"
        await trio.sleep(1)
    tried = len(source.walks) - 1
    assert 900 / RETRY_CAP <= tried <= 2 * 900 / RETRY_CAP + 10
    assert (
        "could not be renewed, trying again; the present ones hold until 2027-01-15T09:00:00Z: it is down"
        in caplog.text
    )
    await trio.sleep(1)
    with pytest.raises(QueueUnavailable, match="it is down"):
        await credentials.current()
    source.expires = 7200
    source.answer = source.found
    with trio.fail_after(RETRY_CAP):
        while True:
            try:
                found = await key(credentials)
                break
            except QueueUnavailable:
                await trio.sleep(1)
    assert found.startswith("key-")


async def test_those_that_have_expired_when_they_are_given_are_not_used(autojump_clock: MockClock) -> None:
    source = Source()
    source.expires = -60
    credentials = source.credentials()
    with pytest.raises(QueueUnavailable, match=r"a source gives have expired \(2027-01-15T07:59:00Z\).*clock"):
        await credentials.current()
    source.expires = 60
    await trio.sleep(1)
    assert await key(credentials) == "key-2"


async def test_expired_ones_do_not_replace_those_that_hold(autojump_clock: MockClock) -> None:
    source = Source()
    source.expires = 100
    credentials = source.credentials()
    await credentials.current()
    source.expires = -1
    await trio.sleep(60)
    assert await key(credentials) == "key-1"
    assert len(source.walks) == 2


async def test_a_failure_is_not_repeated_for_each_that_asks(autojump_clock: MockClock) -> None:
    source = Source()
    source.answer = failing(QueueMisconfigured("correct it"))
    credentials = source.credentials()
    for _ in range(100):
        with pytest.raises(QueueMisconfigured, match="correct it"):
            await credentials.current()
    assert len(source.walks) == 1
    for _ in range(600):
        await trio.sleep(1)
        with pytest.raises(QueueMisconfigured):
            await credentials.current()
    assert 20 <= len(source.walks) <= 50
    assert source.walks[-1] > 570  # for ever


async def test_a_source_that_hangs_holds_up_a_call_for_some_seconds_and_others_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    source = Source()
    source.held = []
    credentials = source.credentials()
    with pytest.raises(QueueUnavailable, match="still being looked for, after 4 s"):
        await credentials.current()
    assert trio.current_time() == WAIT_SECONDS
    assert len(source.walks) == 1
    await trio.sleep(STUCK_SECONDS)
    with pytest.raises(QueueUnavailable, match="has not answered for 90 s"):
        await credentials.current()
    await trio.sleep(1)
    late = source.held.pop()
    source.held = None
    assert await key(credentials) == "key-2"
    late()  # after it was given up: nothing comes of it
    assert await key(credentials) == "key-2"


async def test_what_no_source_may_raise_is_told_by_its_type_alone(autojump_clock: MockClock) -> None:
    source = Source()
    source.answer = failing(RuntimeError(SECRET))
    with pytest.raises(QueueUnavailable, match="RuntimeError") as caught:
        await source.credentials().current()
    assert SECRET not in str(caught.value)


async def test_refused_ones_are_fetched_again_with_pauses(autojump_clock: MockClock) -> None:
    source = Source()
    source.answer = lambda number: Found(Keys("the same", "secret", None), "a source")
    credentials = source.credentials()
    for _ in range(300):
        credentials.refused(await credentials.current())
        await trio.sleep(1)
    assert 10 <= len(source.walks) <= 30
    source.answer = source.found
    await trio.sleep(RETRY_CAP)
    assert (await key(credentials)).startswith("key-")


async def test_a_key_that_is_no_longer_in_use_is_not_refused(autojump_clock: MockClock) -> None:
    source = Source()
    credentials = source.credentials()
    await credentials.current()
    credentials.refused(Keys("an older one", "secret", None))
    await trio.sleep(5)
    assert await key(credentials) == "key-1"
    assert len(source.walks) == 1


async def test_a_file_that_was_rewritten_is_read_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text("old")
    source = Source()
    source.files = (str(path), str(tmp_path / "none"))
    credentials = source.credentials()
    await credentials.current()
    await trio.sleep(10)
    assert await key(credentials) == "key-1"
    path.write_text("newer")
    await trio.sleep(2)
    assert await key(credentials) == "key-1"  # nobody waits
    await trio.testing.wait_all_tasks_blocked()
    assert await key(credentials) == "key-2"
    os.remove(path)
    await trio.sleep(2)
    await credentials.current()
    await trio.testing.wait_all_tasks_blocked()
    assert await key(credentials) == "key-3"
    await trio.sleep(100)
    assert await key(credentials) == "key-3"


# -- through the door --


def settings(url: str, **more: Any) -> Settings:
    return Settings(sqs_queue_url=f"{url}/000000000000/q", aws_endpoint=url, **more)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, str]], None]:
    """Sets variables of a machine that has no credentials otherwise."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def set_all(environ: dict[str, str]) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return set_all


async def test_a_metadata_service_that_comes_up_later_is_asked_again(nothing: Any) -> None:
    with aws() as fake:
        nothing(fake.environ("imds"))
        fake.answers["imds"] = 503, b"not yet"
        async with sqs.opened(settings(fake.url), polls=1) as queue:
            with pytest.raises(QueueUnavailable, match="metadata"):
                await queue.attributes()
            fake.answers.clear()
            with trio.fail_after(30):
                while True:
                    try:
                        assert await queue.attributes()
                        break
                    except QueueUnavailable:
                        await trio.sleep(0.2)
        assert fake.of("sqs")[-1].key.startswith(KEY)


async def test_keys_that_are_replaced_in_their_file_are_taken_up(nothing: Any, tmp_path: Path) -> None:
    """SQS refuses the old ones: an operator has rotated them."""
    path = tmp_path / "credentials"
    path.write_text(f"[default]\naws_access_key_id = OLD\naws_secret_access_key = {SECRET}\n")
    with aws() as fake:
        nothing({"AWS_SHARED_CREDENTIALS_FILE": str(path)})
        fake.accepted = "OLD"
        async with sqs.opened(settings(fake.url), polls=1) as queue:
            assert await queue.attributes()
            path.write_text(f"[default]\naws_access_key_id = NEW\naws_secret_access_key = {SECRET}\n")
            fake.accepted = "NEW"
            with pytest.raises(QueueMisconfigured, match="expired"):
                await queue.attributes()
            with trio.fail_after(30):
                while True:
                    try:
                        assert await queue.attributes()
                        break
                    except QueueMisconfigured:
                        await trio.sleep(0.2)


async def test_a_line_break_in_a_key_is_told_once(nothing: Any, caplog: pytest.LogCaptureFixture) -> None:
    with aws() as fake:
        nothing({"AWS_ACCESS_KEY_ID": f"{KEY}\n", "AWS_SECRET_ACCESS_KEY": f"{SECRET}\r\n"})
        fake.accepted = KEY
        async with sqs.opened(settings(fake.url), polls=1) as queue:
            for _ in range(3):
                assert await queue.attributes()
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2
    assert all("line break" in line and "AWS_" in line for line in told)


async def test_cloudwatch_is_signed_with_the_same(nothing: Any) -> None:
    with aws() as fake:
        nothing({**fake.environ("env"), "AWS_ENDPOINT_URL_CLOUDWATCH": fake.url})
        async with aws_client.opened(settings(fake.url), [Pool(1)], "cloudwatch") as [call]:
            await call("put_metric_data", Namespace="x", MetricData=[])
        assert fake.requests[-1].key == KEY


@pytest.mark.parametrize("code", ["InvalidSignatureException", "SignatureDoesNotMatch"])
@pytest.mark.parametrize(
    "text", ["Signature expired: 20260101T000000Z is now earlier than …", "Signature not yet current: …"]
)
def test_a_signature_that_is_out_of_date_is_the_clock(code: str, text: str) -> None:
    from svc.sqs import wire

    error = wire.service_error("receiving", code, text, 403)
    assert "set this machine's clock" in str(error)
    assert "AWS_SECRET_ACCESS_KEY" in str(
        wire.service_error("receiving", code, "The request signature does not match", 403)
    )
