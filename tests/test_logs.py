"""What the log lines look like, from our own code, the libraries and the processor alike."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
import structlog
import trio

from svc import Message, Retry, logs
from svc.core import Core
from svc.settings import load
from svc.testing import SimulatedQueue, SimulatedSwitch


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; the logging of the whole process is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {
        name: logging.getLogger(name).level
        for name in ("httpx2", "httpx", "hypercorn", "botocore", "aiobotocore", "asyncio", "quart")
    }
    configured = structlog.get_config()
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in named.items():
        logging.getLogger(name).setLevel(before)
    structlog.configure(**configured)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Every line, as JSON."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream)
    structlog.get_logger("svc.somewhere").info("drain ended", count=3, ids=("a", "b"))
    (line,) = lines(stream)
    stamp = datetime.fromisoformat(line.pop("timestamp"))
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=1)
    assert line == {"event": "drain ended", "level": "info", "logger": "svc.somewhere", "count": 3, "ids": ["a", "b"]}


def test_the_standard_library_s_lines_look_the_same(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream)
    logging.getLogger("their.module").warning("%d of %s", 3, "five", extra={"order": 7})
    (line,) = lines(stream)
    assert {name: line[name] for name in ("event", "level", "logger", "order")} == {
        "event": "3 of five", "level": "warning", "logger": "their.module", "order": 7,
    }  # fmt: skip
    assert line["timestamp"].endswith("Z")


@pytest.mark.expects_errors
def test_exceptions_are_within_their_line(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream)
    try:
        raise ExceptionGroup("several", [ValueError("broken\nthing"), KeyError("k")])
    except* ValueError:
        structlog.get_logger("svc").error("message failed", exc_info=True)
        logging.getLogger("theirs").exception("it failed")
    except* KeyError:
        pass
    ours, theirs = lines(stream)
    for line in (ours, theirs):
        assert "Traceback" in line["exception"]
        assert "ValueError: broken" in line["exception"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_bound_stands_in_every_line_of_the_task(form: Literal["json", "console"], stream: io.StringIO) -> None:
    logs.configure(form, "info", stream)
    with structlog.contextvars.bound_contextvars(message_id="id-7"):
        structlog.get_logger("svc").info("one")
        logging.getLogger("theirs").info("two")
    logging.getLogger("theirs").info("three")
    one, two, three = stream.getvalue().splitlines()
    assert "id-7" in one
    assert "id-7" in two
    assert "id-7" not in three


@pytest.mark.expects_errors
async def test_a_processor_s_lines_carry_the_message_id(stream: io.StringIO) -> None:
    """Both kinds of logger, in the task, in tasks that it starts and in a thread; each message its own."""
    logs.configure("json", "info", stream)

    async def child(number: str) -> None:
        logging.getLogger("user").info("child %s", number)

    async def work(message: Message) -> None:
        logging.getLogger("user").info("begin %s", message.body)
        await trio.sleep(0.01)  # the others come in between
        structlog.get_logger("user").info("ours", body=message.body)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, message.body)
        await trio.to_thread.run_sync(lambda: logging.getLogger("user").info("thread %s", message.body))
        if message.body == "2":
            raise Retry(after=100)
        if message.body == "3":
            raise ValueError("no")

    queue, switch = SimulatedQueue(), SimulatedSwitch()
    core = Core(load({"SQS_WAIT_TIME_SECONDS": "0"}), queue, work, switch.watcher)
    ids = {queue.put(str(number)): str(number) for number in range(4)}
    async with trio.open_nursery() as nursery:
        await nursery.start(core.run)
        with trio.fail_after(5):
            while core.worker.statistics().counts.in_flight or not core.worker.statistics().counts.received:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    written = lines(stream)
    users = [line for line in written if line["logger"] == "user"]
    assert len(users) == 4 * 4
    for line in users:
        assert ids[line["message_id"]] == line.get("body", line["event"].split()[-1])
    ends = {line["event"]: ids[line["message_id"]] for line in written if line["event"].startswith("message ")}
    assert ends == {"message will be retried": "2", "message failed": "3"}
    (failed,) = (line for line in written if line["event"] == "message failed")
    assert "ValueError: no" in failed["exception"]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
@pytest.mark.expects_errors
def test_levels(level: str, stream: io.StringIO) -> None:
    logs.configure("json", level, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger("svc"), name)("ours")
        getattr(logging.getLogger("theirs"), name)("theirs")
    order = ["debug", "info", "warning", "error"]
    assert [line["level"] for line in lines(stream)] == [one for one in order[order.index(level) :] for _ in range(2)]


def test_libraries_are_silent_about_single_requests(stream: io.StringIO) -> None:
    logs.configure("json", "info", stream)
    for name in (
        "httpx",
        "httpx2",
        "hypercorn.error",
        "hypercorn.access",
        "botocore.credentials",
        "aiobotocore.x",
        "asyncio",
        "quart.app",
    ):
        logging.getLogger(name).info("something happened")
    assert stream.getvalue() == ""
    logging.getLogger("botocore.x").warning("something went wrong")
    assert len(lines(stream)) == 1


def test_configuring_twice_writes_once(stream: io.StringIO) -> None:
    logs.configure("console", "info", stream)
    logs.configure("json", "info", stream)
    structlog.get_logger("svc").info("once")
    assert len(lines(stream)) == 1


def test_a_console_line(stream: io.StringIO) -> None:
    logs.configure("console", "info", stream)
    structlog.get_logger("svc").info("drain ended", count=3)
    assert stream.getvalue().count("\n") == 1
    assert "drain ended" in stream.getvalue()
    assert "count=3" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()  # no terminal, no colours


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_others_write_cannot_forge_a_line(form: Literal["json", "console"], stream: io.StringIO) -> None:
    """A message's body, a reason in etcd: line ends and terminal sequences stay within the line, visibly."""
    logs.configure(form, "info", stream)
    structlog.get_logger("svc").info("simulated work done", body="x\n2026-01-01 [error] forged\r\x1b[2J\u2028\x85")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_anything_can_be_logged(form: Literal["json", "console"], stream: io.StringIO) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<odd>"

    logs.configure(form, "info", stream)
    structlog.get_logger("svc").info("odd", a=Odd(), b=b"\xff", c={1, 2}, d=float("nan"), e=None, f={"x": Odd()})
    assert "<odd>" in stream.getvalue()
    assert "\ud800" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_lone_surrogates_reach_a_real_stream(form: Literal["json", "console"], stream: io.StringIO) -> None:
    """JSON in etcd can hold them; standard error writes them as escapes."""
    raw = io.BytesIO()
    logs.configure(form, "info", io.TextIOWrapper(raw, "utf-8", errors=sys.__stderr__.errors, write_through=True))  # type: ignore[union-attr]
    structlog.get_logger("svc").info("maintenance key read", reason="\ud800")
    assert b"\\ud800" in raw.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_do_not_appear(form: Literal["json", "console"], stream: io.StringIO) -> None:
    logs.configure(form, "debug", stream)
    settings = load({"API_TOKEN": "a-token-nobody-knows", "ETCD_USERNAME": "ann", "ETCD_PASSWORD": "sesame-open"})
    structlog.get_logger("svc").info("started", settings=settings, token=settings.api_token)
    logging.getLogger("theirs").info("%s %r", settings, settings.etcd_password)
    assert stream.getvalue()
    assert "nobody" not in stream.getvalue()
    assert "sesame" not in stream.getvalue()
