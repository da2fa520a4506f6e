"""What the log lines look like, from our own code, the libraries and the processor alike."""

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog
import trio
from hpack import Encoder

import svc
from svc import Message, Retry
from svc.consumer.worker import Worker
from svc.core import Core
from svc.maintenance.gate import Gate
from svc.settings import load
from svc.telemetry import logs
from svc.telemetry.console import Console, may_be_coloured
from svc.testing import SimulatedQueue, SimulatedSwitch
from tests.source import tree


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; the logging of the whole process is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {
        name: logging.getLogger(name).level
        for name in ("httpx2", "httpx", "hypercorn", "botocore", "aiobotocore", "asyncio", "quart", "hpack")
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


# -- the documented fields --

OF_THE_FORM = {"timestamp", "level", "event", "logger", "exception"}
AS_TRACEBACK = "exc_info"
"""What our calls say where the line has `exception`."""


def fields_of_our_calls() -> set[str]:
    """The names of all figures that our own calls log, or bind for the lines of a task."""
    found = set()
    for path in Path(svc.__file__).parent.rglob("*.py"):
        for call in ast.walk(tree(path)):
            if isinstance(call, ast.Call) and _logs(call.func):
                found |= {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    return found - {AS_TRACEBACK}


def _logs(function: ast.expr) -> bool:
    match function:
        case ast.Name(name) | ast.Attribute(ast.Name("log"), name):
            return name in {"debug", "info", "warning", "error", "critical", "exception", "tell"}
        case ast.Attribute(ast.Attribute(ast.Name("structlog"), "contextvars"), "bind_contextvars"):
            return True
    return False


def test_every_field_is_documented_and_every_documented_one_is_used() -> None:
    reference = (Path(svc.__file__).parent.parent / "docs" / "reference" / "log-fields.md").read_text()
    section = reference.partition("\n## Events\n")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split(" | ")[0])}
    of_the_report = {Gate.name, Worker.name}
    assert documented == fields_of_our_calls() | OF_THE_FORM | of_the_report


# -- the form for people --


def people(**fields: object) -> str:
    at = datetime.now().astimezone().replace(hour=12, minute=3, second=44)
    return Console(colours=False)(
        None, "info", {"timestamp": at.isoformat(), "level": "info", "logger": "svc.x", **fields}
    )


def test_figures_begin_at_one_column_and_nothing_is_left_out_but_none() -> None:
    line = people(
        event="drain ended", outcome="drained", seconds=2.4, error=None, http={}, on=True, sqs={"in_flight": 10}
    )
    assert (
        line
        == '12:03:44 info     drain ended                              outcome=drained seconds=2.4 on=true sqs={"in_flight": 10}'
    )
    assert people(event="an event of more than forty characters, that is", a=1).endswith("that is a=1")
    assert people(event="bare") == "12:03:44 info     bare"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_libraries_never_write_down_requests(level: str, stream: io.StringIO) -> None:
    """They hold signed headers, the session token, and etcd's."""
    logs.configure("json", level, stream)
    logging.getLogger("botocore.endpoint").debug("Sending http request: %s", {"X-Amz-Security-Token": "secret"})
    logging.getLogger("aiobotocore").info("secret")
    Encoder().encode([("token", "secret")])  # as etcd's goes out
    logging.getLogger("botocore.credentials").warning("found in the environment")
    (line,) = lines(stream)
    assert line["event"] == "found in the environment"


def test_a_foreign_logger_is_named() -> None:
    assert people(event="x", logger="their.module").split() == ["12:03:44", "info", "x", "[their.module]"]


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("plain-1", "plain-1"), ("two words", '"two words"'), ("", '""'), ("a=b", '"a=b"'), ('"', r'"\""'), ("ü", "ü"),
        ("a\nb", r'"a\nb"'), ("\x1b[2J", r'"\u001b[2J"'), ("\x9b1m", r"\x9b1m"), ("\u202eabc", r"\u202eabc"),
        ("\udc80", r"\udc80"), (("a", 1), '["a", 1]'),
        ({1: {2: "x\x07"}}, r'{"1": {"2": "x\u0007"}}'), ({(1,): 2}, "{(1,): 2}"), (1.5, "1.5"),
    ],
)  # fmt: skip
def test_values_are_quoted_where_needed_and_cannot_tell_the_terminal_anything(value: object, form: str) -> None:
    line = people(event="x", value=value)
    assert line.partition("value=")[2] == form
    assert line.isprintable()


def test_an_event_from_outside_cannot_begin_a_line() -> None:
    assert people(event="bad\n12:00:00 critical hacked", logger="theirs").count("\n") == 0
    assert people(event="x", **{"a\nb": 1}).count("\n") == 0


def test_a_traceback_stands_below_and_within(stream: io.StringIO) -> None:
    logs.configure("console", "info", stream)
    try:
        raise ValueError("\x1b[31mred\nand more")
    except ValueError:
        structlog.get_logger("svc").warning("failed", exc_info=True)
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert r"    ValueError: \x1b[31mred" in rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_colours_are_for_terminals_that_want_them() -> None:
    assert may_be_coloured({"TERM": "xterm"})
    assert not may_be_coloured({"TERM": "xterm", "NO_COLOR": "1"})
    assert not may_be_coloured({"TERM": "dumb"})
    line = {"timestamp": "2026-01-01T00:00:00+00:00", "level": "error", "logger": "svc", "event": "no", "count": 1}
    coloured, plain = (Console(colours=colours)(None, "error", line) for colours in (True, False))
    assert "\x1b[31merror" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
