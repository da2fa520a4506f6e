"""Renewals of leases: on one call while that answers promptly, else on new ones. Exact, in virtual time."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from svc.etcd import messages
from svc.etcd.errors import Trouble
from svc.etcd.renewals import PROMPT, Renewals


@dataclass
class Server:
    """Answers the first request of a call at once, later ones after `later` seconds; a call ends after `most` answers."""

    later: float = 0.0
    most: int = 1_000_000
    may_stay: bool = True
    calls: list["Call"] = field(default_factory=list)

    async def begin(self) -> tuple["Call", bool]:
        self.calls.append(Call(self))
        return self.calls[-1], self.may_stay

    @property
    def open(self) -> int:
        return sum(not call.left for call in self.calls)


class Call:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.asked: list[int] = []
        self.left = False

    async def send(self, message: bytes, *, last: bool = False) -> None:
        assert not self.left
        assert not last
        self.asked.append(messages.read("LeaseKeepAliveRequest", message).ID)

    async def receive(self) -> bytes | None:
        if len(self.asked) > self.server.most:
            return None
        await trio.sleep(self.server.later if len(self.asked) > 1 else 0)
        lease = self.asked[-1]
        return bytes(messages.LeaseKeepAliveResponse(ID=lease, TTL=lease * 10).SerializeToString())

    def leave(self) -> None:
        assert not self.left
        self.left = True


def of(server: Server) -> Renewals:
    return Renewals(server.begin)  # type: ignore[arg-type]


async def test_one_call_does_for_all(autojump_clock: MockClock) -> None:
    server = Server(later=PROMPT / 2)
    renewals = of(server)
    for lease in (1, 1, 2, 1, 1):
        assert await renewals.renew(lease) == lease * 10
    assert [call.asked for call in server.calls] == [[1, 1, 2, 1, 1]]
    assert server.open == 1


async def test_who_answers_late_gets_a_call_for_each_and_is_waited_for_twice(autojump_clock: MockClock) -> None:
    server = Server(later=3)
    renewals = of(server)
    took = []
    for lease in (1, 2, 3, 4, 5):
        began = trio.current_time()
        assert await renewals.renew(lease) == lease * 10
        took.append(trio.current_time() - began)
    assert took == [0, PROMPT, PROMPT, 0, 0]
    assert [call.asked for call in server.calls] == [[1, 2], [2, 3], [3], [4], [5]]
    assert server.open == 0


async def test_where_it_would_take_anothers_place_it_does_not_stay(autojump_clock: MockClock) -> None:
    server = Server(may_stay=False)
    renewals = of(server)
    assert [await renewals.renew(1), await renewals.renew(2)] == [10, 20]
    assert [call.asked for call in server.calls] == [[1], [2]]
    assert server.open == 0


async def test_being_late_once_in_a_while_changes_nothing(autojump_clock: MockClock) -> None:
    server = Server()
    renewals = of(server)
    await renewals.renew(1)
    for _ in range(3):
        for server.later in (3, 0):
            assert await renewals.renew(1) == 10
    assert server.open == 1


async def test_a_call_that_has_ended_is_followed_by_another_and_its_trouble_is_told(autojump_clock: MockClock) -> None:
    server = Server(most=1)
    renewals = of(server)
    assert [await renewals.renew(1), await renewals.renew(2)] == [10, 20]
    assert server.open == 1
    server.most = 0
    with pytest.raises(Trouble, match="ended the call"):
        await renewals.renew(3)
    assert server.open == 0


async def test_an_answer_that_was_not_waited_for_is_no_answer_to_another(autojump_clock: MockClock) -> None:
    server = Server(later=0.3)
    renewals = of(server)
    await renewals.renew(1)
    with trio.move_on_after(0.1):
        await renewals.renew(2)
    assert server.open == 0
    assert await renewals.renew(3) == 30
