"""Seeded mistakes in what makes effects happen exactly once (`inbox.py`). The search has to catch each."""

import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from svc.core import Core
from svc.processors import Claim, Message, UnitOfWork
from svc.testing import SimulatedDatabaseError
from svc.testing.inbox import Open

Run = Callable[..., Awaitable[object]]


def _unit(core: Core) -> UnitOfWork:
    unit = core.worker._unit_of_work
    assert unit is not None
    return unit


def _with_sessions(core: Core, spoil: Callable[[Any], None]) -> None:
    """Each session is spoilt when it is opened."""
    line: Any = _unit(core).inbox
    open_session = line.on_trio

    def open_spoilt() -> Any:
        session = open_session()
        spoil(session)
        return session

    line.on_trio = open_spoilt


def commit_after_delete(core: Core) -> None:
    """The message is settled when its processor has returned; the commit follows."""

    def spoil(session: Any) -> None:
        commit, close = session.commit, session.close

        async def later(check: Callable[[], None]) -> None:
            trio.lowlevel.spawn_system_task(at_last, check)

        async def at_last(check: Callable[[], None]) -> None:
            await trio.sleep(0.5)
            try:
                if not session.line.is_cut:
                    await commit(lambda: None)
            except Exception:
                pass
            await close()

        async def not_yet() -> None:
            if not session.kept:
                await close()

        async def commit_later(check: Callable[[], None]) -> None:
            session.kept = True
            await later(check)

        session.kept = False
        session.commit, session.close = commit_later, not_yet

    _with_sessions(core, spoil)


def insert_outside_the_transaction(core: Core) -> None:
    """The key is committed when it is claimed, in a transaction of its own."""

    def spoil(session: Any) -> None:
        claim = session.claim

        async def claim_and_commit(key: str) -> Claim:
            claimed: Claim = await claim(key)
            if claimed is Claim.OURS:
                inbox, session.open.key = session.inbox, None
                del inbox._open[key]
                inbox.keys[key] = trio.current_time()
            return claimed

        session.claim = claim_and_commit

    _with_sessions(core, spoil)


def key_after_effect(core: Core) -> None:
    """The effects are committed first, and the key after them, in a transaction of its own."""

    def spoil(session: Any) -> None:
        commit = session.commit

        async def commit_twice(check: Callable[[], None]) -> None:
            key, session.open.key = session.open.key, None
            session.inbox._open.pop(key, None)
            await commit(check)
            await trio.sleep(0.3)
            if not session.line.is_cut:
                session.inbox.keys[key] = trio.current_time()

        session.commit = commit_twice

    _with_sessions(core, spoil)


def lease_not_checked(core: Core) -> None:
    """Nobody looks whether the message is still ours: neither at its lease, nor at the cancellation that follows its loss."""

    def spoil(session: Any) -> None:
        commit = session.commit

        async def commit_in_any_case(check: Callable[[], None]) -> None:
            with trio.move_on_after(5, shield=True):
                await commit(lambda: None)

        session.commit = commit_in_any_case

    _with_sessions(core, spoil)


def retention_shorter_than_redelivery(core: Core) -> None:
    """Keys are forgotten before their message has left the queue for good."""
    inbox: Any = _unit(core).inbox
    inbox.inbox.retention = 1.0


def pool_closed_before_the_worker(core: Core) -> None:
    """A drain closes the connections first, and waits for the work then."""
    line: Any = _unit(core).inbox
    worker = core.worker
    enter, leave = worker.enter, worker.leave

    def close_and_enter() -> None:
        line.close()
        enter()

    def open_and_leave() -> None:
        line.is_closed = False
        leave()

    worker.enter, worker.leave = close_and_enter, open_and_leave  # type: ignore[method-assign]


def what_raises_commits(core: Core) -> None:
    """A processor's error ends its message, and not its transaction."""

    def spoil(session: Any) -> None:
        async def commit_all_the_same() -> None:
            if session.open.state == "open" and session.open.statements and not session.line.is_cut:
                session.inbox.commit(session.open)
            session.close_now()

        session.close = commit_all_the_same

    _with_sessions(core, spoil)


def busy_is_a_duplicate(core: Core) -> None:
    """A key that somebody else has claimed and not committed counts as committed."""

    def spoil(session: Any) -> None:
        claim = session.claim

        async def claim_or_done(key: str) -> Claim:
            claimed: Claim = await claim(key)
            return Claim.DONE if claimed is Claim.BUSY else claimed

        session.claim = claim_or_done

    _with_sessions(core, spoil)


def a_duplicate_is_processed(core: Core) -> None:
    """A key that is there already is no reason not to do it again."""

    def spoil(session: Any) -> None:
        claim = session.claim

        async def claim_and_go_on(key: str) -> Claim:
            claimed: Claim = await claim(key)
            return Claim.OURS if claimed is Claim.DONE else claimed

        session.claim = claim_and_go_on

    _with_sessions(core, spoil)


def a_lost_commit_is_a_success(core: Core) -> None:
    """A commit without an answer is taken for one that has happened."""

    def spoil(session: Any) -> None:
        commit = session.commit

        async def commit_and_hope(check: Callable[[], None]) -> None:
            with contextlib.suppress(SimulatedDatabaseError):
                await commit(check)

        session.commit = commit_and_hope

    _with_sessions(core, spoil)


def a_lost_answer_is_tried_again(core: Core) -> None:
    """A commit without an answer is followed by the same work once more, without a look at the key."""
    unit = _unit(core)
    run: Run = unit.run

    async def run_again(open_session: Any, sleep: Any, message: Message, key: str, work: Any) -> object:
        try:
            return await run(open_session, sleep, message, key, work)
        except SimulatedDatabaseError:
            line: Any = unit.inbox
            if line.is_closed or line.is_cut:
                raise
            again = Open()
            again.statements.append(("effect", (message.id, f"{message.id}#{message.receive_count}", 0)))
            line.inbox.commit(again)
            return None

    unit.run = functools.wraps(run)(run_again)  # type: ignore[method-assign]


MUTATIONS = {
    spoil.__name__: spoil
    for spoil in (
        commit_after_delete,
        insert_outside_the_transaction,
        key_after_effect,
        lease_not_checked,
        retention_shorter_than_redelivery,
        pool_closed_before_the_worker,
        what_raises_commits,
        busy_is_a_duplicate,
        a_duplicate_is_processed,
        a_lost_commit_is_a_success,
        a_lost_answer_is_tried_again,
    )
}
