"""The database of `@processor(exactly_once=…)` in memory: its inbox, and the statements of what was committed.

    async def test_a_crash_between_commit_and_delete(svc_queue, svc_service, autojump_clock):
        svc_queue.put("order")
        first = await svc_service(handle)
        await svc_service.inbox.commits(1)
        first.crash()
        second = await svc_service(handle)
        await second.idle()
        assert svc_service.inbox.statements == [("INSERT INTO orders VALUES (%s)", ("order",))]
        assert second.duplicates == 1

It runs no SQL: it keeps the statements of each transaction, and shows those that were committed. What a statement returns says
`answers`. All instances of a fleet share one inbox; how each reaches it stands in `inbox_line.py`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from svc.processors import Claim
from svc.testing.waiting import holds

Statement = tuple[str, Any]
"""A query and its parameters."""

Answers = Callable[[str, Any], Iterable[Any]]
"""The rows that a statement returns; what it raises is the statement's error."""

Trouble = Literal["claim", "commit", "answer"]
"""What fails: `claim`, nothing has happened; `commit`, the connection is lost before the commit arrives, and PostgreSQL rolls
back; `answer`, it is lost after the commit."""


class SimulatedDatabaseError(Exception):
    """The simulated database is out of reach."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One transaction that was committed."""

    at: float
    """Trio time."""
    keys: tuple[str, ...]
    statements: tuple[Statement, ...]


@dataclass(eq=False)
class Open:
    """The server's side of one transaction."""

    key: str | None = None
    more: list[str] = field(default_factory=list)
    """Keys of a batch."""
    statements: list[Statement] = field(default_factory=list)
    failed: bool = False
    """A statement has failed: it can only be rolled back."""
    state: Literal["open", "sent", "ended"] = "open"
    """`sent`: its commit is on the way, and goes on whatever becomes of the client."""


class SimulatedInbox:
    """Shared by the instances of a fleet."""

    def __init__(
        self,
        *,
        seconds: tuple[float, float] = (0.0, 0.0),
        answers: Answers = lambda query, params: (),
        faults: Callable[[Trouble], bool] = lambda trouble: False,
        rng: random.Random | None = None,
    ) -> None:
        """`seconds`: of each journey of a call on Trio, from-to. `faults` is asked at each claim and commit."""
        self.committed: list[Committed] = []
        """In this order."""
        self.keys: dict[str, float] = {}
        """The inbox: key → Trio time of its commit."""
        self.answers = answers
        self._seconds = seconds
        self._faults = faults
        self._rng = rng or random.Random(0)
        self._open: dict[str, Open] = {}
        self._orders: dict[Trouble, int] = {}

    # -- what a test does and looks at --

    @property
    def statements(self) -> list[Statement]:
        """Everything that was committed, in this order."""
        return [statement for one in self.committed for statement in one.statements]

    def fail(self, what: Trouble, *, times: int = 1) -> None:
        """The next so many claims or commits."""
        self._orders[what] = self._orders.get(what, 0) + times

    def forget(self, retention: float) -> None:
        """Remove keys that are older than so many seconds (`INBOX_RETENTION`)."""
        oldest = trio.current_time() - retention
        self.keys = {key: at for key, at in self.keys.items() if at > oldest}

    async def commits(self, number: int, *, within: float = 3600.0) -> None:
        """Return in the moment in which so many transactions have been committed; TooSlowError after `within` virtual seconds."""
        with trio.fail_after(within):
            await holds(lambda: len(self.committed) >= number)

    # -- the server --

    def claim(self, transaction: Open, key: str) -> Claim:
        if key in self.keys:
            return Claim.DONE
        if self._open.setdefault(key, transaction) is not transaction:
            return Claim.BUSY
        transaction.key = key
        return Claim.OURS

    def claim_all(self, transaction: Open, keys: Sequence[str]) -> Sequence[str] | None:
        if any(self.is_busy(key) for key in keys):
            return None
        transaction.more = [key for key in keys if key not in self.keys]
        self._open.update(dict.fromkeys(transaction.more, transaction))
        return list(transaction.more)

    def take_back(self, transaction: Open, keys: Sequence[str]) -> None:
        for key in keys:
            transaction.more.remove(key)
            del self._open[key]

    def is_busy(self, key: str) -> bool:
        return key in self._open

    def sent(self, transaction: Open) -> None:
        """Its commit leaves the client."""
        transaction.state = "sent"

    def commit(self, transaction: Open) -> None:
        if transaction.state != "ended":
            self._end(transaction)
            now = trio.current_time() if trio.lowlevel.in_trio_run() else self._rough_time()
            keys = (*([] if transaction.key is None else [transaction.key]), *transaction.more)
            self.keys.update(dict.fromkeys(keys, now))
            self.committed.append(Committed(now, keys, tuple(transaction.statements)))

    def roll_back(self, transaction: Open) -> None:
        if transaction.state != "ended":
            self._end(transaction)

    def _end(self, transaction: Open) -> None:
        transaction.state = "ended"
        for key in (transaction.key, *transaction.more):
            if key is not None and self._open.get(key) is transaction:
                del self._open[key]

    def _rough_time(self) -> float:
        return max(self.keys.values(), default=0.0)  # in a thread, while virtual time stands still

    def troubled(self, what: Trouble) -> bool:
        if self._orders.get(what, 0) > 0:
            self._orders[what] -= 1
            return True
        return self._faults(what)

    async def travel(self) -> None:
        least, most = self._seconds
        if most > 0:
            await trio.sleep(self._rng.uniform(least, most))
