"""Progress is for people: exact on a terminal, silent everywhere else."""

import io
import os
import pty
import re
from pathlib import Path

import pytest

from svc.cli.progress import Progress
from svc.devstack.stack import Moto
from tests import preloaded


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def seen(terminal: io.StringIO) -> str:
    """What a person sees: the last writing of each line, without colour."""
    text = re.sub(r"\x1b\[\d*m", "", terminal.getvalue())
    return "\n".join(line.rsplit("\r\x1b[2K", 1)[-1] for line in text.split("\n"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_step_ends_with_its_mark_and_time() -> None:
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, clock=clock)
    with progress.step("starting etcd") as tell:
        assert seen(terminal) == "… starting etcd"
        clock.now = 1.26
        tell("port 2379")
        assert seen(terminal) == "… starting etcd port 2379"
    assert seen(terminal) == "✓ starting etcd (1.3 s)\n"
    with pytest.raises(KeyboardInterrupt), progress.step("creating the queue"):
        raise KeyboardInterrupt
    assert seen(terminal) == "✓ starting etcd (1.3 s)\n✗ creating the queue (0.0 s)\n"


def test_a_count_draws_a_bar_at_most_ten_times_a_second() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress(terminal, clock=clock).count("sending", total=1000) as sent:
        before = terminal.getvalue().count("\r")
        for number in range(1, 501):
            clock.now = number / 1000
            sent(number)
        assert terminal.getvalue().count("\r") - before <= 5
        assert re.search(r"… sending █{9,12}░{12,15} [45]\d\d/1000$", seen(terminal))
        sent(1000)
    assert seen(terminal) == "✓ sending 1000/1000 (0.5 s)\n"


def test_nothing_is_written_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, dumb = io.StringIO(), Terminal()
    monkeypatch.setenv("TERM", "dumb")
    for stream in (pipe, dumb):
        with Progress(stream).step("one"), Progress(stream).count("two") as count:
            count(7)
        assert stream.getvalue() == ""


def test_a_terminal_that_has_gone_fails_nothing() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with Progress(Gone()).step("one"):
        pass


def test_init_shows_its_progress_on_a_terminal_and_its_output_stays_as_it_was(
    moto: Moto, queue_name: str, tmp_path: Path
) -> None:
    environ = os.environ | {
        "SQS_QUEUE_URL": moto.queue_url(queue_name),
        "AWS_ENDPOINT": moto.url,
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "TERM": "xterm",
    }
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, (tmp_path / "out").open("w+b") as out:
        ran = preloaded.popen(["init", "--messages", "3"], env=environ, cwd=tmp_path, stdout=out, stderr=theirs)
        assert ran.wait(60) == 0
        os.close(theirs)
        shown = seen(io.StringIO(terminal.read(65_536).decode().replace("\r\n", "\n")))
    assert re.fullmatch(r"✓ setting the queue up \(\d+\.\d s\)\n", shown), shown
    assert (tmp_path / "out").read_text().splitlines() == [
        f"queue {environ['SQS_QUEUE_URL']}: created",
        "sent 3 messages",
    ]
