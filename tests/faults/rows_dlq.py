"""`svc dlq` in trouble: an operator's command on a line of its own, while the service works. What it moves back, the service
processes."""

import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from functools import wraps

import trio

from svc.settings import load
from svc.sqs import queue as sqs
from svc.sqs.dead_letters import TIDY, depth
from svc.sqs.wire import REJECT_REASON
from tests import preloaded
from tests.border.odd import poisoned
from tests.faults.proxy import Answer, SqsProxy
from tests.faults.rows import scenario
from tests.faults.trial import Trial
from tests.recording import MOST

SERVING = 60.0
"""Calls of SQS per second where work goes on: this is no outage of SQS."""

LETTERS = 30

BOTH = "svc: perhaps in both queues, because SQS has not confirmed the send or the delete: "
UNCONFIRMED = "svc: perhaps not deleted, because SQS has not confirmed it: "


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def count(self) -> int:
        """Letters that it says it has moved or deleted."""
        found = re.search(r": (\d+) of about \d+ messages", self.out)
        assert found is not None, self
        return int(found[1])

    def named(self, words: str) -> set[str]:
        """The ids after these words."""
        found = [line.removeprefix(words) for line in self.err.splitlines() if line.startswith(words)]
        return {id_ for line in found for id_ in line.split(", ")}


@dataclass
class Desk:
    """An operator with a line to SQS."""

    t: Trial
    line: SqsProxy
    process: preloaded.Process = field(init=False)
    letters: dict[str, str] = field(default_factory=dict)
    """Id in the dead-letter queue → body, as it is written down when it is processed."""
    twice: Set[str] = frozenset()
    """Ids of those that may be processed twice."""

    async def fill(self, count: int = LETTERS, **odd: dict[str, str | int]) -> None:
        """Letters by `Reject`, and others: body → attributes."""
        usual = {f"letter {number}": {REJECT_REASON: "no such article"} for number in range(count)}
        async with sqs.opened_with_dead_letters(load(self.t.stand.environ)) as (_, dead, _):
            for body, attributes in {**usual, **odd}.items():
                self.letters[await dead.send(body, attributes=attributes)] = body[:MOST]

    async def svc(
        self, *arguments: str, when: Callable[[], object] | None = None, then: Callable[[], object] | None = None
    ) -> Ended:
        """`svc dlq …` to its end; `then` is done as soon as `when` holds, and the line is healed when it has ended."""
        environ = {**os.environ, **self.t.stand.environ, "AWS_ENDPOINT": self.line.url, "NO_COLOR": "1"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            self.process = preloaded.popen(["dlq", *arguments], env=environ, stdout=out, stderr=err)
            try:
                with trio.fail_after(90):
                    if when is not None and then is not None:
                        while not when():
                            assert self.process.poll() is None, "it has ended before it could be broken"
                            await trio.sleep(0.002)
                        then()
                    code = await preloaded.exited(self.process)
            finally:
                if self.process.poll() is None:
                    self.process.kill()
                await self.line.heal()
            out.seek(0)
            err.seek(0)
            ended = Ended(code, out.read().decode(), err.read().decode())
        assert "Traceback" not in ended.err, ended.err
        return ended

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def after(self, action: str, count: int) -> Callable[[], bool]:
        """Whether so many more requests of this kind have been made."""
        before = sum(name == action for _, name in self.line.requests)
        return lambda: sum(name == action for _, name in self.line.requests) >= before + count

    def for_a_while(self, break_it: Callable[[], object], seconds: float) -> Callable[[], None]:
        def broken() -> None:
            break_it()
            self.t.nursery.start_soon(heal)

        async def heal() -> None:
            await trio.sleep(seconds)
            await self.line.heal()

        return broken

    async def there(self) -> tuple[int, int]:
        """Letters in the dead-letter queue: visible, and hidden."""
        async with sqs.opened_with_dead_letters(load(self.t.stand.environ)) as (_, dead, _):
            found = await depth(dead)
        return found.visible, found.hidden

    async def given_back(self) -> None:
        """What was held is visible again."""
        with trio.fail_after(TIDY + 5):
            while (await self.there())[1]:
                await trio.sleep(0.1)

    async def processed(self, twice: Set[str] = frozenset()) -> None:
        """Each letter is processed; at the end more than once none but (some of) these, named by their ids."""
        self.twice = twice
        await self.t.until(lambda: all(self.t.record.succeeded[body] for body in self.letters.values()))

    async def account(self) -> None:
        """Ends the trial, and counts the letters too."""
        await self.t.settle()
        again = {id_ for id_, body in self.letters.items() if self.t.record.succeeded[body] > 1}
        assert again <= self.twice, (again, self.twice)
        row = self.t.row
        row.sent += sum(bool(self.t.record.succeeded[body]) for body in self.letters.values())
        if again:
            row.duplicates += len(again)
            row.why_duplicates = f"{len(again)} named by the command"


Run = Callable[[Desk], Awaitable[None]]


def at_the_desk(name: str, fault: str, sees: str, *, by_default: bool = False) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        @wraps(run)
        async def with_desk(t: Trial) -> None:
            line = SqsProxy(t.stand.environ["AWS_ENDPOINT"])
            async with line.running():
                desk = Desk(t, line)
                await t.start()
                async with t.outage(named=None, over=None, calls_limit=SERVING):
                    await run(desk)
                await desk.account()

        scenario(name, fault, sees, by_default=by_default)(with_desk)
        return run

    return add


@at_the_desk(
    "dlq-redrive-cut",
    "`svc dlq redrive`: every connection is closed for 1.5 s, in the middle of it",
    "exit code 1, and why; what may be in both queues is named; what was not moved is visible at once; again, it moves the rest",
    by_default=True,
)
async def _(desk: Desk) -> None:
    await desk.fill()
    cut = desk.for_a_while(desk.line.cut, 1.5)
    first = await desk.svc("redrive", when=desk.after("SendMessage", 5), then=cut)
    assert (first.code, "sending: " in first.err) == (1, True), first
    named = first.named(BOTH)
    assert len(named) <= 1, first
    await desk.given_back()
    assert (await desk.there())[0] == LETTERS - first.count
    again = await desk.svc("redrive")
    assert (again.code, again.err, first.count + again.count) == (0, "", LETTERS)
    assert await desk.there() == (0, 0)
    await desk.processed(named)


@at_the_desk(
    "dlq-redrive-stalled",
    "`svc dlq redrive`: the line carries nothing for 3 s, in the middle of it",
    "it waits, and moves everything: exit code 0",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    ended = await desk.svc(
        "redrive", when=desk.after("SendMessage", 5), then=desk.for_a_while(desk.line.hang, 3)
    )  # fmt: skip
    assert (ended.code, ended.err, ended.count) == (0, "", LETTERS)
    assert await desk.there() == (0, 0)
    await desk.processed()


@at_the_desk(
    "dlq-send-lost",
    "`svc dlq redrive`: SQS takes the copy of a letter, and its answer does not arrive",
    "exit code 1; this letter is named, is in both queues, and is moved again by the next one: it is processed twice",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    lose = lambda: desk.line.lose_answers("SendMessage")  # noqa: E731
    first = await desk.svc("redrive", when=desk.after("SendMessage", 5), then=lose)
    named = first.named(BOTH)
    assert (first.code, len(named)) == (1, 1), first
    await desk.given_back()
    again = await desk.svc("redrive")
    assert (again.code, first.count + again.count) == (0, LETTERS)
    await desk.processed(named)
    [twice] = named
    await desk.t.quiet()
    assert desk.t.record.succeeded[desk.letters[twice]] == 2


@at_the_desk(
    "dlq-delete-fails",
    "`svc dlq redrive`: the copies are sent, and each delete is answered with HTTP 500",
    "exit code 1; what was sent is named: it is in both queues, hidden in the dead-letter queue for two minutes",
)
async def _(desk: Desk) -> None:
    await desk.fill(12)
    desk.line.answer(Answer(500, "InternalError"), "DeleteMessageBatch")
    ended = await desk.svc("redrive")
    assert (ended.code, ended.count) == (1, 0), ended
    assert ended.named(BOTH) == set(desk.letters)
    assert sum(await desk.there()) == 12
    await desk.processed()


@at_the_desk(
    "dlq-purge-cut",
    "`svc dlq purge`: every connection is reset for 1.5 s, in the middle of it",
    "what is told to be deleted is, what is perhaps not is named, everything else is visible at once; again, it deletes the rest",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    cut = desk.for_a_while(desk.line.reset, 1.5)
    purge = ("purge", "--all", "--yes")
    first = await desk.svc(*purge, when=desk.after("DeleteMessageBatch", 1), then=cut)
    named = first.named(UNCONFIRMED)
    left = sum(await desk.there())
    assert LETTERS - first.count - len(named) <= left <= LETTERS - first.count, first
    assert first.code == (1 if named or first.count < LETTERS else 0), first
    again = await desk.svc(*purge)
    assert (again.code, again.err) == (0, "")
    assert (await desk.there())[0] == 0
    assert not any(desk.t.record.succeeded[body] for body in desk.letters.values())


@at_the_desk(
    "dlq-purge-unheard",
    "`svc dlq purge`: SQS deletes, and its answers do not arrive",
    "exit code 1; what was deleted unconfirmed is named, and nothing is left",
)
async def _(desk: Desk) -> None:
    await desk.fill(10)
    desk.line.lose_answers("DeleteMessageBatch")
    ended = await desk.svc("purge", "--where", "reason~article", "--yes")
    assert (ended.code, ended.count) == (1, 0), ended
    assert ended.named(UNCONFIRMED) == set(desk.letters)
    assert sum(await desk.there()) == 0


@at_the_desk(
    "dlq-list-cut",
    "`svc dlq list`: every connection is reset for 1.5 s, in the middle of it",
    "exit code 1, and why; what it had looked at is visible at once",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    cut = desk.for_a_while(desk.line.reset, 1.5)
    first = await desk.svc("list", "--max", "100", when=desk.after("ReceiveMessage", 2), then=cut)
    assert (first.code, first.out) == (1, ""), first
    assert first.err.startswith("svc: receiving: "), first
    visible, hidden = await desk.there()
    assert (visible + hidden, hidden <= 10) == (LETTERS, True)  # what a receive has brought whose answer was lost
    again = await desk.svc("list", "--max", "100")
    assert (again.code, again.out.count("letter ")) == (0, visible)


@at_the_desk(
    "dlq-interrupted",
    "Ctrl-C in the middle of `svc dlq redrive`, of `purge` and of `list`",
    "exit code 1; what was not moved or deleted is visible at once; nothing is in both queues",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    looked = await desk.svc("list", "--where", "body=x", when=desk.after("ReceiveMessage", 1), then=desk.interrupt)
    assert (looked.code, "stopped" in looked.err) == (1, True), looked
    assert await desk.there() == (LETTERS, 0)
    purged = await desk.svc("purge", "--all", "--yes", when=desk.after("DeleteMessageBatch", 1), then=desk.interrupt)
    assert (purged.code, 0 < purged.count < LETTERS) == (1, True), purged
    assert await desk.there() == (LETTERS - purged.count, 0)
    for letter in [*desk.letters][: purged.count]:  # in the order in which they came
        del desk.letters[letter]
    moved = await desk.svc("redrive", when=desk.after("SendMessage", 5), then=desk.interrupt)
    assert (moved.code, 0 < moved.count < len(desk.letters)) == (1, True), moved
    assert "svc: stopped; what was not moved is where it was" in moved.err
    assert await desk.there() == (len(desk.letters) - moved.count, 0)
    again = await desk.svc("redrive")
    assert (again.code, moved.count + again.count) == (0, len(desk.letters))
    await desk.processed()


ODD: dict[str, dict[str, str | int]] = {
    "\x9b31mred\u202e\n\t\r two \x7f lines": {REJECT_REASON: "\x9b2J\u202e\nerased"},
    "[" * 9_000: {},
    "x" * 200_000: {REJECT_REASON: 7},
    "\N{GRINNING FACE}" * 300: {f"attribute.{number}": "x" * 500 for number in range(10)},
    '"': {"ErrorCode": "200", "ErrorMessage": "\u2028"},
    "\u00e4\u0308" * 50: {"ERROR_MESSAGE": "-" * 3_000},
}  # fmt: skip


@at_the_desk(
    "dlq-garbage",
    "letters of any shape: escape codes, no reason, a number for one, ten attributes, 200 kB; and with each receive one that "
    "cannot be read",
    "`list`, `show`, `redrive` and `purge` do what they are told; nothing reaches the terminal that it would obey",
)
async def _(desk: Desk) -> None:
    def poison() -> None:
        desk.line.rewrite("ReceiveMessage", poisoned())

    await desk.fill(3, **ODD)
    for arguments in (["list"], ["list", "--json"], ["list", "--where", "attribute:RejectReason>6"]):
        poison()
        ended = await desk.svc(*arguments)
        assert ended.code == 0, ended
        assert all(sign.isprintable() or sign == "\n" for sign in ended.out), ended.out
    for letter in desk.letters:
        poison()
        shown = await desk.svc("show", letter)
        assert (shown.code, letter in shown.out) == (0, True), shown
        assert all(sign.isprintable() or sign == "\n" for sign in shown.out), shown.out
    poison()
    purged = await desk.svc("purge", "--where", "reason~article", "--yes")
    assert (purged.code, purged.count) == (0, 3), purged
    for letter in [*desk.letters][:3]:
        del desk.letters[letter]
    poison()
    moved = await desk.svc("redrive")
    assert (moved.code, moved.count) == (0, len(ODD)), moved
    await desk.processed()


@at_the_desk(
    "dlq-deleted-meanwhile",
    "somebody deletes the dead-letter queue in the middle of `svc dlq redrive`",
    "exit code 1, “there is no such queue”; what was sent is in the queue once, and named unless its delete was confirmed",
)
async def _(desk: Desk) -> None:
    await desk.fill()
    deleted = trio.Event()

    def delete() -> None:
        desk.t.nursery.start_soon(delete_queue)

    async def delete_queue() -> None:
        await desk.t.aws("DeleteQueue", QueueUrl=desk.t.stand.environ["SQS_QUEUE_URL"] + "-dlq")
        deleted.set()

    before = [*desk.line.requests]
    ended = await desk.svc("redrive", when=desk.after("SendMessage", 5), then=delete)
    assert deleted.is_set()
    sent = sum(name == "SendMessage" for _, name in desk.line.requests) - sum(
        name == "SendMessage" for _, name in before
    )
    assert (ended.code, "there is no such queue" in ended.err) == (1, True), ended
    assert ended.count + len(ended.named(BOTH)) == sent < LETTERS, ended
    desk.letters = dict([*desk.letters.items()][:sent])  # the others have gone with their queue
    await desk.processed()
